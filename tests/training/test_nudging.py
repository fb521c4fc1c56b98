from dataclasses import replace

import numpy as np
import pytest

from llama_index_embeddings_adapted.adapters.composites import StackedAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.training.auto.descent import listwise_nudges
from llama_index_embeddings_adapted.training.closed_form import nudge_n
from tests.support.synthetic import encoded, found_first, several_answers

X, Y = np.eye(2, dtype=np.float32)


def moved(adapter: NudgeAdapter | StackedAdapter, data: EncodedDataset) -> Vectors:
    return adapter.apply(data.documents, "document", data.keys)


@pytest.mark.parametrize("distance", [0.02, 0.1, 0.48, 1.0])
def test_nudge_n_is_that_of_its_authors(distance):
    nudge = pytest.importorskip("nudge", reason="the authors' package nudge-ft is missing")
    data = several_answers()
    answers = [data.relevance.relevant_to(row).tolist() for row in range(60)]
    asked = {"q_embs": data.queries, "q_ans_indx": answers}
    method = nudge.NUDGEN(device="cpu")
    theirs = method.finetune_embeddings(data.documents, asked, asked, gamma=distance)
    assert np.allclose(moved(nudge_n(data, distance), data), theirs, atol=1e-5)


def test_nudge_n_turns_by_the_distance_or_stays_and_moves_one_text_as_one():
    at_60 = np.float32([0.5, 0.75**0.5])
    near = np.float32([0.98, 0.04**0.5])
    # A squared distance of 1 is a turn by 60 degrees.
    data = encoded(np.array([Y, near, -X]), np.array([X, X, X]), [[0], [1], [2]])
    found = moved(nudge_n(data, 1.0), data)
    assert np.allclose(found[0], at_60)  # half way
    assert np.allclose(found[1], l2_normalize(near), atol=1e-6)  # it is nearer than that
    assert np.allclose(found[2], X)  # on the far side
    apart = encoded(np.array([X + Y, X - Y]), np.array([X, X]), [[0], [1]])
    same = np.zeros(2, dtype=np.int64)
    data = replace(apart, canonical_rows=same, keys=apart.keys[same])
    found = moved(nudge_n(data, 0.5), data)
    assert np.array_equal(found[0], found[1])
    # Their queries add up along X: there is nowhere to go.
    assert np.allclose(found, [X, X])


def mistaken() -> tuple[EncodedDataset, EncodedDataset]:
    """Documents whose queries ask from elsewhere, all in one direction per document.

    Returns queries to learn from, and one more of each document to judge on. The last 50 documents
    have no query.
    """
    random = np.random.default_rng(0)
    corpus = l2_normalize(random.standard_normal((100, 16)))
    seen_from = l2_normalize(corpus[:50] + 1.2 * l2_normalize(random.standard_normal((50, 16))))
    answers = np.repeat(np.arange(50), 4)
    queries = l2_normalize(seen_from[answers] + 0.1 * random.standard_normal((200, 16)))
    data = encoded(queries, corpus, [[answer] for answer in answers])
    last = np.arange(200) % 4 == 0
    return data.take(np.flatnonzero(~last)), data.take(np.flatnonzero(last))


def first(data: EncodedDataset, documents: Vectors) -> float:
    return found_first(data, data.queries, documents)


def fitted(data: EncodedDataset, epochs: int = 60, **options: float) -> NudgeAdapter:
    return listwise_nudges(data, epochs, **{"learning_rate": 0.02, **options})


def test_listwise_nudges_help_fresh_queries_also_where_a_sample_competes():
    train, test = mistaken()
    before, after = first(test, test.documents), first(test, moved(fitted(train), test))
    assert before < 0.7
    assert after > before + 0.2
    adapter = fitted(train, max_others=10)
    assert first(test, moved(adapter, test)) > before + 0.2
    assert adapter == fitted(train, max_others=10)


def test_a_document_is_drawn_away_from_queries_that_it_wrongly_wins() -> None:
    # Document 0 is nearest to the query of document 1, though its own query is nearer still.
    degrees = np.deg2rad([0, 20, 80])
    own, between, other = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    data = encoded(np.array([own, between]), np.array([own, other]), [[0], [1]])
    found = moved(fitted(data, epochs=20, shrinkage=0.0), data)
    assert found[0] @ between < own @ between - 0.01
    assert found[1] @ between > other @ between + 0.01


def test_seeds_shrinkage_the_bound_and_training_queries_decide_how_documents_move():
    train, _ = mistaken()
    one, again, other = (fitted(train, 3, seed=seed, batch_size=16) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    free = fitted(train, 20, shrinkage=0.0, max_drift=9.0).drift
    assert fitted(train, 20, shrinkage=1.0, max_drift=9.0).drift < free / 2
    assert fitted(train, 20, shrinkage=0.0, max_drift=free / 2).drift <= free / 2 * (1 + 1e-6)
    adapter = fitted(train, epochs=5)
    assert adapter.keys.tolist() == list(range(50))
    assert np.array_equal(moved(adapter, train)[50:], train.documents[50:])
