"""From scores to a page that a person reads: verdict first, then what it rests on.

One HTML file that needs nothing else, and runs only our own script. Jinja2 comes with LlamaIndex
(through ``banks``) and escapes every value; a policy inside the page forbids any request, and any
script and style whose hash is not ours. Its sentences and tables stand in ``templates``.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ..core import files
from ..core.encoded import NO_DOCUMENT, EncodedDataset
from ..core.files import library_version
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..errors import OptionError, truncate
from .retrieval import RetrievalScores, parse
from .verdict import METRIC, Decision, Interval, Verdict, compared, mean_interval

_PARTS = {
    "overall": "all",
    "known": "known documents",
    "new": "new documents",
    "people": "of people alone",
}
_COLOURS = 6  # classes ``m0`` … ``m5``; more models share them
_SHOWN = {"hit_rate@5": "Hit rate@5", "mrr@10": "MRR@10", "ndcg@10": "NDCG@10, which decides"}
MOST_CANDIDATES = 12  #: drawn of what competed; the best
MOST_ROWS = 100  #: wins, and as many losses; the largest
MOST_CHARACTERS = 400  #: of a passage
_FIRST = 3  # passages shown of each model
_MOST_RELEVANT = 3
_NIL = 1e-9


@dataclass(frozen=True, eq=False)
class Texts:
    """What the rows of scores stand for, to be read by people, each in their order."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]

    @classmethod
    def of(
        cls, dataset: EmbeddingQAFinetuneDataset, data: EncodedDataset | RetrievalScores
    ) -> Texts:
        """Return the texts behind the rows of vectors or scores, which may be a part of them."""
        queries = tuple(dataset.queries[name] for name in data.query_ids)
        return cls(queries, tuple(dataset.corpus[name] for name in data.document_ids))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Return the texts behind :func:`joined` scores."""
        queries = tuple(text for part in parts for text in part.queries)
        return cls(queries, tuple(text for part in parts for text in part.documents))


def write_page(
    path: str | Path,
    title: str,
    scores: Mapping[str, RetrievalScores],
    texts: Texts | None,
    trained: Mapping[str, Mapping[str, Any]],
    *,
    verdict: Verdict | None = None,
    data: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page, atomically; return its path. What is not known is left out of it.

    ``trained`` are ``FinetuneReport.to_dict()`` by model; that of a training is ``"adapted"``, with
    its verdict. Else the verdict is taken from the scores, whose first model is what others are
    compared with.
    """
    target = Path(path)
    with files.atomic_file(target) as temporary:
        named = list(scores.items())
        judged = len(named[0][1].query_ids) if named else 0
        queries = trained["adapted"]["overall"]["queries"] if verdict else judged
        counted = "judgements" if queries < judged else "queries"
        pairs = [wins_losses(named[0], other, texts, counted=counted) for other in named[1:]]
        first, *others = [verdict] if verdict else _differences(scores)
        rivals = [name for name, _ in named[1:]]
        best = max(rivals, key=lambda name: scores[name][METRIC], default="adapted")
        shown = _fitting(scores, _SHOWN)
        means = {m: {name: [mean_interval(one.values(m))] for name, one in named} for m in shown}
        text = template("report").render(
            title=title,
            made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            version=library_version(),
            scores=scores,
            verdict=first,
            others=others,
            of_training=verdict is not None,
            new="adapted" if verdict else best,
            charts=[Dots(_SHOWN[metric], rows) for metric, rows in means.items()],
            columns=_fitting(scores, named[0][1].headline) if named else (),
            trained={name: (report, *_drawn(report)) for name, report in trained.items()},
            pairs=pairs,
            judged=judged,
            queries=queries,
            data=data or {},
        )
        temporary.write_text(text, encoding="utf-8")
    return target


