"""``method="auto"`` and the single methods: choose, judge, refit on everything, decide."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.chance import at_chance
from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.evaluation import RetrievalScores
from llama_index_embeddings_adapted.maps import LinearAdapter
from llama_index_embeddings_adapted.options import TrainingOptions
from llama_index_embeddings_adapted.recipes import IDENTITY, Kitchen, Recipe
from llama_index_embeddings_adapted.relevance import Relevance
from llama_index_embeddings_adapted.selection import (
    FAILURES,
    Evidence,
    Expectation,
    Mask,
    Selection,
    select,
)
from llama_index_embeddings_adapted.significance import Difference, paired_difference
from llama_index_embeddings_adapted.stages import epochs_for, stages
from llama_index_embeddings_adapted.validation import METRIC, PartReport
from llama_index_embeddings_adapted.vectors import Rows

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
_AT_CHANCE = (
    "the base model ranks the relevant documents no better than documents dealt at random, so "
    "these pairs are too few to judge by, or queries and documents do not belong together; check "
    "their ids"
)


@dataclass(frozen=True, eq=False)
class Choice:
    """How a recipe was chosen, and what became of it.

    Args:
        recipe: The chosen one, in words.
        ship: Whether cross-fitting proves its gain and sees no harm.
        verdict: That, in words, with what would change it.
        expect: Share of live queries about known documents that was expected.
        expect_told: Whether the user said so.
        provable: The gain in NDCG@10 that was announced before training as sure to be provable.
        sampled: What was left out of cross-fitting, in words; empty if nothing.
        gains: Candidate → mean change in NDCG@10 on known and on new documents.
        failed: Candidate → why it could not be fitted.
    """

    recipe: str
    ship: bool
    verdict: str
    expect: float
    expect_told: bool
    provable: float
    sampled: str
    gains: Mapping[str, tuple[float | None, float | None]]
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON knows it."""
        return {
            "recipe": self.recipe,
            "ship": self.ship,
            "expect": self.expect,
            "expect_told": self.expect_told,
            "provable": self.provable,
            "sampled": self.sampled,
            "gains": {name: list(gain) for name, gain in self.gains.items()},
            "failed": dict(self.failed),
        }


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
        tqdm.write(f"Look at your data: {_AT_CHANCE}.")
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
    ship, verdict = _judge(selection, overall, known, new)
    if candidate is None:
        candidate, ship, verdict = identity, False, f"do not ship: {failure}"
    if chance and not (new and _beyond_luck(new.difference)):  # generalising is no artefact
        ship, verdict = False, f"do not ship: {_AT_CHANCE}"
    choice = Choice(
        str(selection.recipe),
        ship,
        verdict,
        expectation.share,
        expectation.told,
        provable,
        sampled,
        {str(r): _mean_gains(selection.evidence, r) for r in selection.recipes},
        {str(recipe): why for recipe, why in selection.failed.items()},
    )
    served = candidate if ship or always else identity
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
        asked = np.unique(data.twins[data.relevance.documents])
        others = np.setdiff1d(np.unique(data.twins), asked)
        room = max(0, MOST_DOCUMENTS - len(asked))
        if room < len(others):
            kept = np.union1d(asked, random.choice(others, size=room, replace=False))
            said.append(f"{len(kept)} of {len(data.documents)} documents")
            data = _with_documents(data, kept)
    return data, f"Cross-fitting takes a sample of {' and '.join(said)}." if said else ""


def _with_documents(data: EncodedDataset, rows: Rows) -> EncodedDataset:
    """Keep these documents, which hold every relevant one's first twin."""
    relevance = data.relevance
    documents = np.searchsorted(rows, data.twins[relevance.documents])
    return replace(
        data,
        documents=data.documents[rows],
        relevance=Relevance(relevance.offsets, documents, relevance.grades),
        document_ids=tuple(data.document_ids[row] for row in rows),
        twins=np.arange(len(rows)),
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
) -> tuple[bool, str]:
    """Decide, and say why and what would change it."""
    difference = overall.difference
    if selection.recipe == IDENTITY:
        if overall.base[METRIC] > 0.95:
            return False, "saturated: the base model is near its ceiling; keep it"
        return False, (
            "keep the base model: no candidate gained on held-out queries without harm; "
            + _more(difference)
        )
    if not selection.evidence.expectation.told:
        for part, name in ((known, "with"), (new, "without")):
            if part is not None and _harms(part):
                return False, f"do not ship: queries about documents {name} training questions lose"
    if difference.mean > 0 and difference.p_value <= 2 * _LEVEL:
        return True, (
            f"ship: held-out queries gain {difference.mean:+.4f} NDCG@10 "
            f"[{difference.low:+.4f}, {difference.high:+.4f}]"
        )
    return False, f"no harm seen, no proof of gain; {_more(difference)}"


def _beyond_luck(difference: Difference) -> bool:
    """Whether a gain is more than one in a thousand; of one in twenty, shuffled pairs have many."""
    noise = difference.deviation / difference.queries**0.5
    return difference.low > 0 and difference.mean > _SURE * noise


def _harms(part: PartReport) -> bool:
    difference = part.difference
    noise = difference.deviation / difference.queries**0.5
    return bool(difference.mean < -max(noise, _TOLERANCE * part.base[METRIC]))


def _more(difference: Difference) -> str:
    more = difference.queries_needed - difference.queries
    if difference.mean > 0 and more > 0:
        return f"about {more:,} more judged queries would settle it"
    return "more questions about more of the documents may change that"


def _mean_gains(evidence: Evidence, recipe: Any) -> tuple[float | None, float | None]:
    gain = evidence.gain(recipe)

    def mean(part: Mask) -> float | None:
        return float(gain[part].mean()) if part.any() else None

    return mean(evidence.known), mean(~evidence.known)
