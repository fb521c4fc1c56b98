"""What a fine-tuning run found, in numbers and in words; what every epoch of it brought."""

from __future__ import annotations

import math
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Literal

import wrapt

from ..adapters.base import Adapter
from ..core.arrays import Vectors
from ..errors import NotTrainedError
from . import verdict as verdicts
from .comparison import Comparison
from .held_out import PartReport, Parts
from .page import write_page
from .verdict import LOOKS_RANDOM, METRIC, Decision, Verdict
from .views import ViewsReport

_LEAST_GAIN = 1e-9  # below this, two scores are the same
_NO_WEIGHT = Verdict(
    Decision.KEEP_BASE,
    "the small model adds nothing on held-out queries; the model returned is the base model",
)
#: Two-sided. The epoch was chosen on the same queries: at .05, 7 of 250 runs with nothing to gain
#: would ship (benchmarks: nulls)
_P_TO_SHIP = 0.02
_CHANCE = "the gain may be chance, as the same queries chose when to stop"
_NO_EPOCH = Verdict(
    Decision.KEEP_BASE,
    "no epoch of training was better on held-out queries without harm; the adapter returned "
    "changes nothing",
)


@dataclass(frozen=True)
class LearningCurve:
    """What the chosen candidate gains by a quarter, a half and all of each fold's queries."""

    queries: tuple[int, ...]  #: Trained on, in the mean of the folds.
    #: Mean change in NDCG@10, of judged queries as live ones are expected.
    gains: tuple[float, ...]
    #: Whether all gain more than the half, by more than a standard error and a tenth of the gain.
    grows: bool

    def __str__(self) -> str:
        pairs = zip(self.queries, self.gains, strict=True)
        steps = ", ".join(f"{queries} gain {gain:+.4f}" for queries, gain in pairs)
        return f"training queries: {steps}; more would {'' if self.grows else 'hardly '}gain more"


