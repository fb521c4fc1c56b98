from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode, TextNode

from llama_index_embeddings_adapted import AdaptedEmbedding, adapt_without_labels
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.evaluation.reports import LearningCurve
from llama_index_embeddings_adapted.lexical.bm25 import ranked
from llama_index_embeddings_adapted.training import unlabelled
from tests.conftest import QUIET, index_of, nodes_of


@pytest.fixture
def nodes(small) -> list[TextNode]:
    return nodes_of(small.corpus)


def test_an_index_stays_as_it_is_and_gains_words_and_a_prior(small, nodes, base):
    index = index_of(small.corpus, base)
    before = dict(index.vector_store.data.embedding_dict)
    log = [*small.queries.values(), next(iter(small.queries.values())), " "]
    found = adapt_without_labels(index, base, queries=log, **QUIET)
    assert index.vector_store.data.embedding_dict == before
    prior = found.views.prior
    assert len(prior.bank) == len(small.queries)
    assert (found.views.weight, prior.weight) == (0.4, 0.2)
    assert not prior.sources.any()
    moved = found.moved_documents(3)
    assert len(moved) == 3
    assert abs(next(iter(moved.values()))) == pytest.approx(abs(found.views.shifts).max())
    assert found.retrieve("tell me of the deep sea")[0].node_id == "d3"


def test_nodes_alone_are_enough_and_without_queries_words_are_all(nodes, base):
    found = adapt_without_labels(nodes, base, **QUIET)
    assert found.views.prior is None
    assert found.moved_documents() == {}
    assert found.retrieve("fast car")[0].node_id == "d5"
    for queries in ([], ["", ""], "one text"):
        with pytest.raises(OptionError, match="queries: expected a list of texts"):
            adapt_without_labels(nodes, base, queries=queries, **QUIET)
    with pytest.raises(OptionError, match="max_chunks: of use with llm"):
        adapt_without_labels(nodes, base, max_chunks=3, **QUIET)
    with pytest.raises(OptionError, match="got none"):
        adapt_without_labels([], base, **QUIET)
    with pytest.raises(OptionError, match=r"expected LlamaIndex nodes.*got str"):
        adapt_without_labels(["one text"], base, **QUIET)


def test_queries_are_texts_whatever_holds_them(nodes, base):
    queries = {"q": "what flies early", "r": "what swims"}
    held = [list(queries.values()), queries, (q for q in queries.values())]
    banks = [adapt_without_labels(nodes, base, queries=each, **QUIET).views.prior for each in held]
    assert all(np.array_equal(banks[0].bank, bank.bank) for bank in banks)
    for odd in ([1, 2], ["", " "], "text", 7):
        with pytest.raises(OptionError, match="queries: expected a list of texts with at least"):
            adapt_without_labels(nodes, base, queries=odd, **QUIET)


def test_written_questions_do_not_count_for_their_own_document(nodes, base, monkeypatch):
    asked: dict[str, Any] = {}

    def write(given: list[Any], llm: Any, **options: Any) -> Dataset:
        asked.update(options, llm=llm)
        corpus = {node.node_id: node.get_content(MetadataMode.EMBED) for node in given}
        return Dataset({"w": "what flies early"}, corpus, {"w": ["d4"]})

    monkeypatch.setattr(unlabelled, "generate_qa_embedding_pairs", write)
    options = {"queries": ["one of a log"], "llm": "an LLM", "num_questions_per_chunk": 1}
    found = adapt_without_labels(nodes, base, **options, **QUIET)
    assert asked == {"llm": "an LLM", "num_questions_per_chunk": 1, **QUIET}
    prior = found.views.prior
    assert prior.sources.tolist() == [0, *content_hashes([nodes[4].text]).tolist()]
    vectors, keys = found.views.vectors, found.views.keys
    assert prior.nearness(vectors, keys)[4] == pytest.approx(float(vectors[4] @ prior.bank[0]))
    assert prior.nearness(vectors, keys)[3] == pytest.approx(np.mean(prior.bank @ vectors[3]))


def test_queries_move_towards_what_words_find(nodes, base):
    """A query about each document, in words that its vector does not know."""
    log = [f"{node.text.split()[-1]} {number}" for number in range(40) for node in nodes]
    adapt = partial(adapt_without_labels, nodes, base, queries=log, **QUIET)
    plain, found = (adapt(pseudo_labels=asked) for asked in (False, True))
    assert plain.embed_model is base
    model = found.embed_model
    assert isinstance(model, AdaptedEmbedding)
    once = log[: len(nodes)]
    vectors, views = base.vectors("query", once), plain.views
    mixed = views.lexical, once, vectors, views.vectors, 0.4, views.shifts
    moves = np.array([model.get_query_embedding(query) for query in once]) - vectors
    nearer = found.views.vectors[ranked(*mixed, 1)[:, 0]] * moves
    assert nearer.sum(axis=1).mean() > 0.01
    assert found.views.prior is not None
    assert not np.allclose(found.views.shifts, plain.views.shifts)  # of adapted queries
    again = adapt_without_labels(nodes, model, queries=log, **QUIET)
    assert again.embed_model is model


@pytest.mark.parametrize(
    ("grows", "asked"),
    [
        ([False], [2]),
        ([True, False], [2, 4]),
        ([None, True, True], [2, 4, 5]),  # nothing gains yet: on, to max_chunks
    ],
)
def test_questions_are_asked_until_more_hardly_gain(small, nodes, base, monkeypatch, grows, asked):
    calls: list[int] = []
    curves = [each if each is None else LearningCurve((1, 2, 4), (0, 0, 0), each) for each in grows]

    def write(given: list[Any], llm: Any, *, max_chunks: int, **options: Any) -> Dataset:
        assert (options["styles"], options["embed_model"]) == (["question"], base)
        calls.append(max_chunks)
        return small

    def tune(*_: Any, curve: bool, **__: Any) -> Any:
        return SimpleNamespace(choice=SimpleNamespace(curve=curves[len(calls) - 1], verdict=""))

    monkeypatch.setattr(unlabelled, "generate_qa_embedding_pairs", write)
    monkeypatch.setattr(unlabelled, "tune", tune)
    settings: Any = {"first": 2, "max_chunks": 5, "styles": ["question"], **QUIET}
    assert unlabelled.generate_until_enough(nodes, "an LLM", base, **settings) is small
    assert calls == asked
    with pytest.raises(OptionError, match="first: expected at most max_chunks, 1, got 2"):
        unlabelled.generate_until_enough(nodes, "an LLM", base, **{**settings, "max_chunks": 1})
