"""The parts of a page: charts, wins and losses against another model, how training went.

Charts are described here and drawn by ``templates/charts.html.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from ..core.encoded import NO_DOCUMENT
from ..errors import OptionError, truncate
from .retrieval import RetrievalScores, Texts
from .verdict import Interval

COLOURS = 6  #: classes ``m0`` … ``m5``; more models share them
_numbers = count()


@dataclass(frozen=True)
class Dots:
    """Dots with intervals, a row for each name, as ``charts.html.j2`` draws it; 0 is a line.

    The first row is drawn highest; None is not known; ``form`` is that of the figures beside a row.
    """

    title: str
    rows: Mapping[str, Sequence[Interval | None]]
    form: str = ".3f"
    number: int = field(default_factory=lambda: next(_numbers))
    kind = "dots"

    @cached_property
    def ticks(self) -> list[str]:
        """Round numbers of the horizontal axis, between which all intervals and 0 lie."""
        ends = [end for row in self.rows.values() for dot in row if dot for end in dot[1:]]
        return _ticks([0.0, *ends])

    @property
    def height(self) -> int:
        """Of the drawing, which is 340 wide."""
        return 34 + 36 * len(self.rows)

    @property
    def said(self) -> str:
        """What is drawn, for those who do not see it."""
        found = []
        for name, row in self.rows.items():
            dots = (f"{m:{self.form}} ({a:.3f} to {b:.3f})" for m, a, b in filter(None, row))
            found.append(f"{name} {' and '.join(dots)}")
        return "; ".join(found)

    def values(self, name: str) -> str:
        """Return the means of a row in figures."""
        return " / ".join(format(dot[0], self.form) for dot in self.rows[name] if dot)

    def x(self, value: float) -> float:
        """Return where a value lies."""
        return 20 + 300 * _share(value, self.ticks)


@dataclass(frozen=True)
class Curves:
    """A line for each series over places at equal distances, as ``charts.html.j2`` draws it.

    NaN is not drawn. ``horizontal`` says what the places are; ``level`` is a horizontal line to
    compare with, ``mark`` a place to mark by a vertical one, each with its name.
    """

    title: str
    places: Sequence[object]
    lines: Mapping[str, Sequence[float]]
    horizontal: str = ""
    level: tuple[float, str] | None = None
    mark: tuple[int, str] | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    kind, height = "curves", 210

    @cached_property
    def ticks(self) -> list[str]:
        """Round numbers of the vertical axis, between which all values lie."""
        known = [value for line in self.lines.values() for value in line if value == value]
        return _ticks([*known, *([self.level[0]] if self.level else [])] or [0.0, 1.0])

    @property
    def said(self) -> str:
        """What is drawn, for those who do not see it."""
        return "; ".join(
            f"{name}: " + ", ".join(f"{p} {v:.3f}" for p, v in zip(self.places, line, strict=True))
            for name, line in self.lines.items()
        )

    def x(self, place: int) -> float:
        """Return where a place lies."""
        return 44 + 282 * place / max(1, len(self.places) - 1)

    def y(self, value: float) -> float:
        """Return where a value lies."""
        return 172 - 158 * _share(value, self.ticks)

    def points(self, line: Sequence[float]) -> list[tuple[float, float]]:
        """Return where the values of a line lie that are known."""
        return [(self.x(n), self.y(value)) for n, value in enumerate(line) if value == value]


def _share(value: float, ticks: Sequence[str]) -> float:
    low, high = float(ticks[0]), float(ticks[-1])
    return (value - low) / (high - low)


def _ticks(values: Sequence[float]) -> list[str]:
    """Return round numbers, at equal distances, between which all values lie."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-3)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * 4 >= span)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick * step:.{digits}f}" for tick in range(first, last + 1)]


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, the first of each row its heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


MOST_ROWS = 100  #: wins, and as many losses; the largest
MOST_CHARACTERS = 400  #: of a passage
_FIRST = 3  # passages shown of each model
_MOST_RELEVANT = 3
_NIL = 1e-9


class Passage(NamedTuple):
    """A document as a row shows it."""

    id: str
    text: str
    relevant: bool


class Row(NamedTuple):
    """One query whose score changed, in words, with the first few passages of each kind."""

    kind: str  # "win" or "loss"
    change: str
    query: str
    ranks: str
    relevant: tuple[Passage, ...]
    before: tuple[Passage, ...]
    after: tuple[Passage, ...]


class WinsLosses(NamedTuple):
    """Rows, and how many there are besides."""

    base: str
    new: str
    lost: int
    summary: str
    rows: tuple[Row, ...]


def wins_losses(
    base: tuple[str, RetrievalScores],
    new: tuple[str, RetrievalScores],
    texts: Texts | None,
    *,
    metric: str,
    counted: str = "queries",
) -> WinsLosses:
    """Compare two models, name and scores of each, query by query.

    Without texts only counts come back. ``counted`` is what the scores are of: "judgements" where a
    query is judged more than once. Other queries, or in another order, are an OptionError.
    """
    if base[1].query_ids != new[1].query_ids:
        raise OptionError(f"{base[0]} and {new[0]} were scored on different queries.")
    change = new[1].values(metric) - base[1].values(metric)
    order = np.argsort(-change, kind="stable")
    wins = order[change[order] > _NIL]
    losses = order[change[order] < -_NIL][::-1]
    shown = [*wins[:MOST_ROWS], *losses[:MOST_ROWS]]
    summary = (
        f"{len(wins):,} of {len(change):,} {counted} win, {len(losses):,} lose and "
        f"{len(change) - len(wins) - len(losses):,} stay as they are, by {metric}."
    )
    if texts is None:
        return WinsLosses(base[0], new[0], len(losses), summary, ())
    if len(shown) < len(wins) + len(losses):
        summary += f" Shown are the {MOST_ROWS} largest of each; the search looks through those."
    rows = [
        Row(
            "win" if change[row] > 0 else "loss",
            f"{change[row]:+.3f}",
            texts.queries[row],
            f"first relevant passage: {_place(base[1], row)} → {_place(new[1], row)}",
            _passages(base[1], texts, row, base[1].relevance.relevant_to(row)[:_MOST_RELEVANT]),
            _passages(base[1], texts, row, base[1].ranked[row, :_FIRST]),
            _passages(new[1], texts, row, new[1].ranked[row, :_FIRST]),
        )
        for row in map(int, shown)
    ]
    return WinsLosses(base[0], new[0], len(losses), summary, tuple(rows))


