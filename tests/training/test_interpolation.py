import numpy as np
import pytest

from llama_index_embeddings_adapted import Adapter, LinearAdapter
from llama_index_embeddings_adapted.adapters.composites import TwoSidedAdapter
from llama_index_embeddings_adapted.adapters.maps import LowRankAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.training.auto.descent import interpolated

DIM = 4


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(seed: int, *, bias: bool = True, shared: bool = False) -> LinearAdapter:
    return LinearAdapter(
        array(DIM, DIM, seed=seed), array(DIM, seed=seed) if bias else None, shared=shared
    )


QUERIES = l2_normalize(array(5, DIM, seed=9))
PAIRS: dict[str, tuple[Adapter, Adapter]] = {
    "linear": (linear(0), linear(1)),
    "shared": (linear(0, shared=True), linear(1, shared=True)),
    "a map for each side": (
        TwoSidedAdapter(linear(0), linear(1)),
        TwoSidedAdapter(linear(2), linear(3)),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_ends_are_where_they_were(kind):
    start, end = PAIRS[kind]
    for alpha, expected in ((0.0, start), (1.0, end)):
        found = interpolated(start, end, alpha)
        assert type(found) is type(end)
        assert found.adapts_documents == end.adapts_documents
        for role in ("query", "document"):
            assert np.allclose(found.apply(QUERIES, role), expected.apply(QUERIES, role), atol=1e-6)


def test_half_way_is_the_mean_before_it_is_scaled_to_unit_length():
    start, end = linear(0), linear(1)
    half = interpolated(start, end, 0.5)
    expected = (QUERIES @ start.weight.T + start.bias + QUERIES @ end.weight.T + end.bias) / 2
    assert np.allclose(half.apply(QUERIES), l2_normalize(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (linear(0), linear(1, shared=True)),
        (linear(0), linear(1, bias=False)),
        (linear(0), LowRankAdapter.identity(DIM)),
        (linear(0), PAIRS["a map for each side"][1]),
        (TwoSidedAdapter(linear(0), linear(1)), TwoSidedAdapter(linear(2), linear(3, bias=False))),
    ],
)
def test_adapters_that_cannot_be_mixed_are_refused(start, end):
    with pytest.raises(OptionError, match="Expected two maps of one kind to mix, got"):
        interpolated(start, end, 0.5)
