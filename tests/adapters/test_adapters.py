import copy
import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from llama_index_embeddings_adapted import Adapter, DocumentPrior, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.adapters import composites, maps
from llama_index_embeddings_adapted.adapters.base import describe, restore
from llama_index_embeddings_adapted.adapters.composites import GatedAdapter, StackedAdapter
from llama_index_embeddings_adapted.adapters.maps import KernelAdapter, LowRankAdapter, NudgeAdapter
from llama_index_embeddings_adapted.core.arrays import Role, Vectors, l2_normalize
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError

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


def kernel(general: Adapter, **settings: float) -> KernelAdapter:
    keys, coefficients = l2_normalize(random_array(3, DIM, seed=2)), random_array(3, DIM, seed=3)
    return KernelAdapter(general, keys, coefficients, **settings)


def gate(*, others: int = 2) -> composites.Gate:
    queries, asked = (l2_normalize(random_array(4, DIM, seed=seed)) for seed in (4, 5))
    rest = l2_normalize(random_array(others, DIM, seed=6))
    more = np.ones(2), random_array(7), -np.ones(6), np.ones(6)
    return composites.Gate(queries, asked, rest, *more)


def nudges() -> NudgeAdapter:
    """Knows the first and the third of KEYS, and a document that is not there."""
    return NudgeAdapter(np.array([10, 30, 99]), random_array(3, DIM, seed=7))


def prior() -> DocumentPrior:
    """With a source for one query, and a value of its own for the second of KEYS."""
    sources = np.array([0, 0, 30, 0], dtype=np.uint64)
    return DocumentPrior(random_array(4, DIM, seed=8), sources, KEYS[1:2], [0.9], neighbours=2)


def linear(seed: int = 0, *, shared: bool = False) -> LinearAdapter:
    return LinearAdapter(*(random_array(*d, seed=seed) for d in ([DIM] * 2, [DIM])), shared=shared)


def two_sides() -> composites.TwoSidedAdapter:
    return composites.TwoSidedAdapter(linear(), linear(1))


def two_layers(activation: str, *, residual: bool) -> TwoLayerAdapter:
    weights = random_array(4, DIM), random_array(4), random_array(DIM, 4), random_array(DIM)
    return TwoLayerAdapter(*weights, activation=activation, residual=residual)


KEYS = np.array([10, 20, 30, 40, 50], dtype=np.uint64)

PLAIN = LinearAdapter.identity(DIM)

IDENTITIES: dict[str, Callable[[], Adapter]] = {
    "linear": lambda: PLAIN,
    "linear without bias": lambda: LinearAdapter.identity(DIM, bias=False),
    "linear, shared": lambda: LinearAdapter.identity(DIM, shared=True),
    "low rank": lambda: LowRankAdapter.identity(DIM, rank=2),
    "two layers": lambda: TwoLayerAdapter.identity(DIM, hidden=4),
    "kernel of weight 0": lambda: kernel(PLAIN, weight=0.0),
    "gate between identities": lambda: GatedAdapter(PLAIN, LowRankAdapter.identity(DIM), gate()),
    "nudges": nudges,
    "stack": lambda: StackedAdapter(PLAIN, nudges()),
    "two sides": lambda: composites.TwoSidedAdapter(PLAIN, PLAIN),
    "unit length": lambda: maps.UnitAdapter(DIM),
    "of a user": lambda: Turned(np.ones(DIM)),
}
TRAINED: dict[str, Callable[[], Adapter]] = {
    "linear": linear,
    "linear, shared": lambda: linear(shared=True),
    "low rank": lambda: LowRankAdapter(
        random_array(2, DIM), random_array(DIM, 2), random_array(DIM)
    ),
    "linear not normalised": lambda: LinearAdapter(random_array(DIM, DIM), normalize=False),
    **{
        f"two layers, {name}": partial(two_layers, name, residual="relu" in name)
        for name in ("relu", "leaky_relu", "tanh", "sigmoid")
    },
    "kernel": lambda: kernel(linear(), weight=2.0, temperature=0.5),
    "gate": lambda: GatedAdapter(linear(), linear(1), gate()),
    "gate without other documents": lambda: GatedAdapter(linear(), linear(1), gate(others=0)),
    "halfway to a kernel": lambda: composites.halfway(kernel(linear(1))),
    "gate to a kernel": lambda: GatedAdapter(linear(), kernel(linear(1)), gate()),
    "nudges": nudges,
    "stack": lambda: StackedAdapter(linear(), nudges()),
    "stack, shared": lambda: StackedAdapter(linear(shared=True), nudges()),
    "two sides": two_sides,
    "two sides, a kernel in front": lambda: composites.TwoSidedAdapter(kernel(linear()), linear(1)),
    "nudges on two sides": lambda: StackedAdapter(two_sides(), nudges()),
    "stack of stacks": lambda: StackedAdapter(
        StackedAdapter(GatedAdapter(linear(), kernel(linear(1)), gate()), nudges()), linear(2)
    ),
    "stack that leaves documents": lambda: StackedAdapter(linear(), kernel(linear(1))),
    "prior": prior,
    "prior behind a map": lambda: StackedAdapter(linear(), prior()),
    "of a user": lambda: Turned(np.array([1, -1, 1, -1, 1, -1]), shift=2),
}


