from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import KernelAdapter, NudgeAdapter, gaussian
from llama_index_embeddings_adapted.core.arrays import Keys, content_hashes, l2_normalize
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.training import closed_form
from llama_index_embeddings_adapted.training.closed_form import kernel_ridge
from tests.adapters.test_adapters import random_array

KEY, VALUE, FAR = np.eye(3, dtype=np.float32)
SHARED = LinearAdapter.identity(3, shared=True)


def kernel(keys: Any = (KEY,), coefficients: Any = (VALUE,), **settings: Any) -> KernelAdapter:
    general = settings.pop("general", LinearAdapter.identity(3))
    return KernelAdapter(general, keys, coefficients, **settings)


def test_a_remembered_query_takes_its_coefficient_on_and_a_far_one_stays():
    assert np.allclose(kernel(weight=1.0).apply(KEY), (KEY + VALUE) / 2**0.5)
    assert np.allclose(kernel(weight=3.0).apply(5 * KEY), (KEY + 3 * VALUE) / 10**0.5)
    # The kernel at a right angle is exp(-1 / 0.1) = 0.00005.
    assert np.allclose(kernel(weight=1.0, temperature=0.1).apply(FAR), FAR, atol=1e-4)


def test_coefficients_add_up_by_the_angle_of_the_base_vector_to_the_mapped_one():
    query = np.array([0.8, 0.0, 0.6])  # its cosines with the keys are 0.8 and 0.6
    expected = query + np.exp(-0.2 / 0.2) * VALUE - np.exp(-0.4 / 0.2) * KEY
    found = kernel((KEY, FAR), (VALUE, -KEY), weight=1.0, temperature=0.2).apply(query)
    assert np.allclose(found, l2_normalize(expected[None])[0])
    turned = LinearAdapter(np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]))  # KEY becomes VALUE
    found = kernel(coefficients=(FAR,), general=turned, weight=1.0).apply(KEY)
    assert np.allclose(found, (VALUE + FAR) / 2**0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kernel(coefficients=(VALUE, FAR)), ShapeError, r"coefficients: expected \(1, 3\)"),
        (lambda: kernel(general=LinearAdapter.identity(4)), ShapeError, "general: expected 3 to"),
        (lambda: kernel(general=SHARED), OptionError, "general: expected an adapter that leaves"),
        (lambda: kernel(weight=-1), OptionError, "weight >= 0 .* got -1 and 0.2"),
        (lambda: kernel(temperature=0), OptionError, "temperature > 0"),
    ],
)
def test_a_kernel_that_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_is_the_kernel_ridge_of_scikit_learn():
    from sklearn.kernel_ridge import KernelRidge

    queries, others = l2_normalize(random_array(30, 4)), l2_normalize(random_array(9, 4, seed=2))
    values = random_array(30, 4, seed=1)
    # The same kernel: exp((cos - 1) / 0.3) is exp(-gamma · squared distance) at gamma = 1 / 0.6.
    theirs = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / 0.6).fit(queries, values)
    keys, coefficients = kernel_ridge(queries, values, temperature=0.3, penalty=0.1)
    assert np.array_equal(keys, queries)
    ours = gaussian(others, keys, 0.3) @ coefficients
    assert np.allclose(ours, theirs.predict(others), atol=1e-3)


def test_what_two_equal_queries_teach_is_averaged():
    queries, values = np.stack([KEY, KEY]), np.stack([VALUE, FAR])
    keys, coefficients = kernel_ridge(queries, values, temperature=0.2, penalty=1e-3)
    found = gaussian(KEY[None], keys, 0.2) @ coefficients
    assert np.allclose(found, (VALUE + FAR) / 2, atol=1e-2)


def test_of_more_queries_than_keys_a_sample_stands_for_all(monkeypatch):
    queries = l2_normalize(random_array(300, 3))
    values = queries @ random_array(3, 3, seed=1)
    everything = kernel_ridge(queries, values, temperature=0.5)
    monkeypatch.setattr(closed_form, "MOST_KEYS", 100)
    keys, coefficients = kernel_ridge(queries, values, temperature=0.5)
    assert keys.shape == coefficients.shape == (100, 3)
    assert {key.tobytes() for key in keys} <= {query.tobytes() for query in queries}
    # A hundred of them show as well as all do what so smooth a function is.
    other = l2_normalize(random_array(50, 3, seed=2))
    few, all_ = (gaussian(other, k, 0.5) @ c for k, c in ((keys, coefficients), everything))
    assert np.abs(few - all_).max() < 0.2 * np.abs(all_).max()
    again = kernel_ridge(queries, values, temperature=0.5)
    assert np.array_equal(again[1], coefficients)


