"""What rebuilding does on every store alike; what differs between stores is in test_stores."""

import numpy as np
import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.indices import SummaryIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, adapt_index, check_similarity
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter, UnitAdapter
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.errors import OptionError, StoreError
from tests.support.stores import faiss, faiss_ip, qdrant

DIM = 16
TEXTS = [f"document {number} about thing {number * 7 % 13}" for number in range(30)]
SHARED = package.LinearAdapter(np.random.default_rng(0).standard_normal((DIM, DIM)), shared=True)

IDS = [f"00000000-0000-0000-0000-{row:012d}" for row in range(len(TEXTS))]


def nodes() -> list[TextNode]:
    return [TextNode(id_=name, text=text) for name, text in zip(IDS, TEXTS, strict=True)]


@pytest.fixture
def model(base) -> AdaptedEmbedding:
    return AdaptedEmbedding(base, SHARED)


@pytest.fixture
def old(base) -> VectorStoreIndex:
    return VectorStoreIndex(nodes(), embed_model=base)


def test_nodes_are_copied_not_changed_and_only_those_that_a_nudge_knows_are_moved(old, base, quiet):
    nudges = NudgeAdapter.of(content_hashes(TEXTS[:1]), np.ones((1, DIM), dtype=np.float32))
    store, given, model = SimpleVectorStore(), nodes(), AdaptedEmbedding(base, nudges)
    new = adapt_index(old, model, store, nodes=given, embed_missing=True, **quiet)
    assert all(node.embedding is None for node in given)
    assert sorted(new.docstore.docs) == IDS
    assert new._embed_model is model
    for row, text in enumerate(TEXTS):
        same = np.allclose(store.get(IDS[row]), base.vector("document", text), atol=1e-6)
        assert same == (row > 0)


def test_documents_that_were_not_changed_are_not_taken_in_again(model, base, quiet):
    documents = [Document(text=f"{text}. " * 9, id_=text) for text in TEXTS[:3]]
    settings = {
        "embed_model": base,
        "transformations": [SentenceSplitter(chunk_size=30, chunk_overlap=0)],
    }
    old = VectorStoreIndex.from_documents(documents, **settings)
    new = adapt_index(old, model, SimpleVectorStore(), embed_missing=True, **quiet)
    count = len(new.docstore.docs)
    documents[0].set_content("edited. " * 20)
    assert new.refresh_ref_docs(documents) == [True, False, False]
    assert count / 3 < len(new.docstore.docs) <= count


def test_missing_vectors_and_nodes_no_store_lists_are_an_error(old, model, quiet, base, tmp_path):
    store = SimpleVectorStore()
    with pytest.raises(StoreError, match=r"30 of 30 texts have no vector.*embed_missing=True"):
        adapt_index(old, model, store, **quiet)
    assert not store.data.embedding_dict
    with faiss(tmp_path) as stores:
        storage = StorageContext.from_defaults(vector_store=stores("old", DIM))
        bare = VectorStoreIndex([], storage_context=storage, embed_model=base)
        with pytest.raises(StoreError, match=r"FaissVectorStore cannot list.*Pass the nodes: to"):
            adapt_index(bare, model, SimpleVectorStore(), **quiet)
    with pytest.raises(StoreError, match="The index is empty"):
        adapt_index(VectorStoreIndex([], embed_model=base), model, store, **quiet)


def test_the_result_is_searched_and_what_spoils_it_is_warned_of(old, model, quiet, tmp_path):
    with faiss(tmp_path) as stores, pytest.warns(UserWarning, match="Scores are distances"):
        adapt_index(old, model, stores("new", DIM), embed_missing=True, **quiet)
    adapt_index(old, model, SimpleVectorStore(), **quiet)  # a warning would be an error


def test_documents_that_are_not_of_unit_length_are_warned_of_or_made_so(old, base, quiet, tmp_path):
    stretched = package.LinearAdapter(np.diag(np.arange(1.0, 17.0)), normalize=False, shared=True)
    model = AdaptedEmbedding(base, stretched)
    with faiss_ip(tmp_path) as stores:
        with pytest.warns(UserWarning, match="have length") as caught:
            new = adapt_index(old, model, stores("a", DIM), embed_missing=True, **quiet)
        texts = [str(warning.message) for warning in caught]
        assert texts[0].startswith("Documents have lengths from")
        assert "model.normalized()" in texts[0]
        assert texts[1].startswith("Queries have length")
        assert check_similarity(new, model, **quiet).problems == texts
        cured = model.normalized()
        assert isinstance(cured.adapter.adapters[-1], UnitAdapter)
        new = adapt_index(old, cured, stores("b", DIM), **quiet)
        assert not check_similarity(new, cured, **quiet).problems


