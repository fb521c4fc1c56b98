from __future__ import annotations

import numpy as np
import pytest

from llama_index_embeddings_adapted import Adapter, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.adapters.composites import TwoSidedAdapter
from llama_index_embeddings_adapted.adapters.maps import LowRankAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.training.auto.pipelines import interpolated

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
    "low rank": (
        LowRankAdapter.identity(DIM, rank=2),
        LowRankAdapter(array(2, DIM), array(DIM, 2), array(DIM)),
    ),
    "two layers": (
        TwoLayerAdapter.identity(DIM, hidden=3),
        TwoLayerAdapter(array(3, DIM), array(3), array(DIM, 3), array(DIM)),
    ),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_the_ends_are_where_they_were(kind: str) -> None:
    start, end = PAIRS[kind]
    for share, expected in ((0.0, start), (1.0, end)):
        found = interpolated(end, start, share)
        assert type(found) is type(end)
        assert found.adapts_documents == end.adapts_documents
        for role in ("query", "document"):
            assert np.allclose(found.apply(QUERIES, role), expected.apply(QUERIES, role), atol=1e-6)


def test_half_way_is_the_mean_before_it_is_scaled_to_unit_length() -> None:
    start, end = linear(0), linear(1, bias=False)
    half = interpolated(end, start, 0.5)
    expected = (QUERIES @ start.weight.T + start.bias + QUERIES @ end.weight.T) / 2
    assert np.allclose(half.apply(QUERIES), l2_normalize(expected), atol=1e-6)


@pytest.mark.parametrize("kind", ["low rank", "two layers"])
def test_what_starts_from_nothing_goes_a_share_of_the_way(kind: str) -> None:
    start, end = PAIRS[kind]
    plain = {"low rank": "up", "two layers": "output_weight"}[kind]
    found = interpolated(end, start, 0.25)
    assert np.allclose(getattr(found, plain), 0.25 * getattr(end, plain))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (linear(0), linear(1, shared=True)),
        (PAIRS["low rank"][1], PAIRS["low rank"][1]),
        (PAIRS["two layers"][1], PAIRS["two layers"][1]),
        (linear(0), PAIRS["low rank"][1]),
        (linear(0), PAIRS["two layers"][1]),
        (linear(0), PAIRS["a map for each side"][1]),
        (PAIRS["low rank"][1], linear(0)),
    ],
)
def test_adapters_that_cannot_be_mixed_are_refused(start: Adapter, end: Adapter) -> None:
    with pytest.raises(OptionError, match="Expected two adapters of one kind to mix, got"):
        interpolated(end, start, 0.5)
