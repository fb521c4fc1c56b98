from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.adapters.nonparametric import QueryMemoryAdapter, attend
from llama_index_embeddings_adapted.errors import AdaptedError, OptionError, ShapeError

KEY, VALUE, FAR = np.eye(3, dtype=np.float32)


def remember(
    keys: Any = (KEY,),
    values: Any = (VALUE,),
    general: LinearAdapter | None = None,
    **settings: Any,
) -> QueryMemoryAdapter:
    return QueryMemoryAdapter(general or LinearAdapter.identity(3), keys, values, **settings)


def test_a_remembered_query_takes_its_value_on_by_the_weight() -> None:
    assert np.allclose(remember(weight=1.0).apply(KEY), (KEY + VALUE) / 2**0.5)
    assert np.allclose(remember(weight=3.0).apply(KEY), (KEY + 3 * VALUE) / 10**0.5)


def test_a_query_far_from_all_that_is_remembered_stays_as_it_is() -> None:
    # Attention at a right angle is exp(-1 / 0.1) = 0.00005.
    assert np.allclose(remember(weight=1.0, temperature=0.1).apply(FAR), FAR, atol=1e-4)


def test_attention_falls_with_the_angle_by_the_temperature() -> None:
    query = np.array([0.8, 0.0, 0.6])  # its cosine with the key is 0.8
    recalled = np.exp((0.8 - 1.0) / 0.2)
    expected = query + recalled * VALUE
    found = remember(weight=1.0, temperature=0.2).apply(query)
    assert np.allclose(found, expected / np.linalg.norm(expected))


def test_memories_of_one_query_are_averaged_and_not_added() -> None:
    found = remember((KEY, KEY), (VALUE, FAR), weight=1.0).apply(KEY)
    expected = KEY + (VALUE + FAR) / 2
    assert np.allclose(found, expected / np.linalg.norm(expected))


def test_only_the_nearest_neighbours_count() -> None:
    near = np.array([0.8, 0.6, 0.0])
    found = remember((near, KEY), (FAR, VALUE), weight=1.0, temperature=9.0, neighbours=1)
    assert np.allclose(found.apply(KEY), (KEY + VALUE) / 2**0.5)


def test_the_memory_sees_the_base_vector_and_adds_to_the_mapped_one() -> None:
    turned = LinearAdapter(np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]))  # KEY becomes VALUE
    found = remember(values=(FAR,), general=turned, weight=1.0).apply(KEY)
    assert np.allclose(found, (VALUE + FAR) / 2**0.5)


def test_the_length_of_a_query_does_not_matter() -> None:
    adapter = remember(weight=1.0)
    assert np.allclose(adapter.apply(5 * KEY), adapter.apply(KEY))


def test_attend_returns_the_nearest_keys_and_how_near_they_are() -> None:
    keys = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
    nearest, attention = attend(np.float32([[1, 0]]), keys, 0.5, 2)
    assert dict(zip(nearest[0].tolist(), attention[0].tolist(), strict=True)) == pytest.approx(
        {0: 1.0, 1: np.exp(-0.4 / 0.5)}
    )
    nearest, _ = attend(np.float32([[1, 0]]), keys, 0.5, 10)
    assert sorted(nearest[0].tolist()) == [0, 1, 2]  # no more than there are


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: remember(values=(VALUE, FAR)), ShapeError, r"values: expected \(1, 3\), got"),
        (
            lambda: remember(general=LinearAdapter.identity(4)),
            ShapeError,
            "general: expected 3 dim",
        ),
        (
            lambda: remember(general=LinearAdapter.identity(3, shared=True)),
            OptionError,
            "expected a map that leaves documents alone",
        ),
        (lambda: remember(weight=-1), OptionError, "weight >= 0, .* got -1, 0.1 and 10"),
        (lambda: remember(temperature=0), OptionError, "temperature > 0"),
        (lambda: remember(neighbours=0), OptionError, "neighbours >= 1"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(
    make: Callable[[], object], error: type[AdaptedError], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
