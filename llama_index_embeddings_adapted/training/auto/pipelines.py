"""Pipeline specs: how to obtain an adapter from a training set, as values to compare and keep.

A spec says what to do, not with which data: cross-fitting fits the same one on every fold, and the
winner once more on everything.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from scipy.special import expit

from ...adapters.base import Adapter
from ...adapters.composites import Gate, GatedAdapter, StackedAdapter, TwoSidedAdapter
from ...adapters.maps import KernelAdapter, LinearAdapter, NudgeAdapter, gaussian
from ...core.arrays import Vectors, l2_normalize
from ...core.encoded import EncodedDataset
from .. import closed_form
from ..closed_form import Spectrum, answer_directions, kernel_ridge
from ..options import Loss, TrainingOptions
from .cross_fitting import Mixture, QueryBasis, fit_gate, mixed
from .descent import descend, listwise_nudges

ALPHAS = (0.5, 0.75, 1.0)  # parts of the way from where training starts to where it ends
_MOST_MAPPED = 512  # documents that compete in a step of training a map of both sides
_NUDGE_EPOCHS = 3  # 6 and 12 gave the same
Made = TypeVar("Made")


@dataclass(frozen=True)
class PipelineSpec(ABC):
    """A method; its settings are its fields, the specs that it builds upon first."""

    method: ClassVar[str]
    moves_documents: ClassVar[bool] = False
    over: ClassVar[str] = ""  #: The setting that a kernel or a gate lies over.

    @abstractmethod
    def fit(self, fitter: PipelineFitter) -> Adapter:
        """Return the adapter on the training set of a fitter, or raise an AdaptedError."""

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        """Return what becomes of the queries of a fold, where documents stay."""
        return view.vector(self, lambda: self.fit(fitter).apply(view.queries))

    @property
    def parts(self) -> tuple[PipelineSpec, ...]:
        """The specs it builds upon."""
        return tuple(part for part in vars(self).values() if isinstance(part, PipelineSpec))

    @property
    def adapts_documents(self) -> bool:
        """Whether an index has to be rebuilt."""
        return self.moves_documents or any(part.adapts_documents for part in self.parts)

    @property
    def lowest_map(self) -> PipelineSpec:
        """The map below kernels and gates."""
        return getattr(self, self.over).lowest_map if self.over else self

    @property
    def last(self) -> PipelineSpec:
        """What is done to queries last."""
        return getattr(self, "query_side", self)

    def __str__(self) -> str:
        """Write it as calls: ``kernel(linear(epochs=9), temperature=0.2, weight=1)``."""
        inside = [str(part) for part in self.parts]
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not isinstance(value, PipelineSpec) and value != setting.default:
                inside.append(f"{setting.name}={value:g}")
        return f"{self.method}({', '.join(inside)})" if inside else self.method


@dataclass(frozen=True)
class IdentitySpec(PipelineSpec):
    """Changes nothing; in front of mapped documents, what the query side starts from."""

    method = "identity"

    def fit(self, fitter: PipelineFitter) -> Adapter:
        return fitter.start or LinearAdapter.identity(fitter.train.queries.shape[1])

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        start = fitter.start
        return view.vector(self, lambda: view.queries if start is None else view.mapped(start))


@dataclass(frozen=True)
class WhiteningSpec(PipelineSpec):
    """See :func:`whitening`."""

    method = "whitening"
    power: float

    def fit(self, fitter: PipelineFitter) -> LinearAdapter:
        return closed_form.whitening(fitter.spectrum, power=self.power)

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        return view.vector(self, lambda: view.mapped(self.fit(fitter)))


@dataclass(frozen=True)
class RidgeSpec(PipelineSpec):
    """See :func:`ridge`."""

    method = "ridge"
    strength: float

    def fit(self, fitter: PipelineFitter) -> Adapter:
        return closed_form.ridge(fitter.train, self.strength)


@dataclass(frozen=True)
class TrainedSpec(PipelineSpec):
    """A map trained by gradients, see :func:`descend`.

    Args:
        alpha: How far to go from the weights where training starts, 0, to those where it ends, 1.
            Training goes far in directions that a few hundred queries seem to ask for. Part of the
            way, most of the gain on known documents is there, and most harm to others is not.

    Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (WiSE-FT),
    arXiv:2109.01903, eq. 1.
    """

    loss: ClassVar[Loss] = "queried"
    power: ClassVar[float] = 0.25  # of the whitening where training starts
    alpha: float = 1.0

    def fit(self, fitter: PipelineFitter) -> Adapter:
        initial, trained = fitter.trained(replace(self, alpha=1.0))
        if self.alpha == 1.0:
            return trained
        start, end = initial.arrays(), trained.arrays()
        part = {name: (1 - self.alpha) * start[name] + self.alpha * end[name] for name in end}
        return type(trained).build(part, trained.config())

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        whole = replace(self, alpha=1.0)
        _, trained = fitter.trained(whole)
        end = view.vector(whole, lambda: view.mapped(cast(LinearAdapter, trained)))
        start = IDENTITY if fitter.start else WhiteningSpec(self.power)
        return mixed([(1.0 - self.alpha, start.mixture(view, fitter)), (self.alpha, end)])


class LinearSpec(TrainedSpec):
    """The documents of all training queries compete."""

    method = "linear"


class MnrSpec(TrainedSpec):
    """The documents of a batch compete."""

    method, loss = "mnr", "mnr"


class CorpusSpec(TrainedSpec):
    """All documents compete: it memorises."""

    method, loss = "corpus", "corpus"


class TwoSidedSpec(TrainedSpec):
    """A map for each side."""

    method, moves_documents = "two_sided", True
    power = 0.125  # on each side, which gives the scores of the whole on one


@dataclass(frozen=True)
class KernelSpec(PipelineSpec):
    """See :class:`KernelAdapter`."""

    method, over = "kernel", "base"
    base: PipelineSpec
    temperature: float
    weight: float

    def fit(self, fitter: PipelineFitter) -> Adapter:
        base, learnt = fitter.fit(self.base), fitter.kernel(self.temperature)
        return KernelAdapter(base, *learnt, weight=self.weight, temperature=self.temperature)

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        general = view.unit(self.base.mixture(view, fitter))
        keys, coefficients = fitter.kernel(self.temperature)

        def added() -> Vectors:
            return gaussian(l2_normalize(view.queries), keys, self.temperature) @ coefficients

        special = view.vector(("kernel", self.temperature), added, mixed([(0.5, general)]))
        return mixed([(1.0, general), (self.weight, special)])


@dataclass(frozen=True)
class GateSpec(PipelineSpec):
    """See :class:`GatedAdapter`."""

    method, over = "gate", "general"
    general: PipelineSpec
    special: PipelineSpec
    prior_log_odds: float

    def fit(self, fitter: PipelineFitter) -> Adapter:
        gate = fitter.gate.with_odds(self.prior_log_odds)
        return GatedAdapter(fitter.fit(self.general), fitter.fit(self.special), gate)

    def mixture(self, view: QueryBasis, fitter: PipelineFitter) -> Mixture:
        odds = fitter.once("odds", view, lambda: fitter.gate.log_odds(l2_normalize(view.queries)))
        known = expit(odds + self.prior_log_odds)
        general, special = (
            view.unit(end.mixture(view, fitter)) for end in (self.general, self.special)
        )
        return mixed([(1.0 - known, general), (known, special)])


@dataclass(frozen=True)
class QueryOnMappedSpec(PipelineSpec):
    """Documents as one side of a map of both leaves them; queries trained in front of these.

    What is done to queries starts from the query side of that map.
    """

    method, moves_documents = "query_on_mapped", True
    document_map: TwoSidedSpec
    query_side: PipelineSpec

    @property
    def lowest_map(self) -> PipelineSpec:
        return QueryOnMappedSpec(self.document_map, self.query_side.lowest_map)

    def fit(self, fitter: PipelineFitter) -> Adapter:
        query = fitter.on_mapped(self.document_map).fit(self.query_side)
        below = cast(TwoSidedAdapter, fitter.fit(self.document_map))
        return TwoSidedAdapter(query, below.document)


@dataclass(frozen=True)
class NudgeSpec(PipelineSpec):
    """Offsets of documents on top of a base.

    They are fitted on the lowest map of the base: a kernel answers training queries from memory
    and leaves nothing to fix.
    """

    method, moves_documents = "nudge", True
    base: PipelineSpec
    alpha: float = 1.0

    def fit(self, fitter: PipelineFitter) -> Adapter:
        nudges = fitter.nudges(self.base.lowest_map)
        return StackedAdapter(fitter.fit(self.base), nudges.scaled(self.alpha))


@dataclass(frozen=True)
class NudgeNSpec(PipelineSpec):
    """See :func:`nudge_n`."""

    method, moves_documents = "nudge_n", True
    distance: float

    def fit(self, fitter: PipelineFitter) -> Adapter:
        return closed_form.nudge_n(fitter.train, self.distance)


IDENTITY = IdentitySpec()
SPECS: dict[str, type[PipelineSpec]] = {
    spec.method: spec
    for spec in (
        WhiteningSpec, RidgeSpec, LinearSpec, MnrSpec, CorpusSpec, KernelSpec, GateSpec,
        TwoSidedSpec, QueryOnMappedSpec, NudgeNSpec, NudgeSpec,
    )
}  # fmt: skip
"""The methods by name."""


#: Of fitting and scoring a spec in a fold: measured on five sets. Of one training, the first part
#: of the way has all the work.
_WORK = {"mnr": 3.0, "linear": 3.0, "corpus": 3.0, "two_sided": 6.0, "nudge": 3.0}


def work(spec: PipelineSpec, queries: int) -> float:
    """Return how much work a spec is in a fold of so many queries, after what it builds upon."""
    last = spec.last
    if last.method == "kernel":
        return 0.06 + 0.00013 * queries
    again = getattr(last, "alpha", ALPHAS[0]) != ALPHAS[0]
    return 0.0 if again else _WORK.get(last.method, 0.06)


@dataclass(eq=False)
class PipelineFitter:
    """Fits specs on one training set; what several specs share is fitted once.

    ``spectrum`` is that of the documents. ``start`` is what the query side does before anything is
    learned, if anything; ``base`` then works on the vectors of the base model. Trained maps are
    kept in the folder ``kept``, so that a run that was killed goes on with them. ``longer`` and
    ``finer`` are those of :func:`descend`.
    """

    train: EncodedDataset
    options: TrainingOptions
    spectrum: Spectrum = None  # type: ignore[assignment]
    start: LinearAdapter | None = None
    base: PipelineFitter | None = None
    kept: Path | None = None
    longer: float = 1.0
    finer: float = 1.0
    _made: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spectrum = self.spectrum or Spectrum(self.train.documents)

    def once(self, what: str, of: Any, make: Callable[[], Made]) -> Made:
        """Return what was made before, or make it."""
        if (what, of) not in self._made:
            self._made[what, of] = make()
        return cast(Made, self._made[what, of])

    def fit(self, spec: PipelineSpec) -> Adapter:
        """Return the adapter of a spec, or raise an AdaptedError."""
        return spec.fit(self)

    def fit_whole(self, spec: PipelineSpec, directions: Vectors) -> Adapter:
        """Return the same for whole vectors, where coordinates along some directions are fitted."""
        if spec == IDENTITY:
            return LinearAdapter.identity(len(directions))
        return closed_form.widened(spec.fit(self), directions)

    @functools.cached_property
    def gate(self) -> Gate:
        """Tells queries about known documents from others, by vectors of the base model."""
        return self.base.gate if self.base else fit_gate(self.train, seed=self.options.seed)

    def kernel(self, temperature: float) -> tuple[Vectors, Vectors]:
        """Return keys and coefficients of a kernel regression from queries to their answers."""

        def fit() -> tuple[Vectors, Vectors]:
            answers = self.once("answers", "", lambda: answer_directions(self.train, self.spectrum))
            queries, seed = l2_normalize(self.train.queries), self.options.seed
            return kernel_ridge(queries, answers, temperature=temperature, seed=seed)

        return self.once("kernel", temperature, fit)

    def trained(self, spec: TrainedSpec) -> tuple[Adapter, Adapter]:
        """Return a map where training starts and where it ends."""
        begin = functools.partial(closed_form.whitening, self.spectrum, power=spec.power)
        start = self.start or self.once("start", spec.power, begin)
        initial = TwoSidedAdapter(start, start) if spec.adapts_documents else start
        return initial, self.once("map", spec, lambda: self._end(spec, start))

    def _end(self, spec: TrainedSpec, start: LinearAdapter) -> Adapter:
        """Train a map, or read what a run before this one trained."""
        place = None if self.kept is None else self.kept / str(spec)
        if place is not None and place.exists():
            return Adapter.load(place)
        both, most = spec.adapts_documents, self.options.max_candidates
        # Every step of a map of both sides maps the documents too.
        most = min(most, _MOST_MAPPED) if both else most
        options = replace(self.options, loss=spec.loss, max_candidates=most)
        moment = None if both else self.spectrum.moment
        how: Any = {"both": both, "moment": moment, "longer": self.longer, "finer": self.finer}
        end = descend(self.train, start, options, **how)
        if place is not None:
            end.save(place)
        return end

    def on_mapped(self, document_map: TwoSidedSpec) -> PipelineFitter:
        """Return the fitter of the query side where documents are as a map leaves them."""

        def fitter() -> PipelineFitter:
            below = cast(TwoSidedAdapter, self.fit(document_map))
            moved = below.apply(self.train.documents, "document", self.train.keys)
            return PipelineFitter(
                replace(self.train, documents=l2_normalize(moved)),
                self.options,
                start=cast(LinearAdapter, below.query),
                base=self,
                kept=self.kept and self.kept / f"on {document_map}",
                longer=self.longer,
                finer=self.finer,
            )

        return self.once("fitter", document_map, fitter)

    def nudges(self, below: PipelineSpec) -> NudgeAdapter:
        """Fit offsets of documents on top of a map; what is stacked in between shares them."""

        def fit() -> NudgeAdapter:
            map_, seed = self.fit(below), self.options.seed
            return listwise_nudges(self.train, _NUDGE_EPOCHS, below=map_, seed=seed)

        return self.once("nudges", below, fit)
