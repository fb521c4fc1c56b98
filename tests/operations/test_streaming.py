from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, adapt_nodes, adapt_vectors
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import OptionError, StoreError
from tests.conftest import CountingEmbedding
from tests.operations.test_rebuild import DIM, SHARED, TEXTS, nodes
from tests.support.stores import QUIET_ENGINES, chroma, faiss_ip, lancedb

pytestmark = QUIET_ENGINES
NAMED = {"chroma": chroma, "lancedb": lancedb}


class KilledError(Exception): ...


@pytest.fixture
def model(base, quiet) -> AdaptedEmbedding:
    package.embed_corpus(TEXTS, base, **quiet)
    return AdaptedEmbedding(base, SHARED)


def expected(model: AdaptedEmbedding) -> np.ndarray:
    return SHARED.apply(model.base_embed_model.vectors("document", TEXTS), "document")


def found(store: Any, query: np.ndarray, k: int = 30) -> list[str]:
    answer = store.query(VectorStoreQuery(query_embedding=query.tolist(), similarity_top_k=k))
    return list(answer.ids or [])


@pytest.mark.parametrize("engine", [*NAMED.values(), faiss_ip], ids=[*NAMED, "faiss"])
def test_a_stream_of_nodes_is_found_by_vectors_of_the_adapted_model(engine, model, quiet, tmp_path):
    model = model.normalized()
    asked = len(model.base_embed_model.asked)
    with engine(tmp_path) as stores:
        store = stores("new", DIM)
        assert adapt_nodes(nodes(), model, store, batch_size=8, **quiet) == 30
        vectors = l2_normalize(expected(model))
        for row in (0, 7, 29):
            assert found(store, vectors[row], 1)[0][-2:].lstrip("0") == (str(row) if row else "")
    assert len(model.base_embed_model.asked) == asked


@pytest.mark.parametrize("engine", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("again", [8, 5, 64])
def test_a_killed_call_goes_on_and_doubles_none(engine, again, model, quiet, tmp_path, monkeypatch):
    with engine(tmp_path) as stores:
        store = stores("new", DIM)
        kind, calls = type(store), 0
        add = kind.add

        def dies(self: Any, batch: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            done = add(self, batch, **options)  # written, and then the light goes out
            if calls == 3:
                raise KilledError
            return done

        monkeypatch.setattr(kind, "add", dies)
        with pytest.raises(KilledError):
            adapt_nodes(nodes(), model, store, batch_size=8, **quiet)
        monkeypatch.setattr(kind, "add", add)
        assert adapt_nodes(nodes(), model, stores("new", DIM), batch_size=again, **quiet) == 30
        there = found(stores("new", DIM), expected(model)[0], 100)
        assert sorted(there) == [node.node_id for node in nodes()]
        with pytest.raises(StoreError, match="already holds nodes"):
            adapt_nodes(nodes(), model, stores("new", DIM), **quiet)


def test_other_nodes_than_an_earlier_call_wrote_are_refused(model, quiet, tmp_path):
    def cut() -> Iterator[TextNode]:
        yield from nodes()[:16]
        raise KilledError

    with lancedb(tmp_path) as stores:
        fresh = AdaptedEmbedding(CountingEmbedding(seed=1), SHARED)
        with pytest.raises(StoreError, match=r"30 of 30 texts.*embed_corpus"):
            adapt_nodes(nodes(), fresh, stores("other", DIM), **quiet)
        assert adapt_nodes(nodes(), fresh, stores("other", DIM), embed_missing=True, **quiet) == 30
        with pytest.raises(KilledError):
            adapt_nodes(cut(), model, stores("new", DIM), batch_size=8, **quiet)
        with pytest.raises(StoreError, match="wrote 16 other nodes"):
            adapt_nodes(nodes()[::-1], model, stores("new", DIM), batch_size=8, **quiet)
        with pytest.raises(StoreError, match="wrote 16 nodes, these are 8"):
            adapt_nodes(nodes()[:8], model, stores("new", DIM), batch_size=8, **quiet)
        assert adapt_nodes(nodes(), model, stores("new", DIM), batch_size=8, **quiet) == 30


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_vectors_of_a_stream_of_texts_become_a_mapped_file(batch_size, model, quiet, tmp_path):
    path = tmp_path / "vectors.npy"
    written = adapt_vectors(iter(TEXTS), model, path, batch_size=batch_size, **quiet)
    assert isinstance(written, np.memmap)
    assert np.allclose(written, expected(model), atol=1e-5)
    assert np.array_equal(np.load(path), written)


def test_a_file_of_vectors_appears_whole_or_not_at_all(model, quiet, tmp_path):
    def cut() -> Iterator[str]:
        yield from TEXTS
        raise KilledError

    path = tmp_path / "vectors.npy"
    with pytest.raises(KilledError):
        adapt_vectors(cut(), model, path, **quiet)
    for change, match in (
        ({"texts": []}, "at least one, got none"),
        ({"embed_model": model.base_embed_model}, "expected an AdaptedEmbedding, got Counting"),
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
    ):
        with pytest.raises(OptionError, match=match):
            adapt_vectors(**{"texts": TEXTS, "embed_model": model, "path": path, **quiet, **change})
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]