@functools.cache
def template(name: str) -> Template:
    """Return one of the files that write the page."""
    loader = PackageLoader("llama_index_embeddings_adapted", "evaluation/templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.globals |= {"colours": _COLOURS, "parts": _PARTS, "hash_of": _hash}
    environment.globals |= {"number": itertools.count().__next__}
    environment.globals |= {"sentence": lambda text: text[:1].upper() + text[1:].rstrip(".") + "."}
    return environment.get_template(f"{name}.html.j2")


def _hash(text: str) -> str:
    """Return the hash by which a content policy admits an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _differences(scores: Mapping[str, RetrievalScores]) -> list[Verdict]:
    """Say how each model compares with the first, the best one first."""
    ((first, base), *others) = scores.items()
    verdicts = []
    for name, found in sorted(others, key=lambda item: -item[1][METRIC]):
        difference = compared(base, found)
        reason = (
            f"{name} against {first}, NDCG@10 {base[METRIC]:.4f} → {found[METRIC]:.4f}, "
            f"{difference.numbers}, p = {difference.p_value:.4f}; {difference.verdict.reason}"
        )
        verdicts.append(Verdict(difference.verdict.decision, reason, difference))
    return verdicts or [Verdict(Decision.INCONCLUSIVE, "one model: nothing to compare it with")]


class Dots(NamedTuple):
    """Rows of dots with intervals, from the top; None is not known, ``form`` formats figures."""

    title: str
    rows: Mapping[str, Sequence[Interval | None]]
    form: str = ".3f"

    @property
    def ticks(self) -> list[str]:
        """Round numbers of the horizontal axis, between which all intervals and 0 lie."""
        ends = (end for row in self.rows.values() for dot in row for end in dot or ())
        return _ticks([0.0, *ends])


class Curves(NamedTuple):
    """A line for each series over places at equal distances; NaN is not drawn.

    ``horizontal`` names the places; ``level`` is a horizontal line, ``mark`` a marked place, named.
    """

    title: str
    places: Sequence[object]
    lines: Mapping[str, Sequence[float]]
    horizontal: str = ""
    level: tuple[float, str] | None = None
    mark: tuple[int, str] | None = None

    @property
    def ticks(self) -> list[str]:
        """Round numbers of the vertical axis, between which all values lie."""
        known = [value for line in self.lines.values() for _, value in self.points(line)]
        return _ticks([*known, *(self.level[:1] if self.level else ())] or [0.0, 1.0])

    def points(self, line: Sequence[float]) -> list[tuple[int, float]]:
        """Return place and value of what is known of a line."""
        return [(place, value) for place, value in enumerate(line) if value == value]


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


def _fitting(scores: Mapping[str, RetrievalScores], names: Iterable[str]) -> list[str]:
    """Leave out the cut-offs that are deeper than what was retrieved."""
    cut = [s.ranked.shape[1] for s in scores.values() if s.ranked.shape[1] < len(s.document_ids)]
    deepest = min(cut, default=math.inf)
    return [name for name in names if scores and parse(name)[1] <= deepest]


_Drawn = tuple[list[str], Sequence[Curves | Dots]]  # names of the colours, and charts


def _drawn(report: Mapping[str, Any]) -> _Drawn:
    """Return what is drawn of a ``FinetuneReport.to_dict()``, of any version."""
    history = report.get("history") or []
    if report.get("choice"):
        charts: list[Curves | Dots] = [_candidates(report["choice"])]
        if curve := report["choice"].get("curve"):
            title = "Change in NDCG@10 by the number of training queries, cross-fitted"
            counts, gains = [0, *curve["queries"]], {"chosen": [0.0, *curve["gains"]]}
            charts.append(Curves(title, counts, gains, horizontal="training queries"))
        return [_PARTS["known"], _PARTS["new"]], charts
    return _history(report, history) if len(history) > 1 else ([], [])


def _history(report: Mapping[str, Any], history: list[Any]) -> _Drawn:
    epochs, best = [epoch["epoch"] for epoch in history], report.get("best_epoch", 0)
    mark = (epochs.index(best), "kept") if best in epochs else None
    scores = [epoch.get("gain") or epoch["scores"] for epoch in history]  # 0.1 called them gain
    parts = {said: [_number(line.get(part)) for line in scores] for part, said in _PARTS.items()}
    lines = {part: line for part, line in parts.items() if any(v == v for v in line)}
    title, level = "Change in NDCG@10 on held-out queries", 0.0
    legend = list(lines)
    if not lines:  # of a small model: the metric that chose the epoch
        metric = report["settings"]["metric"]
        lines = {metric: [_number(epoch["scores"][metric]) for epoch in history]}
        title, level = f"{metric} while training", report["settings"]["base_scores"][metric]
    losses = {"loss": [_number(epoch["loss"]) for epoch in history]}
    gain = Curves(title, epochs, lines, horizontal="epoch", level=(level, "base model"), mark=mark)
    return legend, [gain, Curves("Training loss", epochs, losses, horizontal="epoch", mark=mark)]


def _candidates(choice: Mapping[str, Any]) -> Dots:
    """Draw what competed, the best expected first, and what was chosen in any case."""
    gains, margins = choice["gains"], choice.get("margins") or {}

    def expected(name: str) -> float:
        known, new = map(_number, gains[name])
        both = choice["expect"] * known + (1 - choice["expect"]) * new
        return new if math.isnan(known) else known if math.isnan(new) else float(both)

    ranked = sorted(gains, key=lambda name: -expected(name))
    rows = {
        "chosen: " * (name == choice["recipe"]) + name: [
            None if gain is None else (gain, gain - (margin or 0.0), gain + (margin or 0.0))
            for gain, margin in zip(gains[name], margins.get(name, (0.0, 0.0)), strict=True)
        ]
        for place, name in enumerate(ranked)
        if place < MOST_CANDIDATES or name == choice["recipe"]
    }
    title = f"Change in NDCG@10, cross-fitted, of the best {len(rows)} of {len(ranked)} candidates"
    return Dots(title, rows, "+.3f")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


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
    metric: str = METRIC,
    counted: str = "queries",
) -> WinsLosses:
    """Compare two models query by query, ``counted`` so; of other queries, an OptionError."""
    (first, before), (second, after) = base, new
    if before.query_ids != after.query_ids:
        raise OptionError(f"{first} and {second} were scored on different queries.")
    change = after.values(metric) - before.values(metric)
    order = np.argsort(-change, kind="stable")
    wins, losses = order[change[order] > _NIL], order[change[order] < -_NIL][::-1]
    shown = [*wins[:MOST_ROWS], *losses[:MOST_ROWS]]
    summary = (
        f"{len(wins):,} of {len(change):,} {counted} win, {len(losses):,} lose and "
        f"{len(change) - len(wins) - len(losses):,} stay as they are, by {metric}."
    )
    if texts is None:
        return WinsLosses(first, second, len(losses), summary, ())
    if len(shown) < len(wins) + len(losses):
        summary += f" Shown are the {MOST_ROWS} largest of each; the search looks through those."

    def passages(scores: RetrievalScores, query: int, rows: Iterable[int]) -> tuple[Passage, ...]:
        right = set(scores.relevance.relevant_to(query).tolist())
        found = [int(row) for row in rows if row != NO_DOCUMENT]
        shown = (truncate(texts.documents[row], MOST_CHARACTERS) for row in found)
        each = zip(found, shown, strict=True)
        return tuple(Passage(scores.document_ids[row], text, row in right) for row, text in each)

    rows = [
        Row(
            "win" if change[row] > 0 else "loss",
            f"{change[row]:+.3f}",
            texts.queries[row],
            f"first relevant passage: {_place(before, row)} → {_place(after, row)}",
            passages(before, row, before.relevance.relevant_to(row)[:_MOST_RELEVANT]),
            passages(before, row, before.ranked[row, :_FIRST]),
            passages(after, row, after.ranked[row, :_FIRST]),
        )
        for row in map(int, shown)
    ]
    return WinsLosses(first, second, len(losses), summary, tuple(rows))


def _place(scores: RetrievalScores, query: int) -> str:
    depth = scores.ranked.shape[1]
    reciprocal = scores.values(f"mrr@{depth}")[query]
    return f"place {round(1 / reciprocal)}" if reciprocal else f"beyond {depth}"
