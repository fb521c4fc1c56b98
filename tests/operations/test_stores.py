"""One contract over all vector stores: what a user of each of them relies on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import MetadataMode, TextNode

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, check_similarity
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.encoding.base_model import fingerprint_of
from llama_index_embeddings_adapted.errors import StoreError
from tests.conftest import CountingEmbedding
from tests.support.stores import ENGINES, QUIET_ENGINES, Stores, postgres

DIM = 24
THINGS = ("apple", "whale", "bus", "sea", "bird", "car", "tree", "house")
PLACES = ("north", "south", "east", "west", "middle")
TEXTS = [f"a {thing} in the {place} of town" for thing in THINGS for place in PLACES]
QUERIES = ("where is the whale", "a bird from the east", "tree or house", "town")
RANDOM = np.random.default_rng(0)
QUERY_SIDE = LinearAdapter(RANDOM.standard_normal((DIM, DIM)), 0.1 * RANDOM.standard_normal(DIM))
BOTH_SIDES = LinearAdapter(RANDOM.standard_normal((DIM, DIM)), shared=True)

pytestmark = QUIET_ENGINES


@pytest.fixture(params=[*ENGINES, "postgres"])
def engine(request) -> str:
    return str(request.param)


@pytest.fixture
def stores(engine, request, tmp_path) -> Iterator[Stores]:
    if engine == "postgres":
        opened = postgres(request.getfixturevalue("pg_server"))
    else:
        opened = ENGINES[engine](tmp_path)
    with opened as make:
        suffix = f"_{abs(hash(request.node.name)) % 10**8}"  # PostgreSQL is shared by all tests
        yield lambda name, dim: make(name + suffix, dim)


@pytest.fixture
def base() -> CountingEmbedding:
    return CountingEmbedding(dim=DIM, embed_batch_size=16)


def nodes() -> list[TextNode]:
    ids = (f"00000000-0000-0000-0000-{row:012d}" for row in range(len(TEXTS)))
    return [TextNode(id_=i, text=t, metadata={"n": 1}) for i, t in zip(ids, TEXTS, strict=True)]


def built(base: Any, store: Any) -> VectorStoreIndex:
    storage = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(nodes(), storage_context=storage, embed_model=base)


def documents(base: CountingEmbedding) -> Vectors:
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes()]
    return base.vectors("document", texts)


def exact(query: Vectors, corpus: Vectors) -> list[str]:
    order = np.argsort(-l2_normalize(corpus) @ l2_normalize(query))[:10]
    return [nodes()[row].node_id for row in order]


def found(retriever: Any, query: str) -> list[str]:
    return [item.node.node_id for item in retriever.retrieve(query)]


def asked_documents(base: CountingEmbedding) -> int:
    return sum(role == "document" for role, _ in base.asked)


async def test_an_adapter_is_put_onto_an_index_and_no_document_embedded_again(stores, engine, base):
    index = built(base, stores("docs", DIM))
    corpus, before = documents(base), asked_documents(base)
    model = AdaptedEmbedding(base, QUERY_SIDE)
    retriever = index.as_retriever(similarity_top_k=10, embed_model=model)
    engineered = index.as_query_engine(similarity_top_k=10, embed_model=model, llm=MockLLM())
    plain = index.as_retriever(similarity_top_k=10)
    moved = 0
    for text in QUERIES:
        query = np.float32(base.vector("query", text))
        wanted = exact(QUERY_SIDE.apply(query), corpus)
        assert found(retriever, text) == wanted
        assert [item.node.node_id for item in engineered.query(text).source_nodes] == wanted
        assert found(plain, text) == exact(query, corpus)
        moved += found(plain, text) != wanted
    assert moved == len(QUERIES)
    assert asked_documents(base) == before
    if engine != "qdrant":  # a local one locks its folder: no second client can open it
        answers = await retriever.aretrieve(QUERIES[-1])
        assert [item.node.node_id for item in answers] == wanted
    check = check_similarity(index, model, cache_dir=False, show_progress=False)
    assert (check.similarity, check.scores, check.ascending) == SCORES[engine]
    assert check.of_unit_length
    assert check.agreement == 1.0
    assert check.documents == 40
    assert ("cut-offs of other stores" in check.note) == (check.scores != "s")
    problems = [problem[:20] for problem in check.problems]
    assert problems == ["Scores are distances"] * check.ascending


def test_an_index_is_rebuilt_for_both_sides_without_one_base_call(stores, base, tmp_path):
    cache = tmp_path / "cache"
    model = AdaptedEmbedding(base, BOTH_SIDES)
    plain = AdaptedEmbedding(base, QUERY_SIDE).for_documents(cache_dir=cache)
    old = built(plain, stores("old", DIM))
    plain.close()
    before = len(base.batches)
    given = None if old.vector_store.stores_text else nodes()
    new = quietly(old, model, stores("new", DIM), cache_dir=cache, nodes=given)
    assert len(base.batches) == before
    corpus = BOTH_SIDES.apply(documents(base), "document")
    for text in QUERIES:
        query = np.float32(base.vector("query", text))
        wanted = exact(BOTH_SIDES.apply(query), corpus)
        assert found(new.as_retriever(similarity_top_k=10), text) == wanted
        unchanged = old.as_retriever(similarity_top_k=10, embed_model=base)
        assert found(unchanged, text) == exact(query, documents(base))


def quietly(index: Any, model: AdaptedEmbedding, store: Any, **settings: Any) -> VectorStoreIndex:
    settings = {"check": False, "show_progress": False, **settings}
    return package.adapt_index(index, model, store, **settings)


def test_a_rebuild_that_breaks_goes_on_where_it_ended(stores, base, tmp_path, monkeypatch):
    model = AdaptedEmbedding(base, BOTH_SIDES)
    old = built(model.for_documents(cache_dir=False), stores("old", DIM))
    settings: dict[str, Any] = {"nodes": nodes(), "cache_dir": tmp_path / "c", "batch_size": 16}
    written: list[int] = []
    insert = VectorStoreIndex.insert_nodes

    def breaks(self: VectorStoreIndex, batch: Any, **kwargs: Any) -> None:
        if len(written) == 2:
            raise ConnectionError("the store went away")
        written.append(len(batch))
        insert(self, batch, **kwargs)

    monkeypatch.setattr(VectorStoreIndex, "insert_nodes", breaks)
    store = stores("new", DIM)
    with pytest.raises(ConnectionError, match="went away"):
        quietly(old, model, store, embed_missing=True, **settings)
    monkeypatch.setattr(VectorStoreIndex, "insert_nodes", insert)
    calls = len(base.batches)
    if not store.stores_text:  # it knows vectors, not which nodes they belong to
        with pytest.raises(StoreError, match=r"already holds nodes.*Pass an empty collection"):
            quietly(old, model, store, **settings)
        store = stores("newer", DIM)
    new = quietly(old, model, stores("new", DIM) if store.stores_text else store, **settings)
    assert len(base.batches) == calls
    assert written == [16, 16]
    retriever = new.as_retriever(similarity_top_k=len(TEXTS) + 10)
    assert sorted(found(retriever, "town")) == [node.node_id for node in nodes()]
    if store.stores_text:
        other = AdaptedEmbedding(base, LinearAdapter.identity(DIM, shared=True))
        with pytest.raises(StoreError, match="already holds nodes, and not from a call with"):
            quietly(old, other, stores("new", DIM), **settings)


def test_nodes_are_read_from_the_old_store_where_it_can_list_them(stores, base, tmp_path):
    model = AdaptedEmbedding(base, BOTH_SIDES)
    old = built(base, stores("old", DIM))
    store = stores("new", DIM)
    fingerprint_of(base)  # a model object is identified once
    calls = len(base.batches)
    if old.vector_store.class_name() == "ChromaVectorStore" or not store.stores_text:
        with pytest.raises(StoreError, match=r"40 of 40 texts have no vector of the base model"):
            quietly(old, model, store, cache_dir=tmp_path / "c")
        new = quietly(old, model, store, cache_dir=tmp_path / "c", embed_missing=True)
    else:  # from a handle on the collection alone, with the vectors in it
        handle = VectorStoreIndex.from_vector_store(stores("old", DIM), embed_model=base)
        new = quietly(handle, model, store, cache_dir=tmp_path / "c")
        assert len(base.batches) == calls
    query = BOTH_SIDES.apply(np.float32(base.vector("query", "town")))
    corpus = BOTH_SIDES.apply(documents(base), "document")
    answers = new.as_retriever(similarity_top_k=10).retrieve("town")
    assert [item.node.node_id for item in answers] == exact(query, corpus)
    assert answers[0].node.metadata == {"n": 1}


SCORES = {
    "simple": ("cosine", "s", False),
    "chroma": ("cosine", "exp(s - 1)", False),
    "lancedb": ("Euclidean distance", "exp(-d²)", False),
    "qdrant": ("cosine", "s", False),
    "faiss": ("Euclidean distance", "d²", True),
    "milvus": ("cosine", "s", False),
    "postgres": ("cosine", "s", False),
    "chroma, Euclidean": ("Euclidean distance", "exp(-d²)", False),
    "chroma, inner product": ("inner product", "exp(s - 1)", False),
    "faiss, inner product": ("inner product", "s", False),
    "milvus, Euclidean": ("Euclidean distance", "d²", True),
}


class Long(CountingEmbedding):
    """Its vectors have lengths from 0.3 to 3, by text."""

    def vector(self, role: str, text: str) -> list[float]:
        length = 0.3 + 2.7 * (len(text) * 7 % 11) / 10
        return [length * value for value in super().vector(role, text)]


def test_documents_of_other_lengths_are_a_problem_unless_a_store_takes_the_cosine(stores, tmp_path):
    base = Long(dim=DIM)
    index = built(base, stores("docs", DIM))
    model = AdaptedEmbedding(base, QUERY_SIDE)
    settings: dict[str, Any] = {"cache_dir": tmp_path / "c", "show_progress": False}
    check = check_similarity(index, model, **settings)
    assert not check.of_unit_length or check.similarity == "cosine"
    trouble = [problem for problem in check.problems if problem.startswith("Documents have")]
    assert bool(trouble) == (check.similarity != "cosine")
    if not trouble:
        return
    assert check.agreement < 0.95
    assert "model.normalized()" in trouble[0]
    cured = model.normalized()
    new = quietly(index, cured, stores("new", DIM), nodes=nodes(), embed_missing=True, **settings)
    assert check_similarity(new, cured, **settings).agreement == 1.0
    corpus, query = documents(base), np.float32(base.vector("query", "town"))
    wanted = exact(QUERY_SIDE.apply(query), corpus)
    assert found(new.as_retriever(similarity_top_k=10), "town") == wanted


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("vectors")


def test_a_real_model_finds_the_same_in_each_store(stores, minilm, real_cache):
    noise = np.random.default_rng(1).standard_normal((384, 384))
    adapter = LinearAdapter(np.eye(384) + 0.05 * noise)
    model = AdaptedEmbedding(minilm, adapter)
    side = model.for_documents(cache_dir=real_cache)  # embeds for the first store only
    index = built(side, stores("real", 384))
    texts = [node.get_content(MetadataMode.EMBED) for node in nodes()]
    corpus = np.float32(side.get_text_embedding_batch(texts))
    side.close()
    check = check_similarity(index, model, cache_dir=real_cache, show_progress=False)
    assert check.similarity != "unknown"
    assert check.agreement == 1.0
    retriever = index.as_retriever(similarity_top_k=10, embed_model=model)
    query = adapter.apply(np.float32(minilm.get_query_embedding("Where can I see a whale?")))
    assert found(retriever, "Where can I see a whale?") == exact(query, corpus)