@pytest.fixture(params=TRAINED.values(), ids=TRAINED.keys())
def adapter(request) -> Adapter:
    return request.param()


@pytest.fixture(params=["query", "document"])
def role(request) -> Role:
    return request.param


QUERIES = l2_normalize(random_array(5, DIM, seed=1))


@pytest.mark.parametrize("make", IDENTITIES.values(), ids=IDENTITIES)
def test_the_identity_leaves_unit_vectors_as_they_are(make):
    assert np.allclose(make().apply(QUERIES), QUERIES, atol=1e-7)


def test_a_batch_equals_single_vectors_in_float32_and_the_input_is_left_alone(adapter, role):
    batch = adapter.apply(QUERIES, role, KEYS)
    assert batch.shape == (5, adapter.output_dim)
    for row, vector in enumerate(QUERIES):
        single = adapter.apply(vector, role, KEYS[row : row + 1])
        assert (single.shape, single.dtype) == ((adapter.output_dim,), np.float32)
        assert np.allclose(batch[row], single, atol=1e-6)
    assert adapter.apply(QUERIES[:0], role, KEYS[:0]).shape == (0, adapter.output_dim)
    for given in (QUERIES.copy(), QUERIES.astype(np.float64)):
        before = given.copy()
        assert adapter.apply(given, role, KEYS).dtype == np.float32
        assert np.array_equal(given, before)


def test_documents_are_untouched_bit_for_bit_unless_the_adapter_says_so(adapter):
    documents = adapter.apply(QUERIES, "document", KEYS)
    assert np.array_equal(documents, QUERIES) != adapter.adapts_documents
    with pytest.raises(OptionError, match="role: expected one of query, document, got 'passage'"):
        adapter.apply(QUERIES, "passage")


@pytest.mark.parametrize("name", ["linear, shared", "of a user"])
def test_a_map_of_both_sides_treats_documents_as_queries_with_or_without_keys(name):
    adapter = TRAINED[name]()
    assert np.array_equal(adapter.apply(QUERIES, "document"), adapter.apply(QUERIES))
    assert np.array_equal(adapter.apply(QUERIES, "document", KEYS), adapter.apply(QUERIES))


def test_nudges_leave_documents_without_keys_alone():
    assert np.array_equal(nudges().apply(QUERIES, "document"), QUERIES)
    stack = StackedAdapter(linear(shared=True), nudges())
    assert np.array_equal(stack.apply(QUERIES, "document"), linear().apply(QUERIES))


