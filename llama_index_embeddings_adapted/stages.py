"""Which recipes are tried: those of one method, or the stages of ``method="auto"``."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.recipes import IDENTITY, METHODS, TRAINED, Recipe
from llama_index_embeddings_adapted.selection import Candidates, Stage

_STEPS = (100, 300, 900)  # of training, at which maps are compared
_QUERY_MAPS = ("linear", "corpus")
_BOTH_MAPS = ("shared", "two_sided")
_NUDGE_EPOCHS = 3  # 6 and 12 gave the same
_FIRST = 2  # numbers of epochs that every map is tried at; more where that pays

of = Recipe.of


def checkpoints(queries: int, batch_size: int) -> tuple[int, ...]:
    """Return the epochs at which trained maps are compared: about 100, 300 and 900 steps.

    In steps, because a map moves as far in 300 steps on 500 queries as on 50,000; so the cost of a
    fit hardly depends on their number.
    """
    return tuple(sorted({max(1, round(s * batch_size / max(1, queries))) for s in _STEPS}))


def stages(method: str | Sequence[str], adapts: str, epochs: tuple[int, ...]) -> list[Stage]:
    """Return the stages of a method, or of several that compete.

    Args:
        method: ``"auto"``, a key of :data:`METHODS`, or several of these.
        adapts: ``"query"`` leaves documents alone; ``"both"`` may move them.
        epochs: At which trained maps are compared.

    Raises:
        OptionError: An unknown method, or one that moves documents with ``adapts="query"``.
    """
    methods = [method] if isinstance(method, str) else list(method)
    single = [recipe for name in methods for recipe in _checked(name, adapts, epochs)]
    found: list[Stage] = [lambda _: single] if single else []
    if "auto" not in methods:
        return found
    longer = [functools.partial(_longer, count, epochs) for count in epochs[_FIRST:]]
    maps = [functools.partial(_maps, epochs[:_FIRST], adapts), *longer]
    query_side: list[Stage] = [*found, *maps, _memories, _gates]
    if adapts == "query":
        return query_side
    facing = functools.partial(_facing, epochs)
    return [*query_side, facing, _facing_memories, _facing_gates, _nudges]


def _checked(method: str, adapts: str, epochs: tuple[int, ...]) -> list[Recipe]:
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


def alone(method: str, epochs: tuple[int, ...]) -> Iterator[Recipe]:
    """Yield the recipes to choose from where one method is asked for by name, simplest first."""
    if method in TRAINED:
        yield from (of(method, epochs=count) for count in epochs)
    elif method == "centering":
        yield of(method)
    elif method == "whitening":
        yield from (of(method, power=power) for power in (0.15, 0.25, 0.4))
    elif method == "ridge":
        yield from (of(method, strength=strength) for strength in (30.0, 10.0, 3.0, 1.0))
    elif method in ("nudge_m", "nudge_n"):
        yield from (of(method, distance=distance) for distance in (0.05, 0.1, 0.2, 0.4))
    elif method == "memory":
        yield from _memories_on(IDENTITY)
    elif method == "gate":
        count = epochs[min(1, len(epochs) - 1)]
        yield from _gates_between(of("linear", epochs=count), of("corpus", epochs=count))
    elif method == "nudge":
        yield from _nudges_on(IDENTITY, IDENTITY)
    elif method == "facing":
        for count in epochs:
            yield of(method, of("two_sided", epochs=count), of("corpus", epochs=count))


def _maps(epochs: tuple[int, ...], adapts: str, found: Candidates) -> Iterator[Recipe]:
    """Maps that treat all queries, or all vectors, alike."""
    yield of("whitening", power=0.25)
    for method in (*_QUERY_MAPS, *_BOTH_MAPS) if adapts == "both" else _QUERY_MAPS:
        yield from (of(method, epochs=count) for count in epochs)


def _longer(epochs: int, all_epochs: tuple[int, ...], found: Candidates) -> Iterator[Recipe]:
    """The best map so far and the best by heart, trained for longer if that paid before.

    Those of the query side also where a map of both sides is ahead: memories and gates need them.
    """
    before = all_epochs[all_epochs.index(epochs) - 1]
    kinds = (_query_maps(found), _both_maps(found))
    ahead = [best(kind) for kind in kinds for best in (found.best, found.best_known)]
    for recipe in dict.fromkeys(ahead):
        same = [r for r in found.recipes if r.method == recipe.method]
        if of(recipe.method, epochs=before) in (
            found.best(same),
            found.best(same, known_only=True),
        ):
            yield of(recipe.method, epochs=epochs)


def _memories(found: Candidates) -> Iterator[Recipe]:
    """Memories on top of the map that generalises best, and of the one that gains most by heart."""
    maps = _query_maps(found)
    for recipe in dict.fromkeys([found.best_new(maps), found.best_known(maps)]):
        yield from _memories_on(recipe)


def _gates(found: Candidates) -> Iterator[Recipe]:
    """Gates from what does no harm to what gains most on known documents."""
    special = found.best_known([r for r in found.recipes if not r.adapts_documents])
    for general in dict.fromkeys([found.best_new(_query_maps(found)), IDENTITY]):
        yield from _gates_between(general, special)


def _facing(epochs: tuple[int, ...], found: Candidates) -> Iterator[Recipe]:
    """Maps that learn by heart, of queries to documents as the best map of both sides has them."""
    ground = _ground(found)
    if ground != IDENTITY:
        yield from (of("facing", ground, of("corpus", epochs=count)) for count in epochs[:_FIRST])


def _facing_memories(found: Candidates) -> Iterator[Recipe]:
    ground = _ground(found)
    for special in dict.fromkeys([IDENTITY, _above(ground, found)]) if ground != IDENTITY else ():
        yield from (of("facing", ground, memory) for memory in _memories_on(special))


def _facing_gates(found: Candidates) -> Iterator[Recipe]:
    ground = _ground(found)
    if ground != IDENTITY:
        gates = _gates_between(IDENTITY, _above(ground, found))
        yield from (of("facing", ground, gate) for gate in gates)


def _nudges(found: Candidates) -> Iterator[Recipe]:
    """Nudges on top of the best so far, and of the best by heart; fitted on the map below both."""
    for recipe in dict.fromkeys([found.highest(found.recipes), found.best_known(found.recipes)]):
        yield from _nudges_on(recipe, _lowest(recipe))


def _lowest(recipe: Recipe) -> Recipe:
    """Return the map below memories and gates."""
    if recipe.method == "facing":
        ground, above = recipe.on
        return of("facing", ground, _lowest(above))
    return _lowest(recipe.on[0]) if recipe.on else recipe


def _ground(found: Candidates) -> Recipe:
    return found.highest(_both_maps(found))


def _above(ground: Recipe, found: Candidates) -> Recipe:
    """Return what faces the ground and gains most on known documents; the identity if nothing."""
    facing = {r: r.on[1] for r in found.recipes if r.method == "facing" and r.on[0] == ground}
    return facing.get(found.best_known(list(facing)), IDENTITY)


def _both_maps(found: Candidates) -> list[Recipe]:
    return [r for r in found.recipes if r.method in _BOTH_MAPS]


def _query_maps(found: Candidates) -> list[Recipe]:
    return [r for r in found.recipes if not r.adapts_documents and not r.on]


def _memories_on(recipe: Recipe) -> Iterator[Recipe]:
    for weight, temperature in ((0.5, 0.1), (1.0, 0.1), (2.0, 0.1), (0.5, 0.2), (1.0, 0.2)):
        yield of("memory", recipe, weight=weight, temperature=temperature)


def _gates_between(general: Recipe, special: Recipe) -> Iterator[Recipe]:
    if general != special:
        for odds in (-4.0, -2.0, 0.0, 2.0):
            yield of("gate", general, special, odds=odds)


def _nudges_on(recipe: Recipe, under: Recipe) -> Iterator[Recipe]:
    for shrinkage in (0.1, 0.01, 0.001):
        yield of("nudge", recipe, under, epochs=_NUDGE_EPOCHS, shrinkage=shrinkage)
