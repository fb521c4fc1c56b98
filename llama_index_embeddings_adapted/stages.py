"""Which recipes are tried: those of one method, or the stages of ``method="auto"``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.recipes import IDENTITY, METHODS, TRAINED, Recipe, Value
from llama_index_embeddings_adapted.selection import Candidates, Stage

_STEPS = 200  # of training, at a rate that falls to zero; more gain little
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from where training starts to where it ends
_QUERY_MAPS = ("mnr", "linear", "corpus")
_BOTH_MAPS = ("shared", "two_sided")
_LAYERS = ("memory", "kernel", "gate")  # on top of maps
_NUDGE_EPOCHS = 3  # 6 and 12 gave the same

of = Recipe.of


def epochs_for(queries: int, batch_size: int) -> int:
    """Return for how many epochs maps are trained: about 200 steps.

    In steps, because a map moves as far in 200 steps on 500 queries as on 50,000; so the cost of a
    fit hardly depends on their number.
    """
    return max(1, round(_STEPS * batch_size / max(1, queries)))


def stages(method: str | Sequence[str], adapts: str, epochs: int) -> list[Stage]:
    """Return the stages of a method, or of several that compete.

    Args:
        method: ``"auto"``, a key of :data:`METHODS`, or several of these.
        adapts: ``"query"`` leaves documents alone; ``"both"`` may move them.
        epochs: For which maps are trained.

    Raises:
        OptionError: An unknown method, or one that moves documents with ``adapts="query"``.
    """
    methods = [method] if isinstance(method, str) else list(method)
    single = [recipe for name in methods for recipe in _checked(name, adapts, epochs)]
    found: list[Stage] = [lambda _: single] if single else []
    if "auto" not in methods:
        return found
    maps = functools.partial(_maps, epochs, adapts)
    query_side: list[Stage] = [*found, maps, _kernels, _gates]
    if adapts == "query":
        return query_side
    facing = functools.partial(_facing, epochs)
    return [*query_side, facing, _facing_kernels, _facing_gates, _nudges]


def _checked(method: str, adapts: str, epochs: int) -> list[Recipe]:
    """Return the recipes of one method by name; none of ``"auto"``, which has stages."""
    if method == "auto":
        return []
    recipes = list(alone(method, epochs))
    if not recipes:
        known = ", ".join(["auto", *(name for name in METHODS if name != "identity")])
        raise OptionError(f"method: expected one of {known}, or several, got {method!r}.")
    if adapts == "query" and any(recipe.adapts_documents for recipe in recipes):
        raise OptionError(f'method: {method!r} moves documents, which needs adapts="both".')
    return recipes


def alone(method: str, epochs: int) -> Iterator[Recipe]:
    """Yield the recipes to choose from where one method is asked for by name, simplest first."""
    if method in TRAINED:
        yield from (_trained(method, epochs, share) for share in _SHARES)
    elif method == "centering":
        yield of(method)
    elif method == "whitening":
        yield from (of(method, power=power) for power in (0.15, 0.25, 0.4))
    elif method == "ridge":
        yield from (of(method, strength=strength) for strength in (30.0, 10.0, 3.0, 1.0))
    elif method in ("nudge_m", "nudge_n"):
        yield from (of(method, distance=distance) for distance in (0.05, 0.1, 0.2, 0.4))
    elif method == "mean":
        yield _mean(epochs)
    elif method == "memory":
        yield from _memories_on(IDENTITY)
    elif method == "kernel":
        yield from _kernels_on(IDENTITY)
    elif method == "gate":
        yield from _gates_between(_trained("linear", epochs), _trained("corpus", epochs))
    elif method == "nudge":
        yield from _nudges_on(IDENTITY, IDENTITY)
    elif method == "facing":
        ground = _trained("two_sided", epochs)
        yield from (of(method, ground, _trained("corpus", epochs, share)) for share in _SHARES)


def _trained(method: str, epochs: int, share: float = 1.0) -> Recipe:
    return of(method, epochs=epochs, **_share(share))


def _share(share: float) -> dict[str, Value]:
    return {} if share == 1.0 else {"share": share}


def _mean(epochs: int, share: float = 1.0) -> Recipe:
    """Half of the map that generalises and half of the one that learns by heart."""
    return of("mean", *(_trained(method, epochs, share) for method in ("linear", "corpus")))


def _maps(epochs: int, adapts: str, found: Candidates) -> Iterator[Recipe]:
    """Maps that treat all queries, or all vectors, alike; those that move least first."""
    yield of("whitening", power=0.25)
    for share in _SHARES:
        yield from (_trained(method, epochs, share) for method in _QUERY_MAPS)
        yield _mean(epochs, share)
        if adapts == "both":
            yield from (_trained(method, epochs, share) for method in _BOTH_MAPS)


def _kernels(found: Candidates) -> Iterator[Recipe]:
    """Kernels on top of the map that generalises best, and of the one that gains most by heart."""
    maps = _query_maps(found)
    for recipe in dict.fromkeys([found.best_new(maps), found.best_known(maps)]):
        yield from _kernels_on(recipe)


def _gates(found: Candidates) -> Iterator[Recipe]:
    """Gates from what does no harm to what gains most on known documents, or in the mixture."""
    leaving = [r for r in found.recipes if not r.adapts_documents]
    by_heart, balanced = found.best_known(leaving), found.best_expected(leaving)
    general = found.best_new(_query_maps(found))
    for ends in dict.fromkeys([(general, by_heart), (general, balanced), (IDENTITY, by_heart)]):
        yield from _gates_between(*ends)


def _facing(epochs: int, found: Candidates) -> Iterator[Recipe]:
    """Maps that learn by heart, of queries to documents as the best map of both sides has them."""
    ground = _ground(found)
    if ground != IDENTITY:
        for share in _SHARES:
            yield of("facing", ground, _trained("corpus", epochs, share))


def _facing_kernels(found: Candidates) -> Iterator[Recipe]:
    """Kernels that were best in front of documents that nothing had moved, now where it has."""
    ground = _ground(found)
    if ground == IDENTITY:
        return
    kernels = [r for r in found.recipes if r.method == "kernel"]
    best = (choose(kernels) for choose in (found.highest, found.best_new, found.best_known))
    settings = dict.fromkeys(r.settings for r in best if r.method == "kernel")
    for special in dict.fromkeys([IDENTITY, _above(ground, found)]):
        yield from (of("facing", ground, Recipe("kernel", kept, (special,))) for kept in settings)


def _facing_gates(found: Candidates) -> Iterator[Recipe]:
    ground = _ground(found)
    if ground != IDENTITY:
        gates = _gates_between(IDENTITY, _above(ground, found))
        yield from (of("facing", ground, gate) for gate in gates)


def _nudges(found: Candidates) -> Iterator[Recipe]:
    """Nudges on the best so far, the best by heart, and the kernel kindest to new documents.

    They are fitted on the map below each. What moves documents once comes before what moves them
    twice, as simpler.
    """
    kernels = [r for r in found.recipes if _top(r).method == "kernel"]
    tops = [found.highest(found.recipes), found.best_new(kernels), found.best_known(found.recipes)]
    for recipe in sorted(dict.fromkeys(tops), key=lambda r: r.adapts_documents):
        yield from _nudges_on(recipe, _lowest(recipe))


def _top(recipe: Recipe) -> Recipe:
    """Return what is done to queries last."""
    return recipe.on[1] if recipe.method == "facing" else recipe


def _lowest(recipe: Recipe) -> Recipe:
    """Return the map below kernels, memories and gates."""
    if recipe.method == "facing":
        ground, above = recipe.on
        return of("facing", ground, _lowest(above))
    return _lowest(recipe.on[0]) if recipe.method in _LAYERS else recipe


def _ground(found: Candidates) -> Recipe:
    return found.highest(_both_maps(found))


def _above(ground: Recipe, found: Candidates) -> Recipe:
    """Return what faces the ground and gains most on known documents; the identity if nothing."""
    facing = {r: r.on[1] for r in found.recipes if r.method == "facing" and r.on[0] == ground}
    return facing.get(found.best_known(list(facing)), IDENTITY)


def _both_maps(found: Candidates) -> list[Recipe]:
    return [r for r in found.recipes if r.method in _BOTH_MAPS]


def _query_maps(found: Candidates) -> list[Recipe]:
    return [r for r in found.recipes if not r.adapts_documents and (not r.on or r.method == "mean")]


def _memories_on(recipe: Recipe) -> Iterator[Recipe]:
    for weight, temperature in ((0.5, 0.1), (1.0, 0.1), (2.0, 0.1), (0.5, 0.2), (1.0, 0.2)):
        yield of("memory", recipe, weight=weight, temperature=temperature)


def _kernels_on(recipe: Recipe) -> Iterator[Recipe]:
    for temperature, weights in {0.1: (0.5, 1.0), 0.2: (1.0, 2.0), 0.4: (2.0, 4.0)}.items():
        for weight in weights:
            yield of("kernel", recipe, weight=weight, temperature=temperature)


def _gates_between(general: Recipe, special: Recipe) -> Iterator[Recipe]:
    if general != special:
        for odds in (-4.0, -2.0, 0.0, 2.0):
            yield of("gate", general, special, odds=odds)


def _nudges_on(recipe: Recipe, under: Recipe) -> Iterator[Recipe]:
    for share in _SHARES:
        yield of("nudge", recipe, under, epochs=_NUDGE_EPOCHS, **_share(share))