def _place(scores: RetrievalScores, query: int) -> str:
    depth = scores.ranked.shape[1]
    reciprocal = scores.values(f"mrr@{depth}")[query]
    return f"place {round(1 / reciprocal)}" if reciprocal else f"beyond {depth}"


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


MOST_CANDIDATES = 12  #: drawn of what competed; the best
_KNOWN = "Known documents are those with training queries, new ones all others."
_PARTS = {"overall": "all", "known": "known documents", "new": "new documents"}


class Training(NamedTuple):
    """What the page shows of one training."""

    name: str
    lines: list[str]
    charts: Sequence[Curves] | Sequence[Dots]
    legend: list[str]
    parts: Table


def training_section(name: str, report: Mapping[str, Any]) -> Training:
    """Return what the page shows of a ``FinetuneReport.to_dict()``, of any version."""
    history, choice = report.get("history") or [], report.get("choice")
    legend: list[str] = []
    drawn: list[Curves] | list[Dots] = []
    if choice:
        legend, drawn = [_PARTS["known"], _PARTS["new"]], [_candidates(choice)]
    elif len(history) > 1:
        legend, drawn = _history(report, history)
    return Training(name, _lines(report, history), drawn, legend, _parts(report))


def _lines(report: Mapping[str, Any], history: list[Any]) -> list[str]:
    queries = report.get("train_queries", 0)
    choice = report.get("choice")
    if choice:
        told = "as you said" if choice["expect_told"] else "an estimate"
        kept = f"{len(choice['gains'])} candidates competed; chosen: {choice['recipe']}."
        share = f"{choice['expect']:.0%} of live queries are taken to ask for known documents"
        return [kept, f"{queries:,} training queries. {share} ({told}). {_KNOWN}"]
    best = report.get("best_epoch", 0)
    weight = (report.get("settings") or {}).get("tuned_weight")
    untrained = " (the base model)" if weight is None else " (the small model before training)"
    kept = f"Epoch {best} of {len(history) - 1} was kept" if history else "Trained in one step"
    stopped = "; training was stopped from the keyboard" if report.get("interrupted") else ""
    lines = [f"{kept}{untrained if history and not best else ''}{stopped}. "
             f"{queries:,} training queries. {_KNOWN}"]  # fmt: skip
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


def _history(report: Mapping[str, Any], history: list[Any]) -> tuple[list[str], list[Curves]]:
    """Draw gain and loss of every epoch; return the names of the lines, too."""
    epochs, gains = [epoch["epoch"] for epoch in history], _gains(history)
    best = report.get("best_epoch", 0)
    mark = (epochs.index(best), "kept") if best in epochs else None
    title, level = "Change in NDCG@10 on held-out queries", 0.0
    lines = {_PARTS[part]: line for part, line in gains.items()}
    if not gains:
        title, lines, level = _scores(report, history)
    losses = {"loss": [_number(epoch["loss"]) for epoch in history]}
    gain = Curves(title, epochs, lines, horizontal="epoch", level=(level, "base model"), mark=mark)
    loss = Curves("Training loss", epochs, losses, horizontal="epoch", mark=mark)
    return [_PARTS[part] for part in gains], [gain, loss]


def _scores(
    report: Mapping[str, Any], history: list[Any]
) -> tuple[str, dict[str, list[float]], float]:
    """Return title, line and the base model's level of the metric that chose the epoch."""
    metric = report["settings"]["metric"]
    line = [_number(epoch["scores"][metric]) for epoch in history]
    return f"{metric} while training", {metric: line}, report["settings"]["base_scores"][metric]


def _parts(report: Mapping[str, Any]) -> Table:
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
    counts = [report[key]["queries"] if report.get(key) else 0 for key in _PARTS]
    caption = "Held-out queries"
    if sum(counts[1:]) > counts[0]:
        caption += f": {counts[0]:,}, judged {sum(counts[1:]):,} times, on known or new documents"
    return Table(caption, head, rows)


def _candidates(choice: Mapping[str, Any]) -> Dots:
    """Draw what competed, the best expected first, and what was chosen in any case."""
    gains, margins = choice["gains"], choice.get("margins") or {}

    def expected(name: str) -> float:
        known, new = (_number(gain) for gain in gains[name])
        if math.isnan(known) or math.isnan(new):
            return new if math.isnan(known) else known
        return float(choice["expect"] * known + (1 - choice["expect"]) * new)

    ranked = sorted(gains, key=lambda name: -expected(name))
    best = ranked[:MOST_CANDIDATES]
    rows = {
        "chosen: " * (name == choice["recipe"]) + name: [
            None if gain is None else (gain, gain - (margin or 0.0), gain + (margin or 0.0))
            for gain, margin in zip(gains[name], margins.get(name, (0.0, 0.0)), strict=True)
        ]
        for name in ranked
        if name in best or name == choice["recipe"]
    }
    title = f"Change in NDCG@10, cross-fitted, of the best {len(rows)} of {len(ranked)} candidates"
    return Dots(title, rows, "+.3f")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
