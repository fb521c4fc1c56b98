from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_embeddings_adapted import Adapter, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.adapters import describe, restore
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.vectors import Vectors, unit

DIM = 6


class Turned(Adapter):
    """What a user may write: one array, one setting, both roles."""

    adapts_documents = True

    def __init__(self, signs: Vectors, *, shift: int = 0) -> None:
        self.signs = np.array(signs, dtype=np.float32)
        self.signs.setflags(write=False)
        self.shift = shift

    @property
    def input_dim(self) -> int:
        return len(self.signs)

    @property
    def output_dim(self) -> int:
        return len(self.signs)

    def arrays(self) -> dict[str, Vectors]:
        return {"signs": self.signs}

    def config(self) -> dict[str, int]:
        return {"shift": self.shift}

    def map(self, vectors: Vectors) -> Vectors:
        return np.roll(vectors * self.signs, self.shift, axis=-1)


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


IDENTITIES: dict[str, Callable[[], Adapter]] = {
    "linear": lambda: LinearAdapter.identity(DIM),
    "linear without bias": lambda: LinearAdapter.identity(DIM, bias=False),
    "two layers": lambda: TwoLayerAdapter.identity(DIM, hidden=4),
    "of a user": lambda: Turned(np.ones(DIM)),
}
TRAINED: dict[str, Callable[[], Adapter]] = {
    "linear": lambda: LinearAdapter(random_array(DIM, DIM), random_array(DIM)),
    "linear not normalised": lambda: LinearAdapter(random_array(DIM, DIM), normalize=False),
    "two layers": lambda: TwoLayerAdapter(
        random_array(4, DIM), random_array(4), random_array(DIM, 4), random_array(DIM)
    ),
    "two layers, tanh, no residual": lambda: TwoLayerAdapter(
        random_array(4, DIM),
        random_array(4),
        random_array(DIM, 4),
        random_array(DIM),
        activation="tanh",
        residual=False,
    ),
    "of a user": lambda: Turned(np.array([1, -1, 1, -1, 1, -1]), shift=2),
}


@pytest.fixture(params=IDENTITIES.values(), ids=IDENTITIES.keys())
def identity(request: pytest.FixtureRequest) -> Adapter:
    return request.param()


@pytest.fixture(params=TRAINED.values(), ids=TRAINED.keys())
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return request.param()


QUERIES = unit(random_array(5, DIM, seed=1))


# --- the contract ---------------------------------------------------------------------------


def test_the_identity_leaves_unit_vectors_as_they_are(identity: Adapter) -> None:
    assert np.allclose(identity.apply(QUERIES), QUERIES, atol=1e-7)


def test_a_batch_equals_single_vectors(adapter: Adapter) -> None:
    batch = adapter.apply(QUERIES)
    assert batch.shape == (5, adapter.output_dim)
    assert np.allclose(batch, [adapter.apply(query) for query in QUERIES], atol=1e-6)


def test_an_empty_batch_stays_empty(adapter: Adapter) -> None:
    assert adapter.apply(np.empty((0, DIM), dtype=np.float32)).shape == (0, DIM)


def test_results_are_float32_and_the_input_is_left_alone(adapter: Adapter) -> None:
    for given_ in (QUERIES.copy(), QUERIES[0].copy(), QUERIES.astype(np.float64)):
        before = given_.copy()
        assert adapter.apply(given_).dtype == np.float32
        assert np.array_equal(given_, before)


def test_documents_are_untouched_bit_for_bit_unless_the_adapter_says_so(adapter: Adapter) -> None:
    documents = adapter.apply(QUERIES, "document")
    assert np.array_equal(documents, QUERIES) != adapter.adapts_documents
    assert np.array_equal(documents, adapter.apply(QUERIES)) == adapter.adapts_documents


def test_another_role_is_refused(adapter: Adapter) -> None:
    with pytest.raises(OptionError, match='expected "query" or "document", got \'passage\''):
        adapter.apply(QUERIES, "passage")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(DIM + 1,), (3, DIM + 1), (1, 2, DIM), ()])
@pytest.mark.parametrize("role", ["query", "document"])
def test_another_shape_is_refused(adapter: Adapter, shape: tuple[int, ...], role: str) -> None:
    with pytest.raises(ShapeError, match=r"expected 6 dimensions.*Was it trained on another base"):
        adapter.apply(np.zeros(shape), role)  # type: ignore[arg-type]


def test_saving_and_loading_is_bit_equal(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "folder")
    loaded = Adapter.load(tmp_path / "folder")
    assert type(loaded) is type(adapter)
    assert loaded == adapter
    assert np.array_equal(loaded.apply(QUERIES), adapter.apply(QUERIES))


