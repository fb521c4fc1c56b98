import numpy as np
import pytest

from llama_index_embeddings_adapted import AdaptedEmbedding, DocumentPrior, LinearAdapter
from llama_index_embeddings_adapted.adapters.composites import StackedAdapter
from llama_index_embeddings_adapted.core.arrays import content_hashes, l2_normalize
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from tests.conftest import CountingEmbedding

DIM, COUNT = 8, 40
random = np.random.default_rng(0)
BANK = l2_normalize(random.standard_normal((30, DIM)) + 1.0)
DOCUMENTS = l2_normalize(random.standard_normal((COUNT, DIM)) + 0.5)
QUERIES = l2_normalize(random.standard_normal((20, DIM)) + 1.0)
KEYS = np.arange(1, COUNT + 1, dtype=np.uint64)


def test_h_is_the_mean_cosine_to_the_nearest_queries_of_other_documents():
    bank = np.float32([[1, 0], [0, 2], [-1, 0]])  # cosines to (1, 0): 1, 0 and -1
    for neighbours, expected in ((1, 1.0), (2, 0.5), (3, 0.0), (10, 0.0)):
        prior = DocumentPrior(bank, neighbours=neighbours)
        assert prior.nearness(np.float32([[3, 0]])) == pytest.approx([expected])
    bank = np.float32([[1, 0], [0, 1]])
    prior = DocumentPrior(bank, np.array([7, 0], dtype=np.uint64), neutral=0.3)
    document = np.float32([[1, 0], [1, 0]])
    keys = np.array([7, 8], dtype=np.uint64)
    assert prior.nearness(document, keys).tolist() == pytest.approx([0.0, 0.5])
    assert prior.nearness(document).tolist() == pytest.approx([0.5, 0.5])
    alone = DocumentPrior(bank[:1], np.array([7], dtype=np.uint64), neutral=0.3)
    assert alone.nearness(document, keys).tolist() == pytest.approx([0.3, 1.0])  # nothing known


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_in_two_more_dimensions_every_metric_ranks_by_cosine_minus_prior(weight):
    prior = DocumentPrior.of(BANK, DOCUMENTS, weight=weight)
    expected = QUERIES @ DOCUMENTS.T - weight * prior.nearness(DOCUMENTS)
    queries = prior.apply(QUERIES, "query")
    documents = prior.apply(DOCUMENTS, "document", KEYS)
    assert queries.shape == (20, DIM + 2)
    assert np.linalg.norm(documents, axis=1) == pytest.approx(np.sqrt(1 + weight**2))
    order = np.argsort(-expected, axis=1)
    inner = queries @ documents.T
    assert inner == pytest.approx(expected + weight * prior.neutral, abs=1e-5)
    squared = ((queries[:, None] - documents[None]) ** 2).sum(axis=2)
    for scores in (inner, l2_normalize(queries) @ l2_normalize(documents).T, -squared):
        assert np.array_equal(np.argsort(-scores, axis=1), order)


def test_values_of_their_own_and_undoing():
    prior = DocumentPrior.of(BANK, DOCUMENTS)
    before = prior.shifts(DOCUMENTS, KEYS)
    learnt = prior.with_values(KEYS[[3, 1]], np.float32([0.9, -0.5]))
    assert learnt.nearness(DOCUMENTS, KEYS)[[1, 3]] == pytest.approx([-0.5, 0.9])
    undone = learnt.without(KEYS[1:3])
    after = undone.shifts(DOCUMENTS, KEYS)
    assert after[[1, 2]] == pytest.approx([0.0, 0.0], abs=1e-7)
    assert np.array_equal(after[4:], before[4:])
    assert np.array_equal(undone.shifts(DOCUMENTS), before)  # without keys nobody is known
    assert undone.nearness(DOCUMENTS, KEYS)[3] == pytest.approx(0.9)


def test_limits_bound_what_a_score_may_change_and_the_most_moved_come_first():
    prior = DocumentPrior.of(BANK, DOCUMENTS)
    most = float(np.abs(prior.shifts(DOCUMENTS)).max())
    bounded = prior.changed(limit=most / 2)
    assert np.abs(bounded.shifts(DOCUMENTS)).max() == pytest.approx(most / 2)
    lengths = np.linalg.norm(bounded.apply(DOCUMENTS, "document"), axis=1)
    assert lengths == pytest.approx(lengths[0])
    assert bounded.changed(weight=0.4).limit == pytest.approx(most)
    assert DocumentPrior(BANK, weight=0.0).changed(weight=0.3).limit == pytest.approx(0.3)
    changes = -prior.shifts(DOCUMENTS)
    moved = prior.most_moved([f"d{row}" for row in range(COUNT)], DOCUMENTS, count=5)
    assert len(moved) == 5
    first = int(np.abs(changes).argmax())
    assert next(iter(moved.items())) == (f"d{first}", pytest.approx(float(changes[first])))


