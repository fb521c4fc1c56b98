from __future__ import annotations

import numpy as np
import pytest

from llama_index_embeddings_adapted.composed.small_model import (
    WEIGHT_MAX,
    Cosines,
    best_weight,
    compose,
    sweep,
)
from llama_index_embeddings_adapted.core.arrays import l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation.metrics import compute


def random_unit(rows: int, dim: int, seed: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((rows, dim)))


@pytest.mark.parametrize("weight", [0.25, 0.5, 2.0])
def test_the_cosine_of_a_composition_is_the_weighted_mean_of_both_cosines(weight: float) -> None:
    b, a = random_unit(5, 4, 0), random_unit(5, 3, 1)
    joined = compose(7 * b, 0.1 * a, weight)
    expected = (b @ b.T + weight**2 * (a @ a.T)) / (1 + weight**2)
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-6)
    assert joined.shape == (5, 7)


def test_without_weight_a_composition_is_the_black_box_at_its_dimension() -> None:
    b = random_unit(5, 4, 0)
    np.testing.assert_allclose(compose(3 * b, np.empty((5, 0), np.float32), 0), b, atol=1e-6)


def test_one_vector_is_composed_like_many() -> None:
    b, a = random_unit(2, 4, 0), random_unit(2, 3, 1)
    np.testing.assert_allclose(compose(b[0], a[0], 0.5), compose(b, a, 0.5)[0], atol=1e-6)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "half"])
def test_a_weight_that_is_no_share_is_refused(weight: object) -> None:
    with pytest.raises(OptionError, match="weight: expected a number >= 0"):
        compose(random_unit(1, 2, 0), random_unit(1, 2, 0), weight)  # type: ignore[arg-type]


def test_different_numbers_of_vectors_are_refused() -> None:
    with pytest.raises(ShapeError, match="Vectors to compose: expected"):
        compose(random_unit(2, 2, 0), random_unit(3, 2, 0), 0.5)


def random_cosines(seed: int, queries: int = 12, documents: int = 40) -> Cosines:
    random = np.random.default_rng(seed)
    b, a = (
        random_unit(queries, 6, seed + part) @ random_unit(documents, 6, seed + 2 + part).T
        for part in (0, 10)
    )
    relevant = [
        random.choice(documents, size=random.integers(1, 4), replace=False).tolist()
        for _ in range(queries)
    ]
    for query, rows in enumerate(relevant):
        b[query, rows] += 0.4
        a[query, rows] += 0.4
    return Cosines(np.float32(b), np.float32(a), Qrels.from_lists(relevant))


def test_ndcg_at_a_weight_is_that_of_the_ranking_it_gives() -> None:
    cosines = random_cosines(0)
    for weight in (0.0, 0.5, 1.7):
        scores = cosines.black_box + np.float32(weight**2) * cosines.small
        ranked, _ = top_k(scores, np.eye(scores.shape[1], dtype=np.float32), 10)
        expected = compute("ndcg@10", ranked, cosines.relevance, corpus_size=scores.shape[1])
        np.testing.assert_allclose(cosines.ndcg(weight), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_weight_of_a_fine_grid_beats_the_one_found(seed: int) -> None:
    cosines = random_cosines(seed)
    found = cosines.ndcg(sweep(cosines)).mean()
    grid = [cosines.ndcg(float(w)).mean() for w in np.linspace(0, WEIGHT_MAX - 1e-3, 3000)]
    assert found >= max(grid) - 1e-9
    assert max(grid) > min(grid)
    assert cosines.ndcg(best_weight(cosines, 0.5)).mean() >= cosines.ndcg(0.0).mean()


def test_a_small_model_that_only_harms_gets_no_weight() -> None:
    relevance = Qrels.from_lists([[query] for query in range(8)])
    right = np.eye(8, dtype=np.float32)
    assert best_weight(Cosines(right, -right, relevance), trained=0.5) == 0.0


def test_a_small_model_that_knows_nothing_gets_no_weight() -> None:
    relevance = Qrels.from_lists([[query] for query in range(8)])
    b = np.float32(np.eye(8)[:, ::-1])
    assert best_weight(Cosines(b, 0 * b, relevance), trained=0.5) == 0.0


def test_the_smallest_sufficient_region_is_found_by_arithmetic() -> None:
    # The relevant document is behind by .3 and gains 1·λ²: ahead from λ² = .3 on.
    relevance = Qrels.from_lists([[0]] * 4)
    b = np.float32([[0.2, 0.5]] * 4)
    a = np.float32([[1.0, 0.0]] * 4)
    assert best_weight(Cosines(b, a, relevance), trained=0.1) ** 2 > 0.3
    assert best_weight(Cosines(b, a, relevance), trained=0.7) == 0.7


def test_the_trained_weight_stays_where_another_is_better_by_chance_only() -> None:
    # One query of ten needs λ² > 1.5, the nine others are right from λ² > .01 on.
    relevance = Qrels.from_lists([[0]] * 10)
    b = np.float32([[0.0, 1.5], *[[0.0, 0.01]] * 9])
    cosines = Cosines(b, np.float32([[1.0, 0.0]] * 10), relevance)
    assert sweep(cosines) ** 2 > 1.5
    assert best_weight(cosines, trained=0.5) == 0.5
    assert best_weight(cosines, trained=0.05) ** 2 > 1.5