def test_single_precision_is_enough_for_many_queries_that_are_nearly_the_same():
    queries = l2_normalize(np.float32(KEY) + 0.01 * random_array(4_000, 3))
    values = random_array(4_000, 3, seed=1)
    keys, coefficients = kernel_ridge(queries, values, temperature=0.2)
    found = gaussian(queries[:50], keys, 0.2) @ coefficients
    assert np.allclose(found, values.mean(axis=0), atol=0.2)


X, Y = np.eye(2, dtype=np.float32)


def keys(*texts: str) -> Keys:
    return content_hashes(texts)


def test_a_document_is_known_by_its_text_and_moved_by_the_first_offset_of_it():
    adapter = NudgeAdapter.of(keys("apple", "whale"), np.array([Y, 3 * X]))
    found = adapter.apply(np.array([X, Y, X]), "document", keys("apple", "whale", "bus"))
    assert np.allclose(found, [(X + Y) / 2**0.5, (3 * X + Y) / 10**0.5, X])
    adapter = NudgeAdapter.of(keys("twin", "twin"), np.array([Y, -Y]))
    found = adapter.apply(np.array([X, X]), "document", keys("twin", "twin"))
    assert np.allclose(found, [(X + Y) / 2**0.5] * 2)


def test_queries_and_edited_and_new_documents_keep_their_vectors_bit_for_bit():
    adapter = NudgeAdapter.of(keys("apple"), np.array([Y]))
    vectors = np.float32([[0.6, 0.81], [0.3, 0.2]])  # not of length 1, and not made so
    found = adapter.apply(vectors, "document", keys("apple.", "an addition"))
    assert np.array_equal(found, vectors)
    assert np.array_equal(adapter.apply(X), X)
    assert np.array_equal(adapter.apply(X, "query", keys("apple")), X)


def test_where_a_document_stands_does_not_matter():
    random = np.random.default_rng(0)
    names = keys(*(f"document {i}" for i in range(50)))
    offsets, vectors = random.standard_normal((2, 50, 4)).astype(np.float32)
    adapter = NudgeAdapter.of(names, offsets)
    order = random.permutation(50)
    moved = adapter.apply(vectors, "document", names)
    assert np.array_equal(adapter.apply(vectors[order], "document", names[order]), moved[order])
    assert NudgeAdapter.of(names[order], offsets[order]) == adapter


def test_drift_is_the_longest_offset_and_can_be_bounded():
    names, offsets = keys("near", "far"), np.array([0.5 * Y, 4 * Y])
    assert NudgeAdapter.of(names, offsets).drift == 4.0
    bounded = NudgeAdapter.of(names, offsets, max_drift=1.0)
    assert bounded.drift == 1.0
    found = bounded.apply(np.array([X, X]), "document", names)
    assert np.allclose(found, [(X + 0.5 * Y) / 1.25**0.5, (X + Y) / 2**0.5])
    adapter = NudgeAdapter.of(keys("still"), np.array([0 * Y]), max_drift=0.5)
    assert np.array_equal(adapter.apply(X, "document", keys("still")), X)


def test_a_nudge_can_be_undone():
    adapter = NudgeAdapter.of(keys("apple", "whale"), np.array([Y, Y]))
    without = adapter.without(keys("apple", "never there"))
    found = without.apply(np.array([X, X]), "document", keys("apple", "whale"))
    assert np.allclose(found, [X, (X + Y) / 2**0.5])
    assert len(adapter.keys) == 2  # as it was
    with pytest.raises(OptionError, match="No nudge would remain: use the adapter below it"):
        adapter.without(keys("apple", "whale"))


def test_keys_of_the_whole_range_are_kept_and_those_that_do_not_fit_refused():
    with pytest.raises(ShapeError, match=r"keys: expected \(2,\), got \(1,\)"):
        NudgeAdapter(np.array([1]), np.array([X, Y]))
    with pytest.raises(ShapeError, match="offsets: expected 1 of them, got 2"):
        NudgeAdapter.of(np.array([1]), np.array([X, Y]))
    with pytest.raises(ShapeError, match="keys: expected 2 of them, got 1"):
        NudgeAdapter(np.array([1]), np.array([X])).apply(np.array([X, Y]), "document", keys("a"))
    for wrong in ([2, 1], [1, 1]):
        with pytest.raises(OptionError, match="distinct content keys in ascending order"):
            NudgeAdapter(np.array(wrong), np.array([X, Y]))
    largest = np.array([0, 2**64 - 1], dtype=np.uint64)
    adapter = NudgeAdapter(largest, np.array([Y, Y]))
    found = adapter.apply(np.array([X, X]), "document", largest)
    assert np.allclose(found, [(X + Y) / 2**0.5] * 2)
