"""Recipes: how to obtain an adapter from a training set, as values that can be compared and kept.

A recipe says what to do, not with which data; cross-fitting follows the same recipe once per fold,
and the winner's once more on everything.

Adapters part of the way from where training started to where it ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import NoReturn

import numpy as np

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.composites import (
    Gate,
    GatedAdapter,
    StackedAdapter,
    TwoSidedAdapter,
)
from llama_index_embeddings_adapted.adapters.maps import (
    LinearAdapter,
    LowRankAdapter,
    TwoLayerAdapter,
)
from llama_index_embeddings_adapted.adapters.nonparametric import (
    KernelAdapter,
    NudgeAdapter,
)
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.training.auto.cross_fitting import fit_gate
from llama_index_embeddings_adapted.training.closed_form import (
    Ridge,
    Spectrum,
    centering,
    kernel_ridge,
    memory_values,
    whitening,
)
from llama_index_embeddings_adapted.training.modules import PsdMap, TrainableAdapter, TwoSidedMap
from llama_index_embeddings_adapted.training.nudging import (
    NudgeOptions,
    listwise_nudges,
    nudge_m,
    nudge_n,
)
from llama_index_embeddings_adapted.training.options import Loss, TrainingOptions
from llama_index_embeddings_adapted.training.trainer import states


@singledispatch
def interpolated(end: Adapter, start: Adapter, share: float) -> Adapter:
    """Return the adapter that lies between two, in their weights.

    Training goes far in directions that a few hundred queries seem to ask for. Part of the way
    back, most of the gain on documents it knew is there, and most harm to others is not.

    Args:
        end: A linear map, one of low rank, a residual of two layers, or a map for each side.
        start: Of the same kind; what training started from, or any other linear map. One of low
            rank or of two layers has to be one that changes nothing.
        share: 0 is the start, 1 the end.

    Raises:
        OptionError: Adapters that cannot be mixed.

    Source:
        Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903, eq. 1.
    """
    _other(end, start)


@interpolated.register
def _interpolated_linear(end: LinearAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, LinearAdapter) or (start.shared, start.normalize) != (
        end.shared,
        end.normalize,
    ):
        _other(end, start)
    bias = None
    if start.bias is not None or end.bias is not None:
        bias = _mix(_bias(start), _bias(end), share)
    weight = _mix(start.weight, end.weight, share)
    return LinearAdapter(weight, bias, normalize=end.normalize, shared=end.shared)


@interpolated.register
def _interpolated_low_rank(end: LowRankAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, LowRankAdapter) or start.up.any():
        _other(end, start)
    return LowRankAdapter(end.down, share * end.up, _mix(start.bias, end.bias, share))


@interpolated.register
def _interpolated_two_layer(end: TwoLayerAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, TwoLayerAdapter) or start.output_weight.any():
        _other(end, start)
    if start.config() != end.config() or not end.residual:
        _other(end, start)
    return TwoLayerAdapter(
        end.hidden_weight,
        end.hidden_bias,
        share * end.output_weight,
        _mix(start.output_bias, end.output_bias, share),
        **end.config(),
    )


@interpolated.register
def _interpolated_two_sided(end: TwoSidedAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, TwoSidedAdapter):
        _other(end, start)
    return TwoSidedAdapter(
        interpolated(end.query, start.query, share),
        interpolated(end.document, start.document, share),
    )


def _other(end: Adapter, start: Adapter) -> NoReturn:
    raise OptionError(f"Expected two adapters of one kind to mix, got {start!r} and {end!r}.")


def _bias(of: LinearAdapter) -> Vectors:
    return np.zeros(of.output_dim, dtype=np.float32) if of.bias is None else of.bias


def _mix(start: Vectors, end: Vectors, share: float) -> Vectors:
    return np.asarray((1 - share) * start + share * end, dtype=np.float32)


_MOST_MAPPED = 512  # documents that compete in a step of training a shared map

Value = float | int | str


@dataclass(frozen=True)
class Recipe:
    """A method with its settings, on top of other recipes.

    Args:
        method: A key of :data:`METHODS`.
        settings: Names and values.
        on: The recipes it builds upon, in the order its method wants them.
    """

    method: str
    settings: tuple[tuple[str, Value], ...] = ()
    on: tuple[Recipe, ...] = ()

    @classmethod
    def of(cls, method: str, *on: Recipe, **settings: Value) -> Recipe:
        """Build a recipe from keyword settings."""
        return cls(method, tuple(sorted(settings.items())), on)

    def __getitem__(self, name: str) -> Value:
        """Return a setting."""
        return dict(self.settings)[name]

    def get(self, name: str, default: Value) -> Value:
        """Return a setting, or what it is where it is not named."""
        return dict(self.settings).get(name, default)

    def without(self, name: str) -> Recipe:
        """Return the same with a setting left at its default."""
        return replace(self, settings=tuple(pair for pair in self.settings if pair[0] != name))

    @property
    def adapts_documents(self) -> bool:
        """Whether an index has to be rebuilt."""
        return self.method in BOTH_SIDES or any(part.adapts_documents for part in self.on)

    def __str__(self) -> str:
        """Write it as calls: ``kernel(linear(epochs=9), temperature=0.2, weight=1)``."""
        settings = (f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                    for name, value in self.settings)  # fmt: skip
        inside = ", ".join([*map(str, self.on), *settings])
        return f"{self.method}({inside})" if inside else self.method


IDENTITY = Recipe("identity")


@dataclass(eq=False)
class Kitchen:
    """Follows recipes on one training set; what several recipes share is made once.

    Args:
        train: The training set.
        options: Of everything trained by gradients; epochs and loss come from the recipe.
        spectrum: Of the documents, if it is at hand.
        start: What the query side does before anything is learned; by default nothing.
        base: Works on the vectors of the base model, where documents here are mapped.
    """

    train: EncodedDataset
    options: TrainingOptions
    spectrum: Spectrum | None = None
    start: LinearAdapter | None = None
    base: Kitchen | None = None
    _trained: dict[Recipe, tuple[Adapter, Adapter]] = field(default_factory=dict)
    _kernels: dict[float, tuple[Vectors, Vectors]] = field(default_factory=dict)
    _nudges: dict[Recipe, NudgeAdapter] = field(default_factory=dict)
    _facing: dict[Recipe, Kitchen] = field(default_factory=dict)

    def make(self, recipe: Recipe) -> Adapter:
        """Return the adapter of a recipe.

        Raises:
            AdaptedError: The method cannot work on this training set.
        """
        return METHODS[recipe.method](self, recipe)

    @functools.cached_property
    def directions(self) -> Spectrum:
        """In which directions the documents vary."""
        return self.spectrum or Spectrum(self.train.documents)

    @functools.cached_property
    def ridge(self) -> Ridge:
        """Linear maps in closed form."""
        return Ridge(self.train)

    @functools.cached_property
    def memory_values(self) -> Vectors:
        """What a memory adds for each training query."""
        return memory_values(self.train, self.directions)

    @functools.cached_property
    def gate(self) -> Gate:
        """Tells queries about known documents from others, by vectors of the base model."""
        return self.base.gate if self.base else fit_gate(self.train, seed=self.options.seed)

    def facing(self, ground: Recipe) -> Kitchen:
        """Return the kitchen of the query side where documents are as ``ground`` maps them."""
        if ground not in self._facing:
            below = self.make(ground)
            documents = l2_normalize(below.apply(self.train.documents, "document", self.train.keys))
            mapped = replace(self.train, documents=documents)
            start, _ = sides(below)
            self._facing[ground] = Kitchen(mapped, self.options, start=start, base=self)
        return self._facing[ground]

    def nudges(self, below: Recipe, epochs: int) -> NudgeAdapter:
        """Fit offsets of documents on top of a map; what is stacked in between shares them."""
        key = Recipe.of("nudge", below, epochs=epochs)
        if key not in self._nudges:
            options = NudgeOptions(seed=self.options.seed)
            fits = listwise_nudges(self.train, epochs, options, below=self.make(below))
            *_, (_, self._nudges[key]) = fits
        return self._nudges[key]

    def kernel(self, temperature: float) -> tuple[Vectors, Vectors]:
        """Return keys and coefficients of a kernel regression to the values of a memory."""
        if temperature not in self._kernels:
            self._kernels[temperature] = kernel_ridge(
                l2_normalize(self.train.queries),
                self.memory_values,
                temperature=temperature,
                seed=self.options.seed,
            )
        return self._kernels[temperature]

    def train_map(
        self, recipe: Recipe, start: Callable[[], Adapter | TrainableAdapter], loss: Loss
    ) -> Adapter:
        """Train a map for as many epochs as the recipe says, and go its share of the way there."""
        whole = recipe.without("share")
        if whole not in self._trained:
            self._trained[whole] = self._train(whole, start(), loss)
        begun, ended = self._trained[whole]
        share = float(recipe.get("share", 1.0))
        return ended if share == 1.0 else interpolated(ended, begun, share)

    def _train(
        self, recipe: Recipe, start: Adapter | TrainableAdapter, loss: Loss
    ) -> tuple[Adapter, Adapter]:
        """Return the map where training started and where it ended."""
        begun = start.export() if isinstance(start, TrainableAdapter) else start
        options = replace(self.options, loss=loss, epochs=int(recipe["epochs"]), decay=True)
        if loss == "corpus":  # a map that is to memorise is not held to the base model
            options = replace(options, anchor=0.0)
        if recipe.adapts_documents:  # every step maps the documents too
            most = min(options.max_candidates, _MOST_MAPPED)
            options = replace(options, max_candidates=most, anchor_documents=_MOST_MAPPED // 4)
        *_, (_, export) = states(self.train, start, options)
        return begun, export()


def sides(adapter: Adapter) -> tuple[LinearAdapter, LinearAdapter]:
    """Return what a map of both sides does to queries, and what to documents.

    Raises:
        OptionError: An adapter of another kind.
    """
    if isinstance(adapter, TwoSidedAdapter):
        query, document = adapter.query, adapter.document
        if isinstance(query, LinearAdapter) and isinstance(document, LinearAdapter):
            return query, document
    if isinstance(adapter, LinearAdapter) and adapter.shared:
        plain = LinearAdapter(adapter.weight, adapter.bias)
        return plain, plain
    raise OptionError(f"Expected linear maps of both sides, got {adapter!r}.")


Method = Callable[[Kitchen, Recipe], Adapter]


def _identity(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return kitchen.start or LinearAdapter.identity(kitchen.train.queries.shape[1])


def _whitening(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return whitening(kitchen.directions, power=float(recipe["power"]))


def _centering(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return centering(kitchen.train.documents)


def _ridge(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return kitchen.ridge(float(recipe["strength"]))


def _linear(loss: Loss) -> Method:
    def make(kitchen: Kitchen, recipe: Recipe) -> Adapter:
        return kitchen.train_map(
            recipe, lambda: kitchen.start or whitening(kitchen.directions), loss
        )

    return make


def _shared(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    # Half the power on each side gives the scores of the whole power on one.
    def start() -> Adapter:
        return whitening(kitchen.directions, power=0.125, shared=True)

    return kitchen.train_map(recipe, start, "queried")


def _two_sided(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    def start() -> TrainableAdapter:
        return TwoSidedMap(whitening(kitchen.directions, power=0.125))

    return kitchen.train_map(recipe, start, "queried")


def _facing(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    ground, above = recipe.on
    _, document = sides(kitchen.make(ground))
    return TwoSidedAdapter(kitchen.facing(ground).make(above), document)


def _psd(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    def start() -> TrainableAdapter:
        return PsdMap(whitening(kitchen.directions, power=0.125))

    return kitchen.train_map(recipe, start, "queried")


def _low_rank(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    dim, seed = kitchen.train.queries.shape[1], kitchen.options.seed
    return kitchen.train_map(recipe, lambda: LowRankAdapter.identity(dim, seed=seed), "queried")


def _two_layer(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    dim, seed = kitchen.train.queries.shape[1], kitchen.options.seed
    return kitchen.train_map(recipe, lambda: TwoLayerAdapter.identity(dim, seed=seed), "queried")


def _kernel(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    temperature = float(recipe["temperature"])
    return KernelAdapter(
        kitchen.make(recipe.on[0]),
        *kitchen.kernel(temperature),
        weight=float(recipe["weight"]),
        temperature=temperature,
    )


def _mean(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    first, second = (kitchen.make(part) for part in recipe.on)
    return interpolated(second, first, 0.5)


def _gate(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    general, special = (kitchen.make(part) for part in recipe.on)
    return GatedAdapter(general, special, kitchen.gate.with_odds(float(recipe["odds"])))


def _nudge(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    # Fitted below the memory, which answers training queries by heart and leaves nothing to fix.
    below, under = recipe.on
    nudges = kitchen.nudges(under, int(recipe["epochs"]))
    return StackedAdapter(kitchen.make(below), nudges.scaled(float(recipe.get("share", 1.0))))


def _nudge_m(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return nudge_m(kitchen.train, float(recipe["distance"]))


def _nudge_n(kitchen: Kitchen, recipe: Recipe) -> Adapter:
    return nudge_n(kitchen.train, float(recipe["distance"]))


METHODS: dict[str, Method] = {
    "identity": _identity,
    "centering": _centering,
    "whitening": _whitening,
    "ridge": _ridge,
    "linear": _linear("queried"),
    "mnr": _linear("mnr"),
    "corpus": _linear("corpus"),
    "psd": _psd,
    "low_rank": _low_rank,
    "two_layer": _two_layer,
    "mean": _mean,
    "kernel": _kernel,
    "gate": _gate,
    "shared": _shared,
    "two_sided": _two_sided,
    "facing": _facing,
    "nudge_m": _nudge_m,
    "nudge_n": _nudge_n,
    "nudge": _nudge,
}
BOTH_SIDES = frozenset({"shared", "two_sided", "facing", "nudge_m", "nudge_n", "nudge"})
TRAINED = ("linear", "mnr", "corpus", "psd", "low_rank", "two_layer", "shared", "two_sided")
