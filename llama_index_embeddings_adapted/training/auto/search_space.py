"""Which pipelines are tried: those of the methods asked for, or those that ``"auto"`` builds up."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence

from ...adapters.base import Adapter
from ...errors import OptionError, nearest
from ..options import TrainingOptions
from . import pipelines
from .pipelines import ALPHAS, IDENTITY, SPECS, KernelSpec, PipelineSpec, TrainedSpec, TwoSidedSpec
from .selection import Proposer, SearchState

_GONE = {
    "memory": '"kernel"',
    "psd": '"linear"',
    "mean": '"gate"',
    "shared": '"two_sided"',
    "centering": '"whitening"',
    "nudge_m": '"nudge_n"',
    "low_rank": 'method="linear" with adapter_model=LowRankAdapter.identity(dim)',
    "two_layer": 'method="linear" with adapter_model=TwoLayerAdapter.identity(dim)',
}
_RENAMED = {"facing": "query_on_mapped"}
_MEMORISING: list[PipelineSpec] = [pipelines.CorpusSpec(alpha) for alpha in ALPHAS]

#: Takes the query side that memorises best so far, and all that is known, and proposes others.
QuerySides = Callable[[PipelineSpec, SearchState], list[PipelineSpec]]


def check_methods(method: str | Sequence[str], adapts: str) -> list[str]:
    """Return the names of the methods that compete: ``"auto"``, keys of :data:`SPECS`.

    Raises:
        OptionError: An unknown method, or one that moves documents with ``adapts="query"``.
    """
    names = [method] if isinstance(method, str) else list(method)
    if not names:
        raise OptionError('method: expected at least one, such as "auto", got none.')
    for at, name in enumerate(names):
        if name in _GONE:
            raise OptionError(f"method: {name!r} is no longer there; use {_GONE[name]}.")
        if name in _RENAMED:
            names[at] = _RENAMED[name]
            said = f'method="{name}" is now called "{names[at]}".'
            warnings.warn(said, DeprecationWarning, stacklevel=3)
        elif name not in ("auto", *SPECS):
            known = ", ".join(["auto", *SPECS])
            hint = nearest(name, ["auto", *SPECS])
            raise OptionError(f"method: expected one of {known}, or several, got {name!r}.{hint}")
        if adapts == "query" and name != "auto" and SPECS[names[at]].moves_documents:
            raise OptionError(f'method: {names[at]!r} moves documents, which needs adapts="both".')
    return names


def check_method(options: TrainingOptions, start: Adapter | None = None) -> None:
    """Refuse an unknown method, and an adapter to start from where none is taken."""
    check_methods(options.method, options.adapts)
    if options.method == "linear" and options.adapts == "both":
        warnings.warn('adapts="both": method="linear" moves queries only.', stacklevel=4)
    if start is not None and options.method != "linear":
        raise OptionError(
            f'adapter_model: method="{options.method}" starts where it sees fit; use '
            'method="linear" to continue from an adapter.'
        )


def search_space(methods: Sequence[str], adapts: str) -> list[Proposer]:
    """Return what proposes specs, in turn; the methods are those of :func:`check_methods`."""
    named = [spec for name in methods if name != "auto" for spec in alone(name)]
    space: list[Proposer] = [lambda _: named] if named else []
    if "auto" not in methods:
        return space
    space += [functools.partial(_maps, adapts), functools.partial(_kernels, adapts), _gates]
    if adapts == "both":
        sides: list[QuerySides] = [
            lambda *_: _MEMORISING,
            _kernels_there,
            lambda memorising, _: _gates_between(IDENTITY, memorising),
        ]
        space += [*(functools.partial(_on_mapped, each) for each in sides), _nudges]
    return space


def planned(methods: Sequence[str], adapts: str, queries: int) -> float:
    """Return how much :func:`work` a search is in a fold, before it is known what is proposed."""
    named = [spec for name in methods if name != "auto" for spec in alone(name)]
    kernel = pipelines.work(KernelSpec(IDENTITY, 1.0, 1.0), queries)
    auto = {"query": 9.9 + 6 * kernel, "both": 25.3 + 15 * kernel}[adapts]
    return sum(pipelines.work(spec, queries) for spec in named) + ("auto" in methods) * auto


def alone(method: str) -> list[PipelineSpec]:
    """Return the specs to choose from where one method is asked for by name, simplest first."""
    spec = SPECS[method]
    if issubclass(spec, TrainedSpec):
        return [spec(alpha) for alpha in ALPHAS]
    specs: dict[str, list[PipelineSpec]] = {
        "whitening": [pipelines.WhiteningSpec(power) for power in (0.15, 0.25, 0.4)],
        "ridge": [pipelines.RidgeSpec(strength) for strength in (30.0, 10.0, 3.0, 1.0)],
        "kernel": _kernels_on(IDENTITY),
        "gate": _gates_between(pipelines.LinearSpec(), pipelines.CorpusSpec()),
        "query_on_mapped": [pipelines.QueryOnMappedSpec(TwoSidedSpec(), s) for s in _MEMORISING],
        "nudge_n": [pipelines.NudgeNSpec(distance) for distance in (0.05, 0.1, 0.2, 0.4)],
        "nudge": _nudges_on(IDENTITY),
    }
    return specs[method]


def _maps(adapts: str, state: SearchState) -> list[PipelineSpec]:
    """Maps that treat all queries, or all vectors, alike; those that move least first."""
    kinds: list[type[TrainedSpec]] = [pipelines.MnrSpec, pipelines.LinearSpec, pipelines.CorpusSpec]
    if adapts == "both":
        kinds += [TwoSidedSpec]
    return [pipelines.WhiteningSpec(0.25), *[kind(alpha) for alpha in ALPHAS for kind in kinds]]


def _kernels(adapts: str, state: SearchState) -> list[PipelineSpec]:
    """Kernels on the map that generalises best, and on the one that memorises most usefully."""
    maps = _query_maps(state)
    bases = dict.fromkeys([state.most(maps, "new"), state.most(maps, "known")])
    return [kernel for base in bases for kernel in _kernels_on(base, adapts)]


def _gates(state: SearchState) -> list[PipelineSpec]:
    """Gates from what generalises best to what gains most on known documents, or in the mixture."""
    staying = [spec for spec in state.gains if not spec.adapts_documents]
    ends = state.most(staying, "known"), state.most(staying, "expected")
    general = state.most(_query_maps(state), "new")
    return [gate for end in ends for gate in _gates_between(general, end)]


def _on_mapped(sides: QuerySides, state: SearchState) -> list[PipelineSpec]:
    """Query sides in front of documents as the best map of both sides has them, if one gains."""
    mapped = state.best(spec for spec in state.gains if isinstance(spec, TwoSidedSpec))
    if not isinstance(mapped, TwoSidedSpec):
        return []
    there = [s for s in state.gains if getattr(s, "document_map", None) == mapped]
    memorising = state.most(there, "known").last  # the identity if none gains
    return [pipelines.QueryOnMappedSpec(mapped, side) for side in sides(memorising, state)]


def _kernels_there(memorising: PipelineSpec, state: SearchState) -> list[PipelineSpec]:
    """Kernels that were best in front of documents that nothing had moved, now where it has."""
    kernels = [spec for spec in state.gains if isinstance(spec, KernelSpec)]
    best = [state.best(kernels), state.most(kernels, "new"), state.most(kernels, "known")]
    settings = dict.fromkeys((k.temperature, k.weight) for k in best if isinstance(k, KernelSpec))
    bases = dict.fromkeys([IDENTITY, memorising])
    return [KernelSpec(base, *kept) for base in bases for kept in settings]


def _nudges(state: SearchState) -> list[PipelineSpec]:
    """Nudges on what clearly gains on both kinds, on the best, of which new documents may have
    nothing left to lose, and on the kernel kindest to them; what moves documents once comes first.
    """
    kernels = [spec for spec in state.gains if isinstance(spec.last, KernelSpec)]
    clear = [spec for spec, gains in state.gains.items() if gains.clear]
    bases = [state.best(clear or state.gains), state.best(state.gains), state.most(kernels, "new")]
    in_order = sorted(dict.fromkeys(bases), key=lambda spec: spec.adapts_documents)
    return [nudge for base in in_order for nudge in _nudges_on(base)]


def _query_maps(state: SearchState) -> list[PipelineSpec]:
    return [spec for spec in state.gains if not spec.adapts_documents and not spec.parts]


def _kernels_on(base: PipelineSpec, adapts: str = "query") -> list[PipelineSpec]:
    between = [(0.2, 1.0), (0.2, 2.0)] * (adapts == "both")  # elsewhere they gain nothing
    shapes = [(0.1, 0.5), (0.1, 1.0), *between, (0.4, 2.0), (0.4, 4.0)]  # temperature, weight
    return [KernelSpec(base, *shape) for shape in shapes]


def _gates_between(general: PipelineSpec, special: PipelineSpec) -> list[PipelineSpec]:
    if general == special:
        return []
    log_odds = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0)
    return [pipelines.GateSpec(general, special, each) for each in log_odds]


def _nudges_on(base: PipelineSpec) -> list[PipelineSpec]:
    return [pipelines.NudgeSpec(base, alpha) for alpha in ALPHAS]
