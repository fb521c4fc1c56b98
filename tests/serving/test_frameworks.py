import asyncio
import sys
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MockEmbedding

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter
from llama_index_embeddings_adapted.errors import MissingExtraError, OptionError

DIM = 16
pytestmark = pytest.mark.filterwarnings("default")  # those packages have their own


@pytest.fixture
def model(base) -> AdaptedEmbedding:
    return AdaptedEmbedding(base, LinearAdapter(-np.eye(DIM)))


@pytest.fixture
def langchain(model) -> Any:
    pytest.importorskip("langchain_core", reason="extra 'langchain' is missing")
    from llama_index_embeddings_adapted.serving.langchain import LangChainEmbeddings

    return LangChainEmbeddings(model)


@pytest.fixture
def haystack(monkeypatch) -> Any:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    return pytest.importorskip("haystack", reason="extra 'haystack' is missing")


def test_langchain_adapts_queries_and_leaves_documents(langchain, model):
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore

    assert isinstance(langchain, Embeddings)
    base: Any = model.base_embed_model
    assert np.allclose(langchain.embed_query("why?"), -np.array(base.vector("query", "why?")))
    assert langchain.embed_documents(["a", "b"]) == [base.vector("document", t) for t in "ab"]
    assert asyncio.run(langchain.aembed_query("why?")) == langchain.embed_query("why?")
    assert asyncio.run(langchain.aembed_documents(["a"])) == langchain.embed_documents(["a"])
    store = InMemoryVectorStore(langchain)
    store.add_texts(["apple pie", "blue whale"])
    found = store.similarity_search("apple pie", k=2)
    assert [each.page_content for each in found] == ["blue whale", "apple pie"]  # it turns queries


def test_an_embedding_of_langchain_is_a_base_model(langchain, tmp_path):
    bridge = pytest.importorskip("llama_index.embeddings.langchain", reason="extra 'langchain'")
    base = bridge.LangchainEmbedding(langchain)
    served = AdaptedEmbedding(base, LinearAdapter(-np.eye(DIM)))
    plain = langchain.embed_model.base_embed_model.vector("query", "why?")
    assert np.allclose(served.get_query_embedding("why?"), plain)  # turned twice
    assert np.allclose(asyncio.run(served.aget_query_embedding("why?")), plain)
    served.save_pretrained(tmp_path / "saved")
    again = AdaptedEmbedding.from_pretrained(tmp_path / "saved", base)
    assert again.get_text_embedding("a") == langchain.embed_documents(["a"])[0]


def test_haystack_pipelines_ask_an_adapted_model(haystack, model, tmp_path):
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from llama_index_embeddings_adapted.serving.haystack import AdaptedTextEmbedder

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    texts = ["apple pie", "blue whale"]
    vectors = zip(texts, map(model.get_text_embedding, texts), strict=True)
    store.write_documents([haystack.Document(content=t, embedding=v) for t, v in vectors])
    pipeline = haystack.Pipeline()
    pipeline.add_component("embedder", AdaptedTextEmbedder(model))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    found = pipeline.run({"embedder": {"text": "apple pie"}})["retriever"]["documents"]
    assert [each.content for each in found] == ["blue whale", "apple pie"]
    embedder = AdaptedTextEmbedder(model)
    assert asyncio.run(embedder.run_async("why?")) == embedder.run("why?")
    with pytest.raises(OptionError, match="text: expected one query, got list"):
        embedder.run(["why?"])
    with pytest.raises(OptionError, match="made of a folder"):
        pipeline.dumps()


def test_a_pipeline_of_haystack_is_saved_with_the_folder(haystack, tmp_path):
    from llama_index_embeddings_adapted.serving.haystack import AdaptedTextEmbedder

    saved = AdaptedEmbedding(MockEmbedding(embed_dim=4), LinearAdapter(-np.eye(4)))
    saved.save_pretrained(tmp_path / "adapter")
    pipeline = haystack.Pipeline()
    pipeline.add_component("embedder", AdaptedTextEmbedder(str(tmp_path / "adapter")))
    ours = AdaptedTextEmbedder.__module__
    again = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[ours])
    assert again.run({"embedder": {"text": "why?"}})["embedder"]["embedding"] == [-0.5] * 4


@pytest.mark.parametrize(("extra", "module"), [("langchain", "langchain_core"), ("haystack",) * 2])
def test_a_framework_that_is_missing_is_named_with_its_extra(extra, module, monkeypatch):
    ours = f"llama_index_embeddings_adapted.serving.{extra}"
    for name in [n for n in sys.modules if n == ours or n.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"llama-index-embeddings-adapted\[{extra}\]"):
        __import__(ours)
