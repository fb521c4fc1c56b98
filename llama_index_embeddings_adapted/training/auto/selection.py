"""Choosing a recipe by cross-fitting, and judging the choice on queries that took no part in it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import AdaptedError
from llama_index_embeddings_adapted.evaluation.retrieval import DEPTH, RetrievalScores, joined
from llama_index_embeddings_adapted.training.auto.cross_fitting import Fold, PerQuery, folds
from llama_index_embeddings_adapted.training.auto.pipelines import IDENTITY, Kitchen, Recipe
from llama_index_embeddings_adapted.training.closed_form import Spectrum
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import device_for, run_in_threads

Mask = NDArray[np.bool_]


#: What leaves a candidate out and lets the others go on; torch runs out of memory by RuntimeError.
FAILURES = (AdaptedError, np.linalg.LinAlgError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Expectation:
    """Which queries will come.

    Args:
        share: Of live queries about documents that training has questions for, in [0, 1].
        told: Whether the user said so; then a loss on the other documents is accepted if the
            mixture gains.
    """

    share: float
    told: bool

    @classmethod
    def of(cls, told: float | None, data: EncodedDataset) -> Expectation:
        """Take what the user said, or estimate it.

        The estimate is the Good-Turing one: the share of relevance judgements whose document is
        asked for by other training queries too. As the questions at hand may have been written
        evenly over the documents, it is not trusted beyond one half.

        Source:
            Good 1953, The population frequencies of species.
        """
        if told is not None:
            return cls(float(told), True)
        documents = data.canonical_rows[data.relevance.documents]
        asked = np.bincount(documents)
        return cls(float(min(0.5, 1.0 - (asked == 1).sum() / len(documents))), False)


class Evidence:
    """NDCG@10 of candidates on cross-fitted judgements.

    Args:
        parts: The folds, judged.
        expectation: Weighs known against new documents.
    """

    def __init__(self, parts: Sequence[Fold], expectation: Expectation) -> None:
        self.expectation = expectation
        self.known: Mask = np.concatenate([fold.judged.known for fold in parts])
        self.rows = np.concatenate([fold.judged.rows for fold in parts])
        sizes = [len(fold.judged) for fold in parts]
        self.fold = np.repeat(np.arange(len(parts)), sizes)
        self.scores: dict[Recipe, PerQuery] = {}

    def gain(self, recipe: Recipe) -> PerQuery:
        """Return the change of each judgement over the base model."""
        return self.scores[recipe] - self.scores[IDENTITY]

    def weights(self, among: Mask) -> PerQuery:
        """Return what each judgement weighs, so that the weighted sum is the expected gain."""
        weights = np.zeros(len(self.known))
        shares = [self.expectation.share, 1.0 - self.expectation.share]
        parts = [among & self.known, among & ~self.known]
        there = [bool(part.any()) for part in parts]
        if not all(there):  # one kind cannot be judged: the other speaks for it
            shares = [float(t) for t in there]
        for share, part in zip(shares, parts, strict=True):
            if share and part.any():
                weights[part] = share / part.sum()
        return weights

    def harmless(self, recipe: Recipe, among: Mask) -> bool:
        """Whether no part loses, in the mean.

        Noise is no excuse here, nor is a loss small enough: of dozens of candidates, the best by
        the mixture is mostly the one that loses as much as is allowed.
        """
        if self.expectation.told:
            return True
        gain, parts = self.gain(recipe), (among & self.known, among & ~self.known)
        return all(gain[part].mean() >= 0 for part in parts if part.any())

    def choose(self, recipes: Sequence[Recipe], among: Mask) -> Recipe:
        """Return the simplest recipe that is as good as the best within one standard error.

        Args:
            recipes: Simplest first; the identity among them.
            among: Which judgements may be looked at; where there is none, nothing is better
                than the identity.

        Source:
            Breiman et al. 1984, section 3.4.3, with the error of the paired difference.
        """
        if not among.any():
            return IDENTITY
        weights = self.weights(among)
        best = self.highest(recipes, among)
        for recipe in recipes:
            if recipe != IDENTITY and not self.harmless(recipe, among):
                continue
            behind = self.gain(best) - self.gain(recipe)
            if float(weights @ behind) <= weighted_error(behind, weights):
                return recipe
        return best

    def highest(self, recipes: Sequence[Recipe], among: Mask) -> Recipe:
        """Return the recipe of highest expected gain that does no harm; arguments as above."""
        weights = self.weights(among)
        allowed = [r for r in recipes if r == IDENTITY or self.harmless(r, among)]
        return max(allowed, key=lambda r: float(weights @ self.gain(r)))


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is known so far, from the point of view of some of the judgements.

    Args:
        evidence: Scores.
        recipes: All candidates so far, simplest first.
        among: Which judgements may be looked at.
    """

    evidence: Evidence
    recipes: list[Recipe]
    among: Mask

    def best_known(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the one that gains most on known documents, whatever it does to others."""
        return self._highest(recipes, self.among & self.evidence.known)

    def best_new(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the one that gains most on new documents, whatever it does to others."""
        return self._highest(recipes, self.among & ~self.evidence.known)

    def highest(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the one of highest gain that does no harm, however little simpler ones lack."""
        return self.evidence.highest(self._with_identity(recipes), self.among)

    def best_expected(self, recipes: Sequence[Recipe]) -> Recipe:
        """Return the one that gains most in the mixture, whatever it does to either part."""
        weights = self.evidence.weights(self.among)
        return max(
            self._with_identity(recipes), key=lambda r: float(weights @ self.evidence.gain(r))
        )

    def _highest(self, recipes: Sequence[Recipe], among: Mask) -> Recipe:
        if not among.any():
            return IDENTITY
        return max(
            self._with_identity(recipes), key=lambda r: float(self.evidence.gain(r)[among].mean())
        )

    def _with_identity(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        return [IDENTITY, *(recipe for recipe in recipes if recipe != IDENTITY)]


Stage = Callable[[Candidates], Iterable[Recipe]]


@dataclass(frozen=True, eq=False)
class Selection:
    """What cross-fitting chose, and the gain it proves.

    Args:
        recipe: Chosen on all judgements; to be followed on everything.
        evidence: Scores of all candidates.
        chosen: ``(n,)``: the score of each judgement by the recipe that the other folds chose.
        recipes: All candidates, simplest first.
        failed: Candidates that could not be fitted, and why.
        judged: ``"base"`` and ``"adapted"``: what each judgement found, in the order of ``chosen``
            and with those recipes.
    """

    recipe: Recipe
    evidence: Evidence
    chosen: PerQuery
    recipes: tuple[Recipe, ...]
    failed: dict[Recipe, str]
    judged: dict[str, RetrievalScores] = field(default_factory=dict)


def select(
    data: EncodedDataset,
    stages: Sequence[Stage],
    expectation: Expectation,
    options: TrainingOptions,
    *,
    seed: int = 0,
    show_progress: bool = True,
) -> Selection:
    """Choose a recipe in stages and judge the choice.

    Each stage proposes recipes on top of what is best so far. In the end, every fold is judged by
    the recipe that the *other* folds find best, so that a judgement never takes part in the choice
    it judges (only in which recipes are proposed at all); the recipe to follow is chosen on all.

    On processors, folds are fitted side by side, on as many threads as torch has; see
    ``torch.set_num_threads``.

    Args:
        data: The training set.
        stages: Each takes what is known so far and proposes recipes, simplest first.
        expectation: Which queries will come.
        options: Of everything trained by gradients.
        seed: Of the folds.
        show_progress: Show a bar.
    """
    return _Search(data, stages, expectation, options, seed, show_progress).run()


class _Search:
    def __init__(
        self,
        data: EncodedDataset,
        stages: Sequence[Stage],
        expectation: Expectation,
        options: TrainingOptions,
        seed: int,
        show_progress: bool,
    ) -> None:
        self._data = data
        self._folds = list(folds(data, seed=seed))
        spectrum = Spectrum(data.documents)  # the same in all folds
        self._kitchens = [Kitchen(fold.train, options, spectrum) for fold in self._folds]
        self._stages, self._show_progress = stages, show_progress
        # Side by side on processor cores; a GPU is busy with one.
        self._at_once = None if device_for(options).type == "cpu" else 1
        self._evidence = Evidence(self._folds, expectation)
        self._failed: dict[Recipe, str] = {}

    def run(self) -> Selection:
        everything = np.ones(len(self._evidence.known), dtype=bool)
        recipes = [IDENTITY]
        self._score(recipes)
        for stage in self._stages:
            proposed = dict.fromkeys(stage(Candidates(self._evidence, list(recipes), everything)))
            new = [recipe for recipe in proposed if recipe not in recipes]
            self._score(new)
            recipes += [recipe for recipe in new if recipe in self._evidence.scores]
        chosen = np.empty(len(everything))
        picks = []
        for k in range(len(self._folds)):
            mine = self._evidence.fold == k
            picks.append(self._evidence.choose(recipes, ~mine))
            chosen[mine] = self._evidence.scores[picks[k]][mine]
        best = self._evidence.choose(recipes, everything)
        judged = {"base": self._found([IDENTITY] * len(picks)), "adapted": self._found(picks)}
        return Selection(best, self._evidence, chosen, tuple(recipes), self._failed, judged)

    def _found(self, picks: Sequence[Recipe]) -> RetrievalScores:
        """Return what the judgements of each fold find with its recipe."""
        parts = []
        for fold, kitchen, recipe in zip(self._folds, self._kitchens, picks, strict=True):
            ranked = fold.ranked(kitchen.make(recipe), DEPTH)
            ids = tuple(self._data.query_ids[row] for row in fold.judged.rows)
            parts.append(
                RetrievalScores(ranked, fold.judged.relevance, ids, self._data.document_ids)
            )
        return joined(parts)

    def _score(self, recipes: Sequence[Recipe]) -> None:
        recipes = [recipe for recipe in recipes if recipe not in self._failed]
        scores = {recipe: np.zeros(len(self._evidence.known)) for recipe in recipes}
        failed: dict[Recipe, str] = {}
        bar = tqdm(
            total=len(recipes) * len(self._folds),
            desc="Cross-fitting",
            unit="fit",
            disable=not self._show_progress or len(recipes) < 2,
        )
        lock = threading.Lock()  # a bar counts for one thread

        def judge(k: int) -> Iterator[None]:
            fold, kitchen, mine = self._folds[k], self._kitchens[k], self._evidence.fold == k
            for recipe in recipes:
                if recipe not in failed:
                    try:
                        scores[recipe][mine] = fold.score(kitchen.make(recipe))
                    except FAILURES as cause:
                        failed.setdefault(recipe, str(cause))
                with lock:
                    bar.update()
                yield

        with bar:
            run_in_threads([judge(k) for k in range(len(self._folds))], self._at_once)
        for recipe, why in failed.items():
            warnings.warn(f"{recipe} cannot be fitted and is left out: {why}", stacklevel=2)
        self._failed.update(failed)
        self._evidence.scores.update({r: s for r, s in scores.items() if r not in failed})


def weighted_error(values: PerQuery, weights: PerQuery) -> float:
    """Return the standard error of a weighted sum of judgements, weights adding up to 1."""
    there = weights > 0
    centred = values[there] - np.average(values[there], weights=weights[there])
    return float(np.sqrt((weights[there] ** 2 * centred**2).sum()))
