"""The part of a page that says how training went: the base model is the line to compare with.

Which queries a model wins and loses against another, with the passages that each finds.

Charts as inline SVG: no script, no style of their own, colours by class.

A drawing is about as wide as a telephone, so that its letters keep their size on one; a page puts
several side by side. What is drawn is also said in words, for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from markupsafe import Markup

from llama_index_embeddings_adapted.core.arrays import Rows
from llama_index_embeddings_adapted.core.encoded import NO_DOCUMENT
from llama_index_embeddings_adapted.errors import OptionError, truncate
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, Texts
from llama_index_embeddings_adapted.evaluation.verdict import Interval

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


MOST_ROWS = 100  #: wins, and as many losses; the largest
MOST_CHARACTERS = 400  #: of a passage
_FIRST = 3  # passages shown of each model
_MOST_RELEVANT = 3
_NIL = 1e-9


@dataclass(frozen=True)
class Passage:
    """A document as a row shows it."""

    id: str
    text: str
    relevant: bool


@dataclass(frozen=True)
class Row:
    """One query whose score changed.

    Args:
        kind: ``"win"`` or ``"loss"``.
        change: Of the metric.
        query: Its text.
        ranks: Of its first relevant document before and after, in words.
        relevant: The first few of its relevant documents.
        before: What the base finds first.
        after: What the new model finds first.
    """

    kind: str
    change: str
    query: str
    ranks: str
    relevant: tuple[Passage, ...]
    before: tuple[Passage, ...]
    after: tuple[Passage, ...]


@dataclass(frozen=True)
class WinsLosses:
    """Rows, and how many there are besides."""

    base: str
    new: str
    summary: str
    rows: tuple[Row, ...]


def wins_losses(
    base: tuple[str, RetrievalScores],
    new: tuple[str, RetrievalScores],
    texts: Texts | None,
    *,
    metric: str,
) -> WinsLosses:
    """Compare two models query by query.

    Args:
        base: Name and scores.
        new: Name and scores, of the same queries in the same order.
        texts: Of the queries and documents; None gives counts only.
        metric: Such as ``"ndcg@10"``.

    Raises:
        OptionError: The models were scored on other queries.
    """
    if base[1].query_ids != new[1].query_ids:
        raise OptionError(f"{base[0]} and {new[0]} were scored on different queries.")
    change = new[1].values(metric) - base[1].values(metric)
    order = np.argsort(-change, kind="stable")
    wins = order[change[order] > _NIL]
    losses = order[change[order] < -_NIL][::-1]
    shown = [*wins[:MOST_ROWS], *losses[:MOST_ROWS]]
    summary = (
        f"{len(wins):,} of {len(change):,} queries win, {len(losses):,} lose and "
        f"{len(change) - len(wins) - len(losses):,} stay as they are, by {metric}."
    )
    if texts is None:
        return WinsLosses(base[0], new[0], summary, ())
    if len(shown) < len(wins) + len(losses):
        summary += f" Shown are the {MOST_ROWS} largest of each; the search looks through those."
    ranks = _first_relevant(base[1]), _first_relevant(new[1])
    rows = [
        Row(
            "win" if change[row] > 0 else "loss",
            f"{change[row]:+.3f}",
            texts.queries[row],
            f"first relevant passage: {_place(base[1], ranks[0][row])} → "
            f"{_place(new[1], ranks[1][row])}",
            _passages(base[1], texts, row, base[1].relevance.relevant_to(row)[:_MOST_RELEVANT]),
            _passages(base[1], texts, row, base[1].ranked[row, :_FIRST]),
            _passages(new[1], texts, row, new[1].ranked[row, :_FIRST]),
        )
        for row in map(int, shown)
    ]
    return WinsLosses(base[0], new[0], summary, tuple(rows))


def _first_relevant(scores: RetrievalScores) -> Rows:
    """Return the place of the first relevant document, 0 where none was retrieved."""
    hits = scores.relevance.grades_at(scores.ranked) > 0
    return np.asarray(np.where(hits.any(axis=1), 1 + hits.argmax(axis=1), 0), dtype=np.int64)


def _place(scores: RetrievalScores, rank: int) -> str:
    return f"place {rank}" if rank else f"beyond {scores.ranked.shape[1]}"


def _passages(
    scores: RetrievalScores, texts: Texts, query: int, documents: Iterable[int]
) -> tuple[Passage, ...]:
    relevant = set(scores.relevance.relevant_to(query).tolist())
    return tuple(
        Passage(
            scores.document_ids[document],
            truncate(texts.documents[document], MOST_CHARACTERS),
            int(document) in relevant,
        )
        for document in documents
        if document != NO_DOCUMENT
    )


MOST_CANDIDATES = 20  #: rows of the table of what competed; the best
_PARTS = {
    "overall": "all",
    "known": "documents with training questions",
    "new": "documents without",
}


def training_section(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of one training.

    Args:
        name: Of the model.
        report: ``FinetuneReport.to_dict()``, of this or an earlier version.
    """
    history = report.get("history") or []
    gains = _gains(history)
    drawn = _charts(report, history, gains) if len(history) > 1 else []
    if report.get("choice"):
        gains, drawn = _tried(report["choice"])
    return {
        "name": name,
        "lines": _lines(report, history),
        "charts": drawn,
        "legend": [_PARTS[part] for part in gains] if drawn else [],
        "parts": _parts(report),
        "candidates": _candidates(report.get("choice")),
        "settings": [
            [key, "–" if value is None else str(value)]
            for key, value in (report.get("settings") or {}).items()
        ],
    }