@pytest.mark.parametrize("shape", [(DIM + 1,), (3, DIM + 1), (1, 2, DIM), ()])
def test_another_shape_is_refused(adapter, shape, role):
    with pytest.raises(ShapeError, match=r"expected 6 dimensions.*Was it trained on another base"):
        adapter.apply(np.zeros(shape), role)


def test_what_is_loaded_unpickled_or_copied_is_bit_equal_and_immutable(adapter, tmp_path):
    adapter.save(tmp_path / "folder")
    loaded = Adapter.load(tmp_path / "folder")
    assert type(loaded) is type(adapter)
    assert loaded == adapter
    assert np.array_equal(loaded.apply(QUERIES), adapter.apply(QUERIES))
    documents = adapter.apply(QUERIES, "document", KEYS)
    assert np.array_equal(loaded.apply(QUERIES, "document", KEYS), documents)
    copies = pickle.loads(pickle.dumps(adapter)), copy.deepcopy(adapter), copy.copy(adapter)
    for copied in (adapter, *copies):
        assert copied == adapter
        assert np.array_equal(copied.apply(QUERIES), adapter.apply(QUERIES))
        assert not any(array.flags.writeable for array in copied.arrays().values())


def test_the_repr_names_class_dimensions_and_settings(adapter):
    shown = repr(adapter)
    assert shown.startswith(f"{type(adapter).__name__}(")
    assert f"6 → {adapter.output_dim}" in shown
    assert all(f"{name}=" in shown for name in adapter.config() if name != "parts")


def test_adapters_differ_by_weights_settings_and_class(tmp_path):
    weight = random_array(2, 2)
    assert LinearAdapter(weight) == LinearAdapter(weight)
    assert LinearAdapter(weight) != LinearAdapter(weight, normalize=False)
    assert LinearAdapter(weight) != LinearAdapter(weight, np.zeros(2))
    assert LinearAdapter(weight) != LinearAdapter(weight + 1)
    assert LinearAdapter(weight) != "LinearAdapter"
    LinearAdapter.identity(2).save(tmp_path)
    with pytest.raises(FolderError, match="holds a LinearAdapter, not a TwoLayerAdapter"):
        TwoLayerAdapter.load(tmp_path)
    assert LinearAdapter.load(tmp_path) == LinearAdapter.identity(2)


def test_a_linear_adapter_is_a_matrix_a_bias_and_a_normalisation():
    weight, bias = np.array([[0, 2], [1, 0]]), np.array([0, 3])
    assert LinearAdapter(weight, bias, normalize=False).apply([1, 2]).tolist() == [4, 4]
    assert np.allclose(LinearAdapter(weight, bias).apply([1, 2]), [0.5**0.5, 0.5**0.5])
    assert LinearAdapter(np.ones((3, 2))).apply(np.ones((4, 2))).shape == (4, 3)
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
def test_two_layers_pass_through_their_activation(activation, expected):
    eye, zero = np.eye(2), np.zeros(2)
    make = partial(TwoLayerAdapter, activation=activation, normalize=False)
    plain = make(eye, zero, eye, zero, residual=False)
    assert np.allclose(plain.apply([2, -2]), expected)
    added = make(eye, zero, eye, zero)
    assert np.allclose(added.apply([2, -2]), np.add(expected, [2, -2]))


def test_a_low_rank_adapter_adds_to_the_query_what_passes_its_narrow_middle():
    down, up = np.array([[1, 0, 0]]), np.array([[0], [0], [2]])
    adapter = LowRankAdapter(down, up, np.array([0, -1, 0]))
    # q + U V q + b = (1, 1, 0) + (0, 0, 2) + (0, -1, 0)
    assert np.allclose(adapter.apply([1, 1, 0]), np.array([1, 0, 2]) / 5**0.5)
    assert LowRankAdapter.identity(3, rank=32).down.shape == (3, 3)  # no wider than the vectors