def test_of_a_large_bank_some_queries_are_drawn_the_same_each_time():
    one, other = (DocumentPrior.of(BANK, DOCUMENTS, most=10, seed=1) for _ in range(2))
    assert len(one.bank) == 10
    assert one == other
    assert one != DocumentPrior.of(BANK, DOCUMENTS, most=10, seed=2)
    assert one.neutral == pytest.approx(float(one.nearness(DOCUMENTS).mean()))


def test_hubs_lose_their_places():
    """One document stands near every query; without it each query finds its own."""
    queries = l2_normalize(np.eye(6, dtype=np.float32) + 0.8)
    documents = np.concatenate([np.eye(6) + 0.2, np.full((1, 6), 1.0)]).astype(np.float32)
    plain = np.argmax(queries @ l2_normalize(documents).T, axis=1)
    assert plain.tolist() == [6] * 6
    prior = DocumentPrior.of(queries, documents, weight=1.0)
    mapped = prior.apply(queries) @ prior.apply(documents, "document").T
    assert np.argmax(mapped, axis=1).tolist() == list(range(6))


def test_a_model_with_a_prior_saves_loads_and_rejects_a_plain_index(tmp_path):
    base = CountingEmbedding()
    texts = ["blue whale", "city bus", "fast car"]
    vectors = base.vectors("document", texts)
    prior = DocumentPrior.of(base.vectors("query", ("a whale", "a bus")), vectors)
    model = AdaptedEmbedding(base, StackedAdapter(LinearAdapter.identity(base.dim), prior))
    model.save_pretrained(tmp_path / "model")
    loaded = AdaptedEmbedding.from_pretrained(tmp_path / "model", base)
    query, document = loaded.get_query_embedding("a whale"), loaded.get_text_embedding(texts[0])
    assert len(query) == len(document) == base.dim + 2
    expected = prior.apply(vectors[:1], "document", content_hashes(texts[:1]))[0]
    assert np.allclose(document, expected, atol=1e-6)
    with pytest.raises((OptionError, ShapeError)):
        AdaptedEmbedding(base, LinearAdapter.identity(base.dim)).swap(model.adapter)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bank": np.zeros((0, 3))}, "bank"),
        ({"bank": np.float32([[np.nan, 1]])}, "finite"),
        ({"bank": BANK, "sources": KEYS[:2]}, "sources"),
        ({"bank": BANK, "keys": KEYS[:2], "values": [1.0]}, "values"),
        ({"bank": BANK, "keys": KEYS[[1, 0]], "values": [1.0, 1.0]}, "ascending order"),
        ({"bank": BANK, "weight": -0.1}, "weight: expected a number >= 0"),
        ({"bank": BANK, "neighbours": 0}, "neighbours: expected a whole number"),
        ({"bank": BANK, "limit": float("inf")}, "limit"),
    ],
)
def test_what_makes_no_prior_is_refused(arguments, match):
    with pytest.raises((OptionError, ShapeError), match=match):
        DocumentPrior(**arguments)


@pytest.mark.parametrize(
    ("documents", "keys", "match"),
    [
        (DOCUMENTS[:, 1:], KEYS, r"documents: expected \(n, 8\).*got shape \(40, 7\), 40 keys"),
        (DOCUMENTS, KEYS[1:], r"n keys or none, got shape \(40, 8\), 39 keys"),
        (DOCUMENTS, None, "keys: expected those of the documents, as sources are, got None"),
    ],
)
def test_documents_of_another_shape_and_sources_without_keys_are_refused(documents, keys, match):
    with pytest.raises((OptionError, ShapeError), match=match):
        DocumentPrior.of(BANK, documents, keys, sources=KEYS[:30]).shifts(documents, keys)


def test_values_and_sources_are_one_for_each_document_and_query():
    for values in ([0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(ShapeError, match="values: expected 2 of them, got"):
            DocumentPrior(BANK).with_values(KEYS[:2], np.float32(values))
    with pytest.raises(ShapeError, match="sources: expected 30 of them, got 3"):
        DocumentPrior.of(BANK, DOCUMENTS, KEYS, sources=KEYS[:3])