@dataclass(frozen=True, eq=False)
class SelectionReport:
    """How a pipeline was chosen, and what became of it."""

    recipe: str  #: The chosen one, in words.
    verdict: Verdict  #: To ship where cross-fitting proves its gain and sees no harm.
    expect: float  #: Share of live queries about known documents that was expected.
    expect_told: bool  #: Whether the user said so.
    provable: float  #: The gain in NDCG@10 that was announced before training as provable.
    sampled: str  #: What was left out of cross-fitting, in words; empty if nothing.
    #: Candidate → mean change in NDCG@10 on known and new documents, of all not out of the race.
    gains: Mapping[str, tuple[float | None, float | None]]
    failed: Mapping[str, str]  #: Candidate → why it could not be fitted.
    #: Candidate → half the 95 % interval of each of its gains.
    margins: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    curve: LearningCurve | None = None  #: Where an LLM wrote the queries, so that more can be had.

    @property
    def ship(self) -> bool:
        """Whether the verdict is to ship."""
        return self.verdict.decision is Decision.SHIP

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON knows it."""
        curve = self.curve and asdict(self.curve)
        return {**_plain(self, without=("verdict",)), "ship": self.ship, "curve": curve}


@dataclass(frozen=True)
class Deployment:
    """What serving the candidate means."""

    folder: str  #: Name of the folder it is saved to.
    base: str  #: Class and name of the base model.
    moves_documents: bool  #: Whether documents need an index of their own.
    query_us: float = 0.0  #: Microseconds per query on top of the base model's; 0: not measured.

    @classmethod
    def of(cls, folder: str, base: str, adapter: Adapter, queries: Vectors) -> Deployment:
        """Time an adapter on some queries: the median, as a busy machine says too much."""
        taken = (timeit.timeit(partial(adapter.apply, query), number=1) for query in queries)
        return cls(folder, base, adapter.adapts_documents, 1e6 * median(taken))


@dataclass(frozen=True)
class Epoch:
    """One line of a training history; epoch 0 is the model before training."""

    number: int
    loss: float  #: Mean training loss; NaN where there is none.
    #: On held-out queries. Of an adapter: part of the queries ("overall", "known", "new") → change
    #: in NDCG@10 over the base model, as far as the part has queries. Of a small model: metric →
    #: mean.
    scores: Mapping[str, float]
    seconds: float  #: Training and validation of this epoch.

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as JSON knows it."""
        loss = None if math.isnan(self.loss) else self.loss
        return {"epoch": self.number, "loss": loss, "scores": self.scores, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Epoch:
        """Rebuild what :meth:`to_dict` gave."""
        loss = math.nan if data["loss"] is None else data["loss"]
        return cls(data["epoch"], loss, data["scores"], data["seconds"])


def best_epoch(history: Sequence[Epoch], metric: str) -> int:
    """Return the number of the best epoch; of those equal in the metric, NDCG@10 decides."""
    best = history[0]
    for line in history[1:]:
        for name in (metric, METRIC):
            change = line.scores[name] - best.scores[name]
            if abs(change) > _LEAST_GAIN:
                best = line if change > 0 else best
                break
    return best.number


@dataclass(frozen=True, eq=False)
class FinetuneReport:
    """What ``finetune()`` did and how the adapter fares on queries it did not train on.

    With ``method="linear"``, the held-out queries also chose when to stop, so their gain is a
    little optimistic; judge with :func:`compare_retrieval` on queries of your own before you rely
    on its size. With other methods, all queries are held out in turn and none takes part in the
    choice it judges; the adapter served was trained on more of them and tends to be better.

    Args:
        overall: All held-out queries; with a choice, weighted as live queries are expected.
        known: Those about documents that training has questions for; None if there are none.
        new: Those about documents that it has not; None if there are none.
        train_queries: Queries trained on.
        best_epoch: Which epoch was kept; 0 is the untrained adapter, that is the base model. Beside
            a black box, 0 is the small model before training.
        history: Loss and gain of every epoch; empty with a choice.
        seconds: Wall time, embedding included.
        base_calls, base_texts, base_tokens: Calls to the base model, the probes that identify it
            included; texts sent; their tokens, about: one for every four characters.
        interrupted: Whether training was stopped from the keyboard.
        settings: Loss, hyper-parameters, seed.
        choice: How the method was chosen; None with ``method="linear"``.
        saved: What the folder holds: the base model unchanged, or the candidate that was judged.
        candidate: The folder that holds the candidate, where the other holds the base model.
        data: What was trained on, in numbers, see :func:`data_statistics`.
        deployment: What serving it means; None where that is not known.
        held_out: Base and adapted model on the held-out queries, one by one; None where that was
            not kept. Not part of :meth:`to_dict`, as it holds texts.
        views: What words and a document prior add; None where that was not asked.
        people: Held-out queries of people alone, where an LLM or headings gave others; else None.
    """

    overall: PartReport
    known: PartReport | None
    new: PartReport | None
    train_queries: int
    best_epoch: int = 0
    history: tuple[Epoch, ...] = ()
    seconds: float = 0.0
    base_calls: int = 0
    base_texts: int = 0
    base_tokens: int = 0
    interrupted: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    choice: SelectionReport | None = None
    saved: Literal["base", "candidate"] = "candidate"
    candidate: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    deployment: Deployment | None = None
    held_out: Comparison | None = None
    views: ViewsReport | None = None
    people: PartReport | None = None

    @property
    def base(self) -> Mapping[str, float]:
        """Scores of the base model on all held-out queries."""
        return self.overall.base

    @property
    def adapted(self) -> Mapping[str, float]:
        """Scores of the adapted model on all held-out queries."""
        return self.overall.adapted

    @property
    def weight(self) -> float | None:
        """λ of a composed model, 0 where the small model has no say; None for an adapter."""
        return self.settings.get("tuned_weight")

    @property
    def p_value(self) -> float:
        """Of the difference in NDCG@10 over all held-out queries."""
        return self.overall.difference.p_value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of that difference."""
        return self.overall.difference.low, self.overall.difference.high

    @property
    def verdict(self) -> Verdict:
        """What to make of it."""
        difference = self.overall.difference
        sources = self.settings.get("judged_on")
        known, new = (0 if part is None else part.queries for part in (self.known, self.new))
        if self.choice is not None:
            if self.choice.verdict.decision not in (Decision.SHIP, Decision.PROMISING):
                return self.choice.verdict
            verdict = verdicts.gaining(difference, sources)
            told = self.choice.expect_told
            return verdict if told else verdicts.with_small_parts(verdict, known, new)
        generalises = self.new is not None and self.new.difference.beyond_luck
        if self.settings.get("looks_random") and not generalises:
            return LOOKS_RANDOM
        if self.weight == 0.0:
            return _NO_WEIGHT
        if self.best_epoch == 0 and self.weight is None:
            return _NO_EPOCH
        if difference.low <= 0:
            verdict = verdicts.inconclusive(difference)
        elif difference.p_value > _P_TO_SHIP:
            verdict = verdicts.inconclusive(difference, _CHANCE)
        else:
            verdict = verdicts.gaining(difference, sources)
        if self.settings.get("expect") is not None:
            return verdict
        loss = Parts(self.overall, self.known, self.new).loss
        return loss or verdicts.with_small_parts(verdict, known, new)

    @property
    def holds(self) -> str:
        """What the folder holds, in words."""
        if self.saved == "candidate":
            return "the candidate that was judged"
        if self.candidate:
            return f"the base model, unchanged; the candidate is in {self.candidate}"
        return f"the base model, unchanged{'; nothing was better' * self._nothing_better}"

    @property
    def _nothing_better(self) -> bool:
        return bool(self.choice and self.choice.gains and self.choice.recipe == "identity")

    @property
    def headline(self) -> tuple[str, ...]:
        """What is to be known beside the verdict, in words."""
        judged = self.settings.get("judged_on") or {}
        sources = ", ".join(f"{count:,} {source}" for source, count in sorted(judged.items()))
        told = [f"judged on queries from: {sources}"] if set(judged) - {"unknown"} else []
        return (f"saved: {self.holds}", *told, *(self.settings.get("notes") or ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON knows it."""
        parts = ("overall", "known", "new", "people", "choice", "views")
        return {
            **_plain(self, without=(*parts, "held_out", "history", "deployment")),
            **{name: part and part.to_dict() for name in parts for part in [getattr(self, name)]},
            "verdict": self.verdict,
            "decision": self.verdict.decision.value,
            "candidate": self.candidate or None,
            "holds": self.holds,
            "headline": list(self.headline),
            "history": [epoch.to_dict() for epoch in self.history],
            "deployment": self.deployment and asdict(self.deployment),
        }

    def to_html(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write a page to look at: one file that needs no other and no network.

        It has the verdict, the scores of the held-out queries with intervals, the history of the
        training, wins and losses with the passages, the data and the cost. It holds texts of
        yours. The title is by default adapter and base model. Returns the path written.
        """
        held_out, made = self.held_out or Comparison({}), self.deployment
        named = f"Adapter {made.folder} for {made.base}" if made else "Training of an adapter"
        shown = (held_out.scores, held_out.texts, {"adapted": self.to_dict()})
        return write_page(path, title or named, *shown, verdict=self.verdict)

    def __str__(self) -> str:
        lines = [f"Verdict: {self.verdict}.", *(f"  {line}" for line in self.headline)]
        # Queries are judged by what the other folds chose, even where all together choose nothing.
        whose = ", by what other folds chose; it is not saved" * self._nothing_better
        names = ("all", "known documents", "new documents", "of people alone")
        parts = (self.overall, self.known, self.new, self.people)
        for name, part in zip(names, parts, strict=True):
            if part is not None:
                lines.append(f"  {name}: {part}, {part.queries} held-out queries{whose}")
        kept = f"kept: epoch {self.best_epoch} of {len(self.history) - 1}"
        if self.choice is not None:
            kept = f"chosen: {self.choice.recipe} of {len(self.choice.gains)} candidates"
            lines += [f"  {self.choice.curve}"] if self.choice.curve else []
        spent = f"{self.base_texts} texts embedded in {self.base_calls} calls"
        took = f"{self.train_queries} training queries, {self.seconds:.1f} s, {spent}"
        lines.append(f"  {kept}; {took}")
        return "\n".join([*lines, *([f"  {self.views}"] if self.views else [])])


def _plain(report: Any, *, without: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON knows them, some left out."""
    kept = {name: value for name, value in vars(report).items() if name not in without}
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in kept.items()}


class Engine:
    """Has a report once ``finetune()`` is done; ``_loads`` says how to load an earlier model."""

    _loads: ClassVar[str]
    _output: Path
    _report: FinetuneReport | None = None

    @property
    def report(self) -> FinetuneReport:
        """What ``finetune()`` found; a :class:`NotTrainedError` before."""
        return self._trained("report")

    def _trained(self, what: str) -> FinetuneReport:
        if self._report is None:
            raise NotTrainedError(
                f"There is no {what} before finetune(). To load an earlier model: "
                f"{self._loads.format(self._output)}."
            )
        return self._report


# isinstance(engine, BaseEmbeddingFinetuneEngine) holds once that class exists, without our
# importing the old package, which takes seconds and may not be importable at all.
wrapt.register_post_import_hook(
    lambda types: types.BaseEmbeddingFinetuneEngine.register(Engine), "llama_index.finetuning.types"
)