def _lines(report: Mapping[str, Any], history: list[Any]) -> list[str]:
    queries = report.get("train_queries", 0)
    choice = report.get("choice")
    if choice:
        share = f"{choice['expect']:.0%} of live queries are taken to ask for documents with "
        told = "as you said" if choice["expect_told"] else "an estimate"
        kept = f"{len(choice['gains'])} candidates competed; chosen: {choice['recipe']}."
        return [kept, f"{queries:,} training queries. {share}training questions ({told})."]
    best = report.get("best_epoch", 0)
    weight = (report.get("settings") or {}).get("tuned_weight")
    untrained = " (the base model)" if weight is None else " (the small model before training)"
    kept = f"Epoch {best} of {len(history) - 1} was kept" if history else "Trained in one step"
    stopped = "; training was stopped from the keyboard" if report.get("interrupted") else ""
    lines = [f"{kept}{untrained if history and not best else ''}{stopped}. "
             f"{queries:,} training queries."]  # fmt: skip
    if weight is not None:
        lines.append(
            f"λ = {weight:.2f}, the say of the small model, is best on the held-out queries."
            if weight
            else "λ = 0: the small model adds nothing on the held-out queries and is left out."
        )
    return lines


def _gains(history: list[Any]) -> dict[str, list[float]]:
    """Return the change per epoch of each part that has held-out queries."""
    scores = [epoch.get("gain") or epoch["scores"] for epoch in history]  # 0.1 called them gain
    lines = {
        part: [_number(line.get(part)) for line in scores] for part in ("overall", "known", "new")
    }
    return {part: line for part, line in lines.items() if any(v == v for v in line)}


def _charts(
    report: Mapping[str, Any], history: list[Any], gains: dict[str, list[float]]
) -> list[Any]:
    epochs = [epoch["epoch"] for epoch in history]
    best = report.get("best_epoch", 0)
    mark = (epochs.index(best), "kept") if best in epochs else None
    if not gains:
        title, lines, level = _scores(report, history)
    else:
        title, level = "Change in NDCG@10 on held-out queries", 0.0
        lines = {_PARTS[part]: line for part, line in gains.items()}
    return [
        curves(title, epochs, lines, horizontal="epoch", level=(level, "base model"), mark=mark),
        curves(
            "Training loss",
            epochs,
            {"loss": [_number(epoch["loss"]) for epoch in history]},
            horizontal="epoch",
            mark=mark,
        ),
    ]


def _scores(
    report: Mapping[str, Any], history: list[Any]
) -> tuple[str, dict[str, list[float]], float]:
    """Return title, line and the base model's level of the metric that chose the epoch."""
    metric = report["settings"]["metric"]
    line = [_number(epoch["scores"][metric]) for epoch in history]
    return f"{metric} while training", {metric: line}, report["settings"]["base_scores"][metric]


def _tried(choice: Mapping[str, Any]) -> tuple[dict[str, list[float]], list[Any]]:
    """Draw the gain of each candidate in the order they were tried."""
    pairs = list(choice["gains"].values())
    gains = {
        part: [_number(pair[place]) for pair in pairs]
        for place, part in enumerate(("known", "new"))
    }
    gains = {part: line for part, line in gains.items() if any(v == v for v in line)}
    names = list(choice["gains"])
    mark = (names.index(choice["recipe"]), "chosen") if choice["recipe"] in names else None
    drawn = curves(
        "Change in NDCG@10 of what was tried",
        range(1, len(pairs) + 1),
        {_PARTS[part]: line for part, line in gains.items()},
        horizontal="candidate, as tried; the first is the base model",
        level=(0.0, "base model"),
        mark=mark,
    )
    return gains, [drawn]


def _parts(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for key, label in _PARTS.items():
        part = report.get(key)
        if part:
            low, high = part["difference"]["low"], part["difference"]["high"]
            values = [part[model]["ndcg@10"] for model in ("base", "adapted")]
            rows.append([
                label, f"{part['queries']:,}", *(f"{value:.4f}" for value in values),
                f"{values[1] - values[0]:+.4f}", f"{low:+.4f} … {high:+.4f}",
                f"{part['difference']['p_value']:.4f}",
            ])  # fmt: skip
    head = ["queries about", "number", "base NDCG@10", "adapted", "change", "95 % interval", "p"]
    return {"head": head, "rows": rows}


def _candidates(choice: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not choice:
        return None
    share = choice["expect"]

    def expected(gains: list[float | None]) -> float:
        known, new = (_number(gain) for gain in gains)
        if math.isnan(known) or math.isnan(new):
            return new if math.isnan(known) else known
        return float(share * known + (1 - share) * new)

    ranked = sorted(choice["gains"].items(), key=lambda item: -expected(item[1]))
    rows = [
        [recipe + (" (chosen)" if recipe == choice["recipe"] else ""), *map(_signed, gains)]
        for recipe, gains in ranked
        if recipe == choice["recipe"] or recipe in dict(ranked[:MOST_CANDIDATES])
    ]
    head = ["candidate", "documents with training questions", "documents without"]
    caption = "Change in NDCG@10 over the base model, cross-fitted; the best expected first"
    if len(rows) < len(ranked):
        caption += f" ({len(rows)} of {len(ranked)} shown)"
    return {"caption": caption, "head": head, "rows": rows}


def _signed(gain: float | None) -> str:
    return "–" if gain is None else f"{gain:+.4f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