def test_pickles_and_copies_are_bit_equal_and_stay_immutable(adapter: Adapter) -> None:
    for copied in (pickle.loads(pickle.dumps(adapter)), copy.deepcopy(adapter), copy.copy(adapter)):
        assert copied == adapter
        assert np.array_equal(copied.apply(QUERIES), adapter.apply(QUERIES))
        assert not any(array.flags.writeable for array in copied.arrays().values())


def test_arrays_are_read_only(adapter: Adapter) -> None:
    for array in adapter.arrays().values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_the_repr_names_class_dimensions_and_settings(adapter: Adapter) -> None:
    assert repr(adapter).startswith(f"{type(adapter).__name__}(6 → 6, ")


def test_adapters_differ_by_weights_settings_and_class() -> None:
    weight = random_array(2, 2)
    assert LinearAdapter(weight) == LinearAdapter(weight)
    assert LinearAdapter(weight) != LinearAdapter(weight, normalize=False)
    assert LinearAdapter(weight) != LinearAdapter(weight, np.zeros(2))
    assert LinearAdapter(weight) != LinearAdapter(weight + 1)
    assert LinearAdapter(weight) != "LinearAdapter"


# --- each of them ---------------------------------------------------------------------------


def test_a_linear_adapter_is_a_matrix_a_bias_and_a_normalisation() -> None:
    weight, bias = np.array([[0, 2], [1, 0]]), np.array([0, 3])
    assert LinearAdapter(weight, bias, normalize=False).apply([1, 2]).tolist() == [4, 4]
    assert np.allclose(LinearAdapter(weight, bias).apply([1, 2]), [0.5**0.5, 0.5**0.5])
    assert LinearAdapter(np.ones((3, 2))).apply(np.ones((4, 2))).shape == (4, 3)


def test_a_zero_vector_stays_zero() -> None:
    assert LinearAdapter.identity(2).apply([0, 0]).tolist() == [0, 0]
    assert LinearAdapter.identity(2).apply([[0, 0], [0, 2]]).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", [2, 0]),
        ("leaky_relu", [2, -0.02]),
        ("tanh", np.tanh([2, -2])),
        ("sigmoid", 1 / (1 + np.exp([-2, 2]))),
    ],
)
def test_two_layers_pass_through_their_activation(activation: str, expected: list[float]) -> None:
    eye, zero = np.eye(2), np.zeros(2)
    plain = TwoLayerAdapter(
        eye, zero, eye, zero, activation=activation, residual=False, normalize=False
    )
    assert np.allclose(plain.apply([2, -2]), expected)
    added = TwoLayerAdapter(eye, zero, eye, zero, activation=activation, normalize=False)
    assert np.allclose(added.apply([2, -2]), np.add(expected, [2, -2]))


@given(st.integers(1, 8), st.integers(1, 8), st.booleans(), st.booleans(), st.integers(0, 99))
def test_any_linear_adapter_survives_its_description(
    rows: int, columns: int, bias: bool, normalize: bool, seed: int
) -> None:
    given_ = LinearAdapter(
        random_array(rows, columns, seed=seed),
        random_array(rows, seed=seed) if bias else None,
        normalize=normalize,
    )
    assert restore(describe(given_), given_.arrays(), where="here") == given_


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearAdapter(np.ones(3)), r"weight: expected 2 dimensions, got shape \(3,\)"),
        (lambda: LinearAdapter(np.ones((0, 3))), "weight: expected 2 dimensions"),
        (lambda: LinearAdapter(np.ones((2, 3)), np.ones(3)), r"bias: expected \(2,\), got \(3,\)"),
        (lambda: LinearAdapter(np.full((2, 2), np.nan)), "weight: expected finite numbers"),
        (
            lambda: TwoLayerAdapter(np.ones((4, 2)), np.ones(3), np.ones((2, 4)), np.ones(2)),
            r"hidden_bias: expected \(4,\), got \(3,\)",
        ),
        (
            lambda: TwoLayerAdapter(np.ones((4, 2)), np.ones(4), np.ones((3, 4)), np.ones(3)),
            r"output_weight: expected \(2, 4\), got \(3, 4\)",  # a residual needs one dimension
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(make: Callable[[], Adapter], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    eye, zero = np.eye(2), np.zeros(2)
    with pytest.raises(OptionError, match="expected one of relu, leaky_relu, tanh, sigmoid, got"):
        TwoLayerAdapter(eye, zero, eye, zero, activation="gelu")


def test_loading_by_a_class_refuses_another(tmp_path: Path) -> None:
    LinearAdapter.identity(2).save(tmp_path)
    with pytest.raises(FolderError, match="holds a LinearAdapter, not a TwoLayerAdapter"):
        TwoLayerAdapter.load(tmp_path)
    assert LinearAdapter.load(tmp_path) == LinearAdapter.identity(2)
