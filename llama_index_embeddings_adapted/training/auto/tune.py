"""``method="auto"`` and the single methods: choose, judge, refit on everything, decide.

Which recipes are tried: those of one method, or the stages of ``method="auto"``.

Do the relevance judgements have anything to do with the base model?
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.maps import LinearAdapter
from llama_index_embeddings_adapted.core.arrays import Rows
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.evaluation.held_out import METRIC, PartReport
from llama_index_embeddings_adapted.evaluation.reports import Choice
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, search
from llama_index_embeddings_adapted.evaluation.verdict import (
    FEWEST,
    LOOKS_RANDOM,
    SATURATED,
    Decision,
    Difference,
    Verdict,
    dropping,
    gaining,
    inconclusive,
    paired_difference,
    with_small_parts,
)
from llama_index_embeddings_adapted.training.auto.pipelines import (
    IDENTITY,
    METHODS,
    TRAINED,
    Kitchen,
    Recipe,
    Value,
)
from llama_index_embeddings_adapted.training.auto.selection import (
    FAILURES,
    Candidates,
    Evidence,
    Expectation,
    Mask,
    Selection,
    Stage,
    select,
)
from llama_index_embeddings_adapted.training.options import TrainingOptions

_MOST_QUERIES = 1_000
_METRIC = "mrr@10"
_CHANCE_LEVEL = 0.01  # one-sided


def at_chance(data: EncodedDataset, *, seed: int = 0) -> bool:
    """Whether the base model ranks the relevant documents no better than others dealt at random.

    Such judgements are nearly always a mistake: ids that do not belong together, or shuffled
    columns. An adapter can still fit them, and even pass cross-fitting, as it learns which
    documents are asked for at all; served, it ruins what the base model can do.

    Args:
        data: Queries with their relevant documents; 1,000 of them are looked at.
        seed: Of the sample and of the deal.
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(data.relevance))[:_MOST_QUERIES])
    sample = data.take(rows)
    relevance = sample.relevance
    # The same documents as often, so that one that suits every query is no advantage.
    dealt = Qrels(relevance.offsets, random.permutation(relevance.documents), relevance.grades)
    found, by_chance = (
        search(replace(sample, relevance=truth), sample.queries, sample.documents).values(_METRIC)
        for truth in (relevance, dealt)
    )
    difference = paired_difference(by_chance, found, metric=_METRIC, seed=seed)
    return not (difference.mean > 0 and difference.p_value <= 2 * _CHANCE_LEVEL)


_STEPS = 200  # of training, at a rate that falls to zero; more gain little
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the way from where training starts to where it ends
_QUERY_MAPS = ("mnr", "linear", "corpus")
_BOTH_MAPS = ("shared", "two_sided")
_LAYERS = ("kernel", "gate")  # on top of maps
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


MOST_QUERIES = 6_000  # that are cross-fitted; beyond, a sample stands for all
MOST_DOCUMENTS = 20_000
_TRAINED_SHARE = 0.64  # of the pairs, in each of five folds
_CANDIDATES = 1_024  # documents that compete in a training step
_BATCH = 192  # queries per step where there are many: 200 such steps teach as much as 900 of 64
_BATCHES = 8  # per epoch, at least; with few queries smaller batches teach as much, and cost less
_LARGEST_DEVIATION = 0.34  # of the per-query difference, measured on six sets: .14 to .34
_LEVEL = 0.05  # one-sided
_SURE = 3.1  # standard errors: one-sided, one in a thousand
_TOLERANCE = 0.005  # of the base model's score: a loss this small speaks against no verdict


@dataclass(frozen=True, eq=False)
class Tuned:
    """What tuning found.

    Args:
        adapter: To be served: the candidate, or the identity where the verdict is against it.
        candidate: The chosen recipe, followed on everything.
        choice: How it was chosen.
        overall: Cross-fitted, weighted as live queries are expected.
        known: Queries judged on documents that training knew.
        new: Queries judged on documents that training did not know.
        judged: ``"base"`` and ``"adapted"``: what every judgement found, unweighted.
    """

    adapter: Adapter
    candidate: Adapter
    choice: Choice
    overall: PartReport
    known: PartReport | None
    new: PartReport | None
    judged: dict[str, RetrievalScores]


