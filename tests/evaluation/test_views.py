import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted import BM25Index
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import NO_DOCUMENT, Qrels
from llama_index_embeddings_adapted.evaluation import views
from llama_index_embeddings_adapted.evaluation.retrieval import compute
from llama_index_embeddings_adapted.evaluation.views import Candidates, JudgedPart, WordScores

QUERIES, DOCUMENTS, WORDS = 60, 400, [f"w{at}" for at in range(300)]


class World:
    """Documents of random words and vectors; of each query, words and vector point to its own."""

    def __init__(self, *, by_words: float, by_vectors: float, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        texts = [random.choice(WORDS, 12) for _ in range(DOCUMENTS)]
        own = random.permutation(DOCUMENTS)[:QUERIES]
        asked = [random.choice(texts[row], 2) if random.random() < by_words
                 else random.choice(WORDS, 2) for row in own]  # fmt: skip
        corpus = {str(row): " ".join(text) for row, text in enumerate(texts)}
        self.words = WordScores.of(BM25Index.of(corpus), [" ".join(text) for text in asked])
        self.documents = l2_normalize(random.standard_normal((DOCUMENTS, 24)))
        noise = l2_normalize(random.standard_normal((QUERIES, 24)))
        self.queries = l2_normalize(by_vectors * self.documents[own] + noise)
        self.relevance = Qrels.from_lists([[row] for row in own])
        self.nearness = random.random(DOCUMENTS).astype(np.float32)

    def candidates(self, **options: Any) -> Candidates:
        given = {"nearness": self.nearness, **options}
        return Candidates.of(self.queries, self.documents, self.words, **given)

    def part(self, *models: Candidates) -> JudgedPart:
        ids = tuple(f"q{row}" for row in range(QUERIES))
        return JudgedPart(self.relevance, ids, tuple(map(str, range(DOCUMENTS))), models)


@pytest.fixture(scope="module")
def world() -> World:
    return World(by_words=0.7, by_vectors=0.5)


@pytest.mark.parametrize(("weight", "penalty"), [(0.0, 0.0), (0.2, 0.1), (0.8, 0.0)])
def test_candidates_rank_as_all_documents_do(world, weight, penalty):
    found = world.candidates()
    ranked = found.ranked(found.mixed(weight, penalty))
    shares = np.asarray(world.words.shares, dtype=np.float32)
    scores = world.queries @ world.documents.T + weight * shares - penalty * world.nearness
    exact = np.argsort(-scores, axis=1, kind="stable")
    assert (ranked[:, :10] == exact[:, :10]).mean() > 0.995
    grid = found.grid(world.relevance)[views.GRID.index((weight, penalty))]
    expected = compute("ndcg@10", ranked, world.relevance, corpus_size=DOCUMENTS)
    assert grid == pytest.approx(expected, abs=1e-6)


def test_words_find_only_what_shares_a_word_and_fusion_adds_reciprocal_ranks(world):
    found = world.candidates()
    ranked = found.ranked(found.by_words())
    for row in range(QUERIES):
        there = ranked[row][ranked[row] != NO_DOCUMENT]
        assert len(there)
        assert (world.words.shares[row, there] > 0).all()
        assert world.words.shares[row, there[0]] == world.words.shares[row].max()
    fused = found.ranked(found.fused())[0, 0]
    lists = [found.ranked(scores)[0].tolist() for scores in (found.mixed(0, 0), found.by_words())]

    def score(row: int) -> float:
        return sum(1 / (60 + ranks.index(row)) for ranks in lists if row in ranks)

    best = max({row for ranks in lists for row in ranks if row >= 0}, key=score)
    assert score(fused) == pytest.approx(score(best))
    first = world.candidates().ranked(world.candidates().mixed(0.2, 0.0))[:, :1]
    excluded = Qrels.from_lists(first.tolist())
    found = world.candidates(excluded=excluded)
    again = found.ranked(found.mixed(0.2, 0.0))
    assert not (again == first).any()


def test_weights_are_chosen_on_the_other_folds_and_words_without_a_say_keep_the_base(world):
    fold = views.folds_of(QUERIES, 0)
    known = np.arange(QUERIES) % 2 == 0
    report = views.judge_views([world.part(world.candidates())], fold, known)
    assert report.words > 0
    assert report.model == 0
    told = report.to_dict()
    assert set(told["views"]) == {
        *("base", "BM25", "rank fusion", "base + BM25", "base + words + prior", "mixture")
    }
    assert told["views"]["base"]["interval"] == [0.0, 0.0]
    assert told["overall"]["difference"]["mean"] > 0
    assert report.verdict.startswith("ship")
    assert {name: told[name]["queries"] for name in ("known", "new")} == {"known": 30, "new": 30}
    world = World(by_words=0.0, by_vectors=4.0)
    parts, known = [world.part(world.candidates(nearness=None))], np.ones(QUERIES, dtype=bool)
    report = views.judge_views(parts, views.folds_of(QUERIES, 0), known)
    assert (report.words, report.prior) == (0.0, 0.0)
    assert re.match("base vectors alone: NDCG@10 1.*; keep the base model: neither", str(report))
    mixed = dataclasses.replace(report, words=0.2, model=1)
    assert str(mixed).startswith("adapted vectors + 0.2 · words: NDCG@10")


def test_a_query_has_no_part_in_the_weights_it_is_judged_by():
    """One fold alone gains by words: judged by the others' weights it must not."""
    fold = np.repeat([0, 1], 20)
    grid = np.full((len(views.GRID), 40), 0.5)
    grid[-1, fold == 0], grid[-1, fold == 1] = 1.0, 0.4
    worth = views.expected_gain(grid[0], np.ones(40, dtype=bool), None, given=False)
    last = len(views.GRID) - 1
    assert views.cross_fitted_picks([grid], fold, None, worth) == ([(0, 0), (0, last)], (0, last))
    # Nor where it is judged in both, on other documents, or is one of the others' asked again.
    again = np.tile(np.arange(20), 2)
    assert views.cross_fitted_picks([grid], fold, again, worth)[0] == [(0, 0)] * 2


def test_neither_part_may_lose_and_of_models_within_an_error_the_simplest_is_taken():
    known = np.arange(40) < 20
    grid = np.full((len(views.GRID), 40), 0.5)
    grid[5, known], grid[5, ~known] = 0.9, 0.4
    everything = np.ones(40, dtype=bool)
    for share, given, expected in ((None, False, 0), (0.5, True, 5), (0.1, True, 0)):
        worth = views.expected_gain(grid[0], known, share, given=given)
        assert views.pick([grid], everything, worth) == (0, expected)
    random = np.random.default_rng(0)
    base = np.full((len(views.GRID), 200), 0.5)
    near = base.copy()
    near[7, :2] += 0.4, -0.2
    far = base.copy()
    far[7] += 0.1 + 0.01 * random.standard_normal(200)
    everything = np.ones(200, dtype=bool)
    worth = views.expected_gain(base[0], everything, None, given=False)
    assert views.pick([base, near], everything, worth)[0] == 0
    assert views.pick([base, near, far], everything, worth) == (2, 7)


def test_weights_take_from_no_part_what_the_model_gains_there_alone_but_for_noise():
    known, everything = np.arange(400) < 200, np.ones(400, dtype=bool)
    noise = 0.1 * np.random.default_rng(0).standard_normal(400)
    alone = np.full((len(views.GRID), 400), 0.7)
    taking, noisy = alone.copy(), alone.copy()
    taking[5] += noise + np.where(known, -0.05, 0.3)  # more than the base model's .5, and less
    noisy[5] += noise - noise[known].mean() + np.where(known, -0.002, 0.3)
    worth = views.expected_gain(np.full(400, 0.5), known, 0.5, given=False)
    assert views.pick([taking], everything, worth) == (0, 0)
    assert views.pick([noisy], everything, worth) == (0, 5)
    given = views.expected_gain(np.full(400, 0.5), known, 0.5, given=True)
    assert views.pick([taking], everything, given) == (0, 5)
