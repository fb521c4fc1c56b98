import numpy as np
import pytest

from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.core.arrays import Keys, content_hashes
from llama_index_embeddings_adapted.errors import OptionError, ShapeError

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
    for wrong in ([2, 1], [1, 1]):
        with pytest.raises(OptionError, match="distinct content keys in ascending order"):
            NudgeAdapter(np.array(wrong), np.array([X, Y]))
    largest = np.array([0, 2**64 - 1], dtype=np.uint64)
    adapter = NudgeAdapter(largest, np.array([Y, Y]))
    found = adapter.apply(np.array([X, X]), "document", largest)
    assert np.allclose(found, [(X + Y) / 2**0.5] * 2)