def tune(
    data: EncodedDataset,
    options: TrainingOptions,
    *,
    method: str | Sequence[str] = "auto",
    adapts: str = "query",
    expect: float | None = None,
    always: bool = False,
    show_progress: bool = True,
) -> Tuned:
    """Choose a recipe by cross-fitting, follow it on everything, and say whether to ship it.

    Args:
        data: Queries to learn from and to judge on; none is judged by what saw it.
        options: Of everything trained by gradients; ``epochs`` and ``loss`` are chosen here,
            ``batch_size`` is larger where there are many queries, and ``max_candidates`` at most
            1,024.
        method: ``"auto"``, a single method, or several that compete, ``"auto"`` among them or not.
        adapts: ``"query"`` or ``"both"``.
        expect: Share of live queries about known documents, if the user knows it.
        always: Return the candidate whatever the verdict.
        show_progress: Show bars, and what gain the data can prove.
    """
    sample, sampled = _sampled(data, options.seed)
    expectation = Expectation.of(expect, data)
    provable = 2.93 * _LARGEST_DEVIATION / len(sample.relevance) ** 0.5
    if show_progress:
        tqdm.write(_announcement(len(sample.relevance), provable, expectation, sampled))
    chance = at_chance(sample, seed=options.seed)
    if chance and show_progress:
        tqdm.write(f"Look at your data: {LOOKS_RANDOM.reason}.")
    options, epochs = _trainings(options, round(_TRAINED_SHARE * len(sample.relevance)))
    selection = select(
        sample,
        stages(method, adapts, epochs),
        expectation,
        options,
        seed=options.seed,
        show_progress=show_progress,
    )
    identity = LinearAdapter.identity(data.queries.shape[1])
    candidate, failure = _followed(selection.recipe, Kitchen(data, options))
    overall, known, new = _parts(selection)
    verdict = _judge(selection, overall, known, new)
    if candidate is None:
        candidate, verdict = identity, Verdict(Decision.DO_NOT_SHIP, failure)
    if chance and not (new and _beyond_luck(new.difference)):  # generalising is no artefact
        verdict = LOOKS_RANDOM
    choice = Choice(
        str(selection.recipe),
        verdict,
        expectation.share,
        expectation.told,
        provable,
        sampled,
        {str(r): _mean_gains(selection.evidence, r) for r in selection.recipes},
        {str(recipe): why for recipe, why in selection.failed.items()},
    )
    served = candidate if choice.ship or always else identity
    return Tuned(served, candidate, choice, overall, known, new, selection.judged)