def test_an_index_of_another_model_and_bad_arguments_are_seen(old, model, quiet, base):
    check = check_similarity(old, model, **quiet)  # the adapter moves documents: not rebuilt
    assert check.similarity == "unknown"
    assert "Rebuild it with adapt_index" in check.problems[0]
    assert "unknown" in str(check)
    assert check.to_dict()["problems"] == check.problems
    plain = check_similarity(old, model.base_embed_model, **quiet)
    assert (plain.similarity, plain.problems) == ("cosine", [])
    assert "No problem found." in str(plain)
    good = {"index": old, "embed_model": model, "vector_store": SimpleVectorStore()}
    for change, error, match in (
        ({"index": SummaryIndex([])}, OptionError, "expected a VectorStoreIndex, got SummaryIndex"),
        ({"embed_model": base}, OptionError, "expected an AdaptedEmbedding, got Count"),
        ({"vector_store": "chroma"}, OptionError, "expected a LlamaIndex vector store"),
        ({"batch_size": 0}, OptionError, "batch_size: expected a whole number >= 1"),
        ({"vector_store": old.vector_store}, StoreError, "got the one of the index"),
    ):
        with pytest.raises(error, match=match):
            adapt_index(**{**good, **quiet, **change})
    with pytest.raises(OptionError, match="sample: expected a whole number >= 10"):
        check_similarity(old, model, sample=5, **quiet)
    empty = VectorStoreIndex([], embed_model=base)
    with pytest.raises(OptionError, match="expected documents in it, found none"):
        check_similarity(empty, base, **quiet)


def test_a_shift_of_scores_is_said_with_the_cutoff_that_as_many_queries_pass(old, base, quiet):
    weight = np.eye(DIM) + np.random.default_rng(1).standard_normal((DIM, DIM))
    model = AdaptedEmbedding(base, package.LinearAdapter(weight))
    queries = [f"a question {number} about thing {number % 7}" for number in range(40)]
    check = check_similarity(old, model, queries=queries, **quiet)
    retrievers = [old.as_retriever(embed_model=each) for each in (base, model)]
    best = [[each.retrieve(text)[0].score for text in queries] for each in retrievers]
    assert check.shift == pytest.approx(np.mean(best[1]) - np.mean(best[0]), abs=1e-5)
    assert abs(check.shift) > 0.01
    for cutoff in (0.4, 0.5, 0.6, float(np.median(best[0]))):
        cutoffs = cutoff, check.equivalent_cutoff(cutoff)
        before, after = (np.sum(np.array(b) >= c) for b, c in zip(best, cutoffs, strict=True))
        assert abs(before - after) <= 1
    assert check.equivalent_cutoff(2) == pytest.approx(max(best[1]) + 2 - max(best[0]), abs=1e-5)
    assert f"changes by {check.shift:+.3f} on average" in str(check)
    assert len(check.to_dict()["best_scores"]) == 40
    plain = check_similarity(old, model, **quiet)
    assert plain.shift is None
    with pytest.raises(OptionError, match="pass queries=… to check_similarity"):
        plain.equivalent_cutoff(0.5)
    with pytest.raises(OptionError, match="queries: expected at least 30 or none, got 1"):
        check_similarity(old, model, queries=["one"], **quiet)
    with pytest.raises(OptionError, match="the adapter moves documents"):
        check_similarity(old, AdaptedEmbedding(base, SHARED), queries=queries, **quiet)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")
def test_a_call_after_the_last_writes_nothing_but_what_was_dropped(model, old, quiet, tmp_path):
    with qdrant(tmp_path) as stores:
        for _ in range(2):
            new = adapt_index(old, model, stores("new", DIM), embed_missing=True, **quiet)
            found = new.as_retriever(similarity_top_k=100).retrieve("town")
            assert sorted(hit.node_id for hit in found) == sorted(n.node_id for n in nodes())
        stores("new", DIM).client.delete_collection("new")
        again = adapt_index(old, model, stores("new", DIM), embed_missing=True, **quiet)
        assert len(again.as_retriever(similarity_top_k=100).retrieve("town")) == len(nodes())
