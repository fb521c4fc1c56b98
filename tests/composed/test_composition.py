import numpy as np
import pytest

from llama_index_embeddings_adapted.composed.small_model import WEIGHTS, compose, tune_weight
from llama_index_embeddings_adapted.core.arrays import l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation.retrieval import compute


def random_unit(rows: int, dim: int, seed: int) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((rows, dim)))


@pytest.mark.parametrize("weight", [0.25, 0.5, 2.0])
def test_the_cosine_of_a_composition_is_the_weighted_mean_of_both_cosines(weight):
    b, a = random_unit(5, 4, 0), random_unit(5, 3, 1)
    joined = compose(7 * b, 0.1 * a, weight)
    expected = (b @ b.T + weight**2 * (a @ a.T)) / (1 + weight**2)
    np.testing.assert_allclose(joined @ joined.T, expected, atol=1e-6)
    assert joined.shape == (5, 7)
    np.testing.assert_allclose(compose(b[0], a[0], weight), compose(b, a, weight)[0], atol=1e-6)
    alone = compose(3 * b, np.empty((5, 0), np.float32), 0)  # without weight it has no more dims
    np.testing.assert_allclose(alone, b, atol=1e-6)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), True, "half"])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(OptionError, match="weight: expected a number >= 0"):
        compose(random_unit(1, 2, 0), random_unit(1, 2, 0), weight)
    with pytest.raises(ShapeError, match="Vectors to compose: expected"):
        compose(random_unit(2, 2, 0), random_unit(3, 2, 0), 0.5)


Pairs = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], Qrels]


def random_pairs(seed: int) -> Pairs:
    random = np.random.default_rng(seed)
    counts = (random.integers(1, 4) for _ in range(12))
    relevant = [random.choice(40, size=n, replace=False).tolist() for n in counts]
    sides = []
    for part in (0, 10):
        theirs = random_unit(40, 6, seed + 2 + part)
        near = np.stack([theirs[rows].mean(axis=0) for rows in relevant])
        sides.append((0.6 * random_unit(12, 6, seed + part) + near, theirs))
    (b, b_documents), (a, a_documents) = sides
    return (np.float32(b), np.float32(a)), (b_documents, a_documents), Qrels.from_lists(relevant)


def ndcg(pairs: Pairs, weight: float) -> float:
    queries, documents, relevance = pairs
    ranked, _ = top_k(compose(*queries, weight), compose(*documents, weight), 10)
    return float(compute("ndcg@10", ranked, relevance, corpus_size=len(documents[0])).mean())


@pytest.mark.parametrize("seed", range(5))
def test_no_other_weight_is_better_than_the_one_found(seed):
    pairs = random_pairs(seed)
    grid = [ndcg(pairs, weight) for weight in WEIGHTS]
    worst = WEIGHTS[int(np.argmin(grid))]
    found = tune_weight(*pairs, trained=worst)
    assert max(grid) > min(grid)
    assert ndcg(pairs, found) >= max(grid) - 0.05  # the trained one stays within noise
    assert ndcg(pairs, found) >= ndcg(pairs, 0.0)
    if found != worst:
        assert ndcg(pairs, found) == pytest.approx(max(grid))
        assert found == WEIGHTS[int(np.argmax(np.round(grid, 9)))]


def test_a_small_model_that_knows_nothing_or_only_harms_gets_no_weight():
    one, answers = np.eye(8, dtype=np.float32), Qrels.from_lists([[query] for query in range(8)])
    for small in (0 * one, -one):
        assert tune_weight((one, one), (one, small), answers, trained=0.5) == 0.0


def behind(*leads: float) -> Pairs:
    """Queries whose document 0 is behind document 1 by a lead, and gains λ² by the small model."""
    black_box = np.float32([[-lead / 2, (1 - lead**2 / 4) ** 0.5] for lead in leads])
    small = np.float32([[1, 0]] * len(leads))
    documents = np.float32([[1, 0], [-1, 0]]), np.float32([[1, 0], [0, 1]])
    return (black_box, small), documents, Qrels.from_lists([[0]] * len(leads))


def test_the_smallest_sufficient_weight_is_found_by_arithmetic():
    four = behind(*[0.3] * 4)  # ahead from λ² = .3 on
    assert tune_weight(*four, trained=0.1) == 0.6
    assert tune_weight(*four, trained=0.7) == 0.7


def test_the_trained_weight_stays_where_another_is_better_by_chance_only() -> None:
    # One query of ten needs λ² > 1.5, the nine others are right from λ² > .01 on.
    ten = behind(1.5, *[0.01] * 9)
    assert tune_weight(*ten, trained=0.5) == 0.5
    assert tune_weight(*ten, trained=0.05) == 1.3