def test_a_stack_applies_its_adapters_in_turn_to_queries_and_to_documents():
    turn = LinearAdapter(np.array([[0, -1], [1, 0]]), shared=True)  # by 90 degrees
    nudge = NudgeAdapter(np.array([7]), np.array([[1, 0]]))
    stack = StackedAdapter(turn, nudge, turn)
    assert np.allclose(stack.apply([1, 0]), [-1, 0])
    known, other = np.array([7], dtype=np.uint64), np.array([8], dtype=np.uint64)
    # (1, 0) turns to (0, 1), is moved to (1, 1) / √2, and turns to (-1, 1) / √2.
    assert np.allclose(stack.apply([1, 0], "document", known), np.array([-1, 1]) / 2**0.5)
    assert np.allclose(stack.apply([1, 0], "document", other), [-1, 0])
    with pytest.raises(OptionError, match="StackedAdapter: expected at least one adapter"):
        StackedAdapter()
    with pytest.raises(ShapeError, match=r"in a stack: expected 3 dimensions, as LinearAdapter"):
        StackedAdapter(LinearAdapter(np.ones((3, 2))), LinearAdapter.identity(2))


def test_composites_are_saved_in_order_and_a_damaged_part_is_named(tmp_path):
    stack = StackedAdapter(*(linear(seed) for seed in range(11)))
    stack.save(tmp_path)
    assert np.array_equal(Adapter.load(tmp_path).apply(QUERIES), stack.apply(QUERIES))
    stack = StackedAdapter(linear(), linear(1))
    description = describe(stack)
    description["config"]["parts"]["1"]["class"] = "Lost"
    with pytest.raises(FolderError, match="1: adapter class 'Lost' is not known here"):
        restore(description, stack.arrays(), where="here")


GELU = partial(TwoLayerAdapter, activation="gelu")


def ones(*shapes: int | tuple[int, ...]) -> list[np.ndarray]:
    return [np.ones(shape) for shape in shapes]


@pytest.mark.parametrize(
    ("kind", "arrays", "message"),
    [
        (LinearAdapter, ones(3), r"weight: expected 2 dimensions, got shape \(3,\)"),
        (LinearAdapter, ones((0, 3)), "weight: expected 2 dimensions"),
        (LinearAdapter, ones((2, 3), 3), r"bias: expected \(2,\), got \(3,\)"),
        (LinearAdapter, [np.full((2, 2), np.nan)], "weight: expected finite numbers"),
        (LowRankAdapter, ones((1, 3), (1, 3), 3), r"up: expected \(3, 1\), got \(1, 3\)"),
        (LowRankAdapter, ones((1, 3), (3, 1), 1), r"bias: expected \(3,\), got \(1,\)"),
        (TwoLayerAdapter, ones((4, 2), 3, (2, 4), 2), r"hidden_bias: expected \(4,\), got \(3,\)"),
        # A residual needs one dimension.
        (TwoLayerAdapter, ones((4, 2), 4, (3, 4), 3), r"output_weight: expected \(2, 4\), got \(3"),
        (GELU, ones((2, 2), 2, (2, 2), 2), "expected one of relu, leaky_relu, tanh, sigmoid, got"),
    ],
)
def test_weights_that_do_not_fit_and_unknown_activations_are_refused(kind, arrays, message):
    with pytest.raises((ShapeError, OptionError), match=message):
        kind(*arrays)


def test_each_side_has_a_map_of_its_own_and_both_have_to_fit():
    adapter = composites.TwoSidedAdapter(linear(1), linear(2))
    vectors = random_array(3, DIM)
    assert np.array_equal(adapter.apply(vectors), linear(1).apply(vectors))
    assert np.array_equal(adapter.apply(vectors, "document"), linear(2).apply(vectors))
    with pytest.raises(ShapeError, match=f"document: expected {DIM} to {DIM} dimensions"):
        composites.TwoSidedAdapter(linear(), LinearAdapter.identity(DIM + 1))
    with pytest.raises(OptionError, match="query: expected an adapter that leaves documents"):
        composites.TwoSidedAdapter(nudges(), linear())
