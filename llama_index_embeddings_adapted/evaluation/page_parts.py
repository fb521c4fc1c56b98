"""The parts of a page: charts, wins and losses against another model, how training went.

Charts are described here and drawn by ``templates/charts.html.j2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from ..core.arrays import Rows
from ..core.encoded import NO_DOCUMENT
from ..errors import OptionError, truncate
from .retrieval import RetrievalScores, Texts
from .verdict import Interval

COLOURS = 6  #: classes ``m0`` … ``m5``; more models share them
_numbers = count()


@dataclass(frozen=True)
class Bars:
    """A bar with its interval for each model, as ``charts.html.j2`` draws it.

    Args:
        title: What is measured.
        intervals: Model → mean and interval, in [0, 1].
    """

    title: str
    intervals: Mapping[str, Interval]
    number: int = field(default_factory=lambda: next(_numbers))
    kind = "bars"

    @property
    def rows(self) -> list[tuple[str, float, float, float]]:
        """Name, mean, lower and upper end of each model."""
        return [(name, *interval) for name, interval in self.intervals.items()]

    @property
    def height(self) -> int:
        """Of the drawing, which is 340 wide."""
        return 12 + 40 * len(self.intervals)

    @property
    def said(self) -> str:
        """What is drawn, for those who do not see it."""
        return "; ".join(
            f"{name} {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}"
            for name, mean, low, high in self.rows
        )

    def width(self, value: float) -> float:
        """Return the length of a bar."""
        top = max((high for *_, high in self.rows), default=0.0)
        return 312 * value / max(top, 1e-9)


@dataclass(frozen=True)
class Curves:
    """A line for each series over places at equal distances, as ``charts.html.j2`` draws it.

    Args:
        title: What is measured.
        places: Labels of the horizontal axis.
        lines: Name → a value per place; NaN is not drawn.
        horizontal: What the places are.
        level: A horizontal line to compare with, and its name.
        mark: A place to mark by a vertical line, and its name.
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
    def ticks(self) -> list[float]:
        """Round numbers of the vertical axis, between which all values lie."""
        known = [value for line in self.lines.values() for value in line if value == value]
        known += [self.level[0]] if self.level else []
        return _ticks(min(known, default=0.0), max(known, default=1.0))

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
        low, high = self.ticks[0], self.ticks[-1]
        return 172 - 158 * (value - low) / (high - low)

    def points(self, line: Sequence[float]) -> list[tuple[float, float]]:
        """Return where the values of a line lie that are known."""
        return [(self.x(n), self.y(value)) for n, value in enumerate(line) if value == value]

    def label(self, tick: float) -> str:
        """Return a tick with as many digits as all need."""
        digits = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        return f"{tick:.{digits}f}"


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, at equal distances, between which all values lie."""
    span = max(high - low, 1e-3)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * 4 >= span)
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [tick * step for tick in range(first, last + 1)]


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
    counted: str = "queries",
) -> WinsLosses:
    """Compare two models query by query.

    Args:
        base: Name and scores.
        new: Name and scores, of the same queries in the same order.
        texts: Of the queries and documents; None gives counts only.
        metric: Such as ``"ndcg@10"``.
        counted: What the scores are of; "judgements" where a query is judged more than once.

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
        f"{len(wins):,} of {len(change):,} {counted} win, {len(losses):,} lose and "
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


@dataclass(frozen=True)
class Training:
    """What the page shows of one training."""

    name: str
    lines: list[str]
    charts: list[Curves]
    legend: list[str]
    tables: list[Table]
    settings: Table


def training_section(name: str, report: Mapping[str, Any]) -> Training:
    """Return what the page shows of one training.

    Args:
        name: Of the model.
        report: ``FinetuneReport.to_dict()``, of this or an earlier version.
    """
    history, choice = report.get("history") or [], report.get("choice")
    gains = _gains(history)
    drawn = _charts(report, history, gains) if len(history) > 1 else []
    tables = [_parts(report)]
    if choice:
        gains, drawn = _tried(choice)
        tables.append(_candidates(choice))
    settings = [
        [key, "–" if value is None else str(value)]
        for key, value in (report.get("settings") or {}).items()
    ]
    return Training(
        name,
        _lines(report, history),
        drawn,
        [_PARTS[part] for part in gains] if drawn else [],
        tables,
        Table("Settings", ["setting", "value"], settings, numbers=False),
    )


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
) -> list[Curves]:
    epochs = [epoch["epoch"] for epoch in history]
    best = report.get("best_epoch", 0)
    mark = (epochs.index(best), "kept") if best in epochs else None
    if not gains:
        title, lines, level = _scores(report, history)
    else:
        title, level = "Change in NDCG@10 on held-out queries", 0.0
        lines = {_PARTS[part]: line for part, line in gains.items()}
    return [
        Curves(title, epochs, lines, horizontal="epoch", level=(level, "base model"), mark=mark),
        Curves(
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


def _tried(choice: Mapping[str, Any]) -> tuple[dict[str, list[float]], list[Curves]]:
    """Draw the gain of each candidate in the order they were tried."""
    pairs = list(choice["gains"].values())
    gains = {
        part: [_number(pair[place]) for pair in pairs]
        for place, part in enumerate(("known", "new"))
    }
    gains = {part: line for part, line in gains.items() if any(v == v for v in line)}
    names = list(choice["gains"])
    mark = (names.index(choice["recipe"]), "chosen") if choice["recipe"] in names else None
    drawn = Curves(
        "Change in NDCG@10 of what was tried",
        range(1, len(pairs) + 1),
        {_PARTS[part]: line for part, line in gains.items()},
        horizontal="candidate, as tried; the first is the base model",
        level=(0.0, "base model"),
        mark=mark,
    )
    return gains, [drawn]


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


def _candidates(choice: Mapping[str, Any]) -> Table:
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
    return Table(caption, head, rows)


def _signed(gain: float | None) -> str:
    return "–" if gain is None else f"{gain:+.4f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
