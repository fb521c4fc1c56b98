"""Charts as inline SVG: no script, no style of their own, colours by class.

A drawing is about as wide as a telephone, so that its letters keep their size on one; a page puts
several side by side. What is drawn is also said in words, for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from markupsafe import Markup

from llama_index_embeddings_adapted.significance import Interval

COLOURS = 6  #: classes ``m0`` … ``m5``; more models share them

_WIDTH = 340
_LEFT, _RIGHT = 44, 14
_numbers = count()


def bars(title: str, values: Mapping[str, Interval]) -> Markup:
    """Draw a bar with its interval for each model.

    Args:
        title: What is measured.
        values: Model → mean and interval, in [0, 1].
    """
    row = 40
    top = max((high for _, _, high in values.values()), default=0.0)
    scale = (_WIDTH - 2 * _RIGHT) / max(top, 1e-9)
    parts, said = [], []
    for number, (name, (mean, low, high)) in enumerate(values.items()):
        y = 8 + number * row
        parts.append(
            Markup(
                '<text x="14" y="{ty}">{name}</text>'
                '<text x="326" y="{ty}" class="value">{mean}</text>'
                '<rect class="bar m{colour}" x="14" y="{y}" width="{width}" height="14"/>'
                '<path class="whisker" d="M{low} {mid}H{high}M{low} {up}V{down}'
                'M{high} {up}V{down}"/>'
            ).format(
                ty=y + 10,
                y=y + 16,
                name=_cut(name, 34),
                mean=f"{mean:.3f}",
                colour=number % COLOURS,
                width=_px(mean * scale),
                low=_px(14 + low * scale),
                high=_px(14 + high * scale),
                mid=y + 23,
                up=y + 19,
                down=y + 27,
            )
        )
        said.append(f"{name} {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    return _drawing(title, "; ".join(said), Markup("").join(parts), height=12 + row * len(values))


def curves(
    title: str,
    places: Sequence[object],
    lines: Mapping[str, Sequence[float]],
    *,
    horizontal: str = "",
    level: tuple[float, str] | None = None,
    mark: tuple[int, str] | None = None,
) -> Markup:
    """Draw a line for each series over places that stand at equal distances.

    Args:
        title: What is measured.
        places: Labels of the horizontal axis.
        lines: Name → a value per place; NaN is not drawn.
        horizontal: What the places are.
        level: A horizontal line to compare with, and its name.
        mark: A place to mark by a vertical line, and its name.
    """
    height, top, bottom = 210, 14, 172
    known = [value for line in lines.values() for value in line if value == value]
    known += [level[0]] if level else []
    ticks = _ticks(min(known, default=0.0), max(known, default=1.0))
    low, high = ticks[0], ticks[-1]
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(places) - 1)

    def x(place: int) -> float:
        return _LEFT + place * step

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [_levels(ticks, y), _places(places, x, bottom)]
    parts.append(Markup('<text x="192" y="204" class="axis middle">{}</text>').format(horizontal))
    if level:
        parts.append(_level(y(level[0]), level[1]))
    if mark:
        parts.append(_mark(x(mark[0]), mark[1], top, bottom))
    for number, line in enumerate(lines.values()):
        at = [(x(place), y(value)) for place, value in enumerate(line) if value == value]
        parts.append(_line(at, number))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{p} {v:.3f}" for p, v in zip(places, line, strict=True))
        for name, line in lines.items()
    )
    return _drawing(title, said, Markup("").join(parts), height=height)


def _level(y: float, name: str) -> Markup:
    return Markup(
        '<path class="level" d="M{left} {y}H{right}"/>'
        '<text x="{right}" y="{above}" class="axis end">{name}</text>'
    ).format(left=_LEFT, right=_WIDTH - _RIGHT, y=_px(y), above=_px(y - 4), name=name)


def _mark(x: float, name: str, top: float, bottom: float) -> Markup:
    return Markup(
        '<path class="mark" d="M{x} {top}V{bottom}"/>'
        '<text x="{x}" y="10" class="axis {anchor}">{name}</text>'
    ).format(
        x=_px(x), top=top, bottom=bottom, name=name, anchor="end" if x > _WIDTH / 2 else "start"
    )


def _line(at: Sequence[tuple[float, float]], number: int) -> Markup:
    points = " ".join(f"{_px(x)},{_px(y)}" for x, y in at)
    dots = Markup("").join(
        Markup('<circle class="dot m{}" cx="{}" cy="{}" r="2.4"/>').format(
            number % COLOURS, _px(x), _px(y)
        )
        for x, y in (at if len(at) <= 15 else ())
    )
    line = Markup('<polyline class="line m{}" points="{}"/>').format(number % COLOURS, points)
    return line + dots


def _levels(ticks: Sequence[float], y: Callable[[float], float]) -> Markup:
    """Draw the horizontal lines and say what they stand for."""
    return Markup("").join(
        Markup(
            '<path class="grid" d="M{left} {y}H{right}"/>'
            '<text x="{end}" y="{ty}" class="axis end">{value}</text>'
        ).format(
            left=_LEFT,
            right=_WIDTH - _RIGHT,
            end=_LEFT - 6,
            y=_px(y(tick)),
            ty=_px(y(tick) + 4),
            value=f"{tick:.{_digits(ticks[1] - ticks[0])}f}",
        )
        for tick in ticks
    )


def _places(places: Sequence[object], x: Callable[[int], float], bottom: float) -> Markup:
    every = -(-len(places) // 9)
    return Markup("").join(
        Markup('<text x="{}" y="{}" class="axis middle">{}</text>').format(
            _px(x(place)), bottom + 16, label
        )
        for place, label in enumerate(places)
        if place % every == 0
    )


def _drawing(title: str, said: str, body: Markup, *, height: int) -> Markup:
    number = next(_numbers)
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="c{n}t c{n}d"><title id="c{n}t">{title}</title>'
        '<desc id="c{n}d">{said}</desc>{body}</svg></figure>'
    ).format(title=title, width=_WIDTH, height=height, n=number, said=said, body=body)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, at equal distances, between which all values lie."""
    span = max(high - low, 1e-3)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * 4 >= span)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [tick * step for tick in range(first, last + 1)]


def _digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _px(value: float) -> str:
    return f"{value:.1f}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
