import json
import pickle

import numpy as np
import pytest

from llama_index_embeddings_adapted import BM25Index, ComposedEmbedding, LexicalEmbedding
from llama_index_embeddings_adapted.errors import DatasetError, FolderError, OptionError
from llama_index_embeddings_adapted.lexical.embedding import ARRAYS, CONFIG
from tests.conftest import CountingEmbedding, index_of

RANDOM = np.random.default_rng(0)
WORDS = [f"word{at}" for at in range(500)]
TEXTS = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(5, 40))) for _ in range(300)]
QUERIES = [" ".join(RANDOM.choice(text.split(), 4)) for text in TEXTS[:50]]


@pytest.fixture(scope="module")
def words() -> LexicalEmbedding:
    return LexicalEmbedding.of(TEXTS, dimensions=4096)


def test_inner_products_are_bm25_and_noise_that_falls_with_the_dimensions(words):
    exact = BM25Index.of({str(at): text for at, text in enumerate(TEXTS)})
    expected = np.stack([exact.scores(query) for query in QUERIES])
    errors = {}
    for model in (words, LexicalEmbedding.of(TEXTS, dimensions=256)):
        found = model.vectors(QUERIES, "query") @ model.vectors(TEXTS, "document").T
        best = np.argmax(expected, axis=1)
        assert (np.argsort(-found, axis=1)[:, 0] == best).mean() > 0.9
        found *= ((found * expected).sum(axis=1) / (found**2).sum(axis=1))[:, None]
        errors[model.dimensions] = float(np.std(found - expected))
        asked = np.linalg.norm(model._words(QUERIES, "query"), axis=1)  # over highest scores
        asked = np.mean(asked * [exact.highest(query) for query in QUERIES])
        given = np.linalg.norm(model._words(TEXTS, "document"), axis=1).mean()
        assert errors[model.dimensions] < 1.2 * asked * given / model.dimensions**0.5
    assert errors[4096] < 0.4 * errors[256]


def test_all_vectors_are_unit_also_of_what_was_not_seen(words):
    odd = ["", "😀", "new words only", "東京都の天気", "مرحبا", "parseHTTPHeader", "x " * 200_000]
    for role in ("query", "document"):
        vectors = words.vectors([*odd, *TEXTS[:20]], role)
        assert vectors.shape == (len(odd) + 20, 4096)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)
    one, other = words.vectors(["zebra crossing", "a Zebra"], "document")
    query = words.vectors(["zebra"], "query")[0]
    assert min(query @ one, query @ other) > 0.01
    found = words.vectors(["", "word1"], "query") @ words.vectors([""], "document").T
    assert abs(found).max() < 1e-6
    together = words.get_text_embedding_batch(TEXTS[:30])
    assert np.allclose(together, [words.get_text_embedding(text) for text in TEXTS[:30]])
    assert words.get_query_embedding("word1") == words.vectors(["word1"], "query")[0].tolist()


def test_saved_and_loaded_it_is_the_same_and_holds_no_word(words, tmp_path):
    words.save_pretrained(tmp_path / "words")
    again = LexicalEmbedding.from_pretrained(tmp_path / "words")
    copied = pickle.loads(pickle.dumps(words))
    for model in (again, copied):
        assert np.array_equal(model.vectors(QUERIES, "query"), words.vectors(QUERIES, "query"))
        assert np.array_equal(model.vectors(TEXTS, "document"), words.vectors(TEXTS, "document"))
    content = b"".join(path.read_bytes() for path in (tmp_path / "words").iterdir())
    assert b"word1" not in content
    (tmp_path / "words" / CONFIG).write_text(json.dumps({"format_version": 1, "dimensions": "x"}))
    with pytest.raises(FolderError, match="not a saved model of words"):
        LexicalEmbedding.from_pretrained(tmp_path / "words")
    (tmp_path / "words" / ARRAYS).unlink()
    with pytest.raises(FolderError):
        LexicalEmbedding.from_pretrained(tmp_path / "words")
    with pytest.raises(DatasetError, match="at least one document"):
        LexicalEmbedding.of([])
    with pytest.raises(OptionError, match="dimensions: expected a number >= 8"):
        LexicalEmbedding.of(["a"], dimensions=4)
    with pytest.raises(OptionError, match="idf: expected 262144 numbers"):
        LexicalEmbedding(np.ones(3, np.float32))


def test_beside_another_model_one_vector_finds_codes(tmp_path):
    base = CountingEmbedding(dim=4)
    corpus = {f"n{at}": f"report {at:04d} of the year" for at in range(100)}
    model = ComposedEmbedding(base, LexicalEmbedding.of(corpus.values()), weight=3.0)
    retriever = index_of(corpus, model).as_retriever(similarity_top_k=1)
    found = [retriever.retrieve(f"what says {at:04d}")[0].node_id for at in range(100)]
    assert np.mean([name == f"n{at}" for at, name in enumerate(found)]) > 0.95
    model.save_pretrained(tmp_path / "composed")
    again = ComposedEmbedding.from_pretrained(tmp_path / "composed", base)
    assert np.allclose(again.get_query_embedding("0042"), model.get_query_embedding("0042"))


def test_of_usual_words_and_of_shares_it_says_what_the_index_says(tmp_path):
    asked = [f"{WORDS[0]} {query}" for query in QUERIES]
    exact = BM25Index.of({str(at): text for at, text in enumerate(TEXTS)}, asked)
    words = LexicalEmbedding.of(TEXTS, asked, dimensions=16_384)
    words.save_pretrained(tmp_path / "words")
    again = LexicalEmbedding.from_pretrained(tmp_path / "words")
    found = again.vectors(asked, "query") @ words.vectors(TEXTS, "document").T
    expected = np.stack([exact.shares(query) for query in asked])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9
    plain = LexicalEmbedding.of(TEXTS, dimensions=16_384)
    worse = plain.vectors(asked, "query") @ plain.vectors(TEXTS, "document").T
    assert np.std(found * words.scale - expected) < 0.8 * np.std(worse * plain.scale - expected)