def _trainings(options: TrainingOptions, queries: int) -> tuple[TrainingOptions, int]:
    """Return how maps are trained on so many queries, and for how many epochs."""
    options = replace(
        options,
        max_candidates=min(options.max_candidates, _CANDIDATES),
        batch_size=max(options.batch_size, min(_BATCH, queries // _BATCHES)),
    )
    return options, epochs_for(queries, options.batch_size)


def _followed(recipe: Recipe, kitchen: Kitchen) -> tuple[Adapter | None, str]:
    """Follow a recipe on everything; None and why where it fails, as cross-fitting is not lost."""
    try:
        return kitchen.make(recipe), ""
    except FAILURES as cause:
        failure = f"{recipe} fails on all pairs: {cause}"
        warnings.warn(f"The base model is kept, as {failure}", stacklevel=3)
        return None, failure


def _announcement(queries: int, provable: float, expectation: Expectation, sampled: str) -> str:
    source = "as you said" if expectation.told else "estimated; pass expect=… if you know better"
    return (
        f"{queries} judged queries can prove a gain of {provable:.3f} NDCG@10, often less. "
        f"{expectation.share:.0%} of live queries are taken to ask for documents that have "
        f"training questions ({source}).{' ' + sampled if sampled else ''}"
    )


def _sampled(data: EncodedDataset, seed: int) -> tuple[EncodedDataset, str]:
    """Cut a large set to what cross-fitting takes minutes for."""
    random = np.random.default_rng(seed)
    said = []
    if len(data.relevance) > MOST_QUERIES:
        said.append(f"{MOST_QUERIES} of {len(data.relevance)} queries")
        data = data.take(np.sort(random.permutation(len(data.relevance))[:MOST_QUERIES]))
    if len(data.documents) > MOST_DOCUMENTS:
        asked = np.unique(data.canonical_rows[data.relevance.documents])
        others = np.setdiff1d(np.unique(data.canonical_rows), asked)
        room = max(0, MOST_DOCUMENTS - len(asked))
        if room < len(others):
            kept = np.union1d(asked, random.choice(others, size=room, replace=False))
            said.append(f"{len(kept)} of {len(data.documents)} documents")
            data = _with_documents(data, kept)
    return data, f"Cross-fitting takes a sample of {' and '.join(said)}." if said else ""


def _with_documents(data: EncodedDataset, rows: Rows) -> EncodedDataset:
    """Keep these documents, which hold every relevant one's first twin."""
    relevance = data.relevance
    documents = np.searchsorted(rows, data.canonical_rows[relevance.documents])
    return replace(
        data,
        documents=data.documents[rows],
        relevance=Qrels(relevance.offsets, documents, relevance.grades),
        document_ids=tuple(data.document_ids[row] for row in rows),
        canonical_rows=np.arange(len(rows)),
        keys=data.keys[rows],
        negatives=None,  # they may be among the documents left out
    )


def _parts(selection: Selection) -> tuple[PartReport, PartReport | None, PartReport | None]:
    evidence, base = selection.evidence, selection.evidence.scores[IDENTITY]
    known, new = (
        _part(base[keep], selection.chosen[keep]) if keep.any() else None
        for keep in (evidence.known, ~evidence.known)
    )
    everything = np.ones(len(base), dtype=bool)
    # A query that is judged twice is one observation, so that the interval is not too narrow.
    rows, query = np.unique(evidence.rows, return_inverse=True)
    weights = evidence.weights(everything) * len(rows)
    base_sum, chosen_sum = (
        np.bincount(query, weights=weights * values) for values in (base, selection.chosen)
    )
    return _part(base_sum, chosen_sum), known, new


def _part(base: Any, chosen: Any) -> PartReport:
    return PartReport(
        {METRIC: float(base.mean())},
        {METRIC: float(chosen.mean())},
        paired_difference(base, chosen, metric=METRIC),
    )


def _judge(
    selection: Selection, overall: PartReport, known: PartReport | None, new: PartReport | None
) -> Verdict:
    """Decide, and say why."""
    difference = overall.difference
    if selection.recipe == IDENTITY:
        if overall.base[METRIC] > 0.95:
            return SATURATED
        return Verdict(
            Decision.KEEP_BASE,
            "no candidate gained on held-out queries without harm; more queries about more of the "
            "documents may change that",
        )
    gains = difference.mean > 0 and difference.p_value <= 2 * _LEVEL
    verdict = gaining(difference) if gains else inconclusive(difference)
    if selection.evidence.expectation.told:
        return verdict
    if known is not None and _harms(known):
        return dropping("known", known.difference)
    if new is not None and _harms(new):
        return dropping("new", new.difference)
    return with_small_parts(verdict, *(0 if p is None else p.queries for p in (known, new)))


def _beyond_luck(difference: Difference) -> bool:
    """Whether a gain is more than one in a thousand; of one in twenty, shuffled pairs have many."""
    noise = difference.deviation / difference.queries**0.5
    return difference.low > 0 and difference.mean > _SURE * noise


def _harms(part: PartReport) -> bool:
    difference = part.difference
    noise = difference.deviation / difference.queries**0.5
    loses = difference.mean < -max(noise, _TOLERANCE * part.base[METRIC])
    return bool(loses and part.queries >= FEWEST)


def _mean_gains(evidence: Evidence, recipe: Any) -> tuple[float | None, float | None]:
    gain = evidence.gain(recipe)

    def mean(part: Mask) -> float | None:
        return float(gain[part].mean()) if part.any() else None

    return mean(evidence.known), mean(~evidence.known)
