from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.adapters.composites import FEATURES, Gate, GatedAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.training.auto import cross_fitting
from llama_index_embeddings_adapted.training.auto.cross_fitting import fit_gate
from tests.support.synthetic import encoded


def at(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def gate(*, queries: Any = (60, 90), others: Any = (90,), **more: Any) -> Gate:
    shares, coefficients = more.get("shares", (1, 1)), more.get("coefficients", (0,) * 7)
    low, high = (np.full(6, sign * more.get("bound", 9.0)) for sign in (-1, 1))
    places = at(*queries), at(60), at(*others)
    return Gate(*places, np.array(shares), np.array(coefficients), low, high)


def test_features_are_cosines_to_training_queries_and_to_both_kinds_of_documents():
    # At 0 degrees: the training queries have cosines 1/2 and 0, the documents 1/2 and 0. The log
    # odds are 0.5 / 0.05 - 0 / 0.05 = 10, times the temperature of 0.05.
    found = gate().features(at(0))
    assert found.shape == (1, len(FEATURES))
    assert np.allclose(found, [[0.5, 0.25, 0.5, 0.0, 0.5, 0.5]], atol=1e-6)
    found = gate(queries=(0, 60, 90, 120, 180)).features(at(0))
    assert np.allclose(found[0, :2], [1.0, 0.5], atol=1e-6)  # (1 + 1/2 + 0) / 3


def test_documents_left_out_are_made_up_for_and_none_are_as_far_as_can_be():
    # A sample of a quarter stands for four times as much mass.
    whole, sampled = gate(), gate(shares=(0.25, 1.0))
    more = sampled.features(at(0)) - whole.features(at(0))
    assert np.allclose(more, [[0, 0, 0, 0, 0, 0.05 * np.log(4)]], atol=1e-6)
    found = gate(others=()).features(at(0, 180))
    assert np.allclose(found[0], [0.5, 0.25, 0.5, -1.0, 1.5, 1.5], atol=1e-6)
    assert np.isfinite(found).all()


def test_the_probability_is_logistic_in_the_features_and_shifted_by_odds():
    # log odds 4 · 0.5 - 1 = 1
    found = gate(coefficients=(4, 0, 0, 0, 0, 0, -1)).known(at(0))
    assert found == pytest.approx([1 / (1 + np.exp(-1))])
    assert gate().known(at(0, 90)).tolist() == [0.5, 0.5]
    assert gate().with_odds(np.log(3)).known(at(0)) == pytest.approx([0.75])
    assert gate().with_odds(-50.0).known(at(0)) == pytest.approx([0.0], abs=1e-6)
    assert gate().with_odds(50.0).known(at(0)) == pytest.approx([1.0])


def test_features_beyond_what_was_seen_count_as_the_nearest_that_was():
    found = gate(coefficients=(4, 0, 0, 0, 0, 0, 0), bound=0.25).known(at(0, 210))
    assert found == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], abs=1e-6)


def test_a_gated_adapter_goes_from_one_map_to_the_other_with_the_probability():
    general = LinearAdapter.identity(2)
    special = LinearAdapter(np.array([[0, -1], [1, 0]]))  # by 90 degrees
    for odds, degrees in ((-50.0, 0.0), (0.0, 45.0), (50.0, 90.0)):
        adapter = GatedAdapter(general, special, gate().with_odds(odds))
        assert np.allclose(adapter.apply(at(0)), at(degrees), atol=1e-6)
        assert not adapter.adapts_documents


def test_a_gate_or_maps_that_do_not_fit_are_refused():
    arrays = dict(vars(gate()))
    with pytest.raises(ShapeError, match=r"coefficients: expected \(7,\), got \(6,\)"):
        Gate(**{**arrays, "coefficients": np.ones(6)})
    with pytest.raises(ShapeError, match=r"asked: expected \(1, 2\), got \(1, 3\)"):
        Gate(**{**arrays, "asked": np.ones((1, 3))})
    plain = LinearAdapter.identity(2)
    with pytest.raises(ShapeError, match="special: expected 2 to 2 dimensions"):
        GatedAdapter(plain, LinearAdapter.identity(3), gate())
    with pytest.raises(OptionError, match="special: expected an adapter that leaves documents"):
        GatedAdapter(plain, LinearAdapter.identity(2, shared=True), gate())


def two_kinds() -> tuple[EncodedDataset, np.ndarray, np.ndarray]:
    """100 documents with three training queries each, 100 without; then a fresh query for each.

    Returns the data, fresh queries about the first hundred, and about the second.
    """
    random = np.random.default_rng(0)
    corpus = l2_normalize(random.standard_normal((200, 16)))

    def ask(documents: np.ndarray) -> np.ndarray:
        return l2_normalize(documents + 0.15 * random.standard_normal(documents.shape))

    answers = np.repeat(np.arange(100), 3)
    data = encoded(ask(corpus[answers]), corpus, [[answer] for answer in answers])
    return data, ask(corpus[:100]), ask(corpus[100:])


def test_fresh_queries_about_known_documents_are_told_from_others_by_one_gate_a_seed():
    data, known, new = two_kinds()
    found = fit_gate(data)
    of_known, of_new = found.known(known), found.known(new)
    # The share of pairs in the right order, the area under the curve.
    assert (of_known[:, None] > of_new[None, :]).mean() > 0.95
    assert of_known.mean() > 0.8
    assert of_new.mean() < 0.2
    first, again = (fit_gate(data, seed=3).known(known) for _ in range(2))
    assert np.array_equal(first, again)


def test_a_gate_remembers_samples_of_large_sets_and_their_shares(monkeypatch):
    monkeypatch.setattr(cross_fitting, "_MOST_QUERIES", 50)
    monkeypatch.setattr(cross_fitting, "_MOST_DOCUMENTS", 40)
    data, known, new = two_kinds()
    found = fit_gate(data)
    assert [len(found.queries), len(found.asked), len(found.others)] == [50, 40, 40]
    assert found.shares == pytest.approx([0.4, 0.4])
    assert found.known(known).mean() > found.known(new).mean()


def test_of_others_each_text_counts_once_and_without_any_a_gate_still_learns():
    data, known, _ = two_kinds()
    twins = np.arange(200)
    twins[101:] = 100  # all others have the same text
    same = replace(data, canonical_rows=twins, keys=data.keys[twins])
    assert len(fit_gate(same).others) == 1
    asked_only = encoded(data.queries, data.documents[:100], [[i // 3] for i in range(300)])
    found = fit_gate(asked_only)
    assert found.others.shape == (0, 16)
    assert np.isfinite(found.known(known)).all()


def test_where_there_is_one_kind_only_every_query_counts_one_half():
    features = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    for known in (np.ones(10, dtype=bool), np.zeros(10, dtype=bool)):
        assert cross_fitting._logistic(features, known).tolist() == [0.0] * 7
