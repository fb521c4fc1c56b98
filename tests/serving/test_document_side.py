import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llama_index.core import Document
from llama_index.core.ingestion import IngestionCache, IngestionPipeline

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.encoding.base_model import fingerprint_of
from llama_index_embeddings_adapted.errors import OptionError
from tests.conftest import CountingEmbedding

TEXTS = ["apple pie", "blue whale", "city bus"]
DOCUMENTS = [Document(text=text, id_=text) for text in TEXTS]
ADAPTER = LinearAdapter(np.random.default_rng(0).standard_normal((16, 16)))
NUDGES = NudgeAdapter.of(content_hashes(["apple pie"]), np.ones((1, 16), dtype=np.float32))


class Named(CountingEmbedding):
    def to_dict(self, **kwargs: object) -> dict[str, object]:
        return {"class_name": "Named", "model_name": "the-same"}


def ingested(model: object, cache: IngestionCache) -> np.ndarray:
    pipeline = IngestionPipeline(transformations=[model], cache=cache)
    return np.array([node.embedding for node in pipeline.run(documents=DOCUMENTS)])


def test_a_pipeline_that_ran_with_the_base_model_embeds_nothing_for_an_adapter(base, tmp_path):
    cache = IngestionCache()
    before = ingested(base, cache)
    side = AdaptedEmbedding(base, ADAPTER).for_documents(cache_dir=tmp_path)
    assert side.to_dict() == base.to_dict()
    calls = len(base.batches)
    assert np.array_equal(ingested(side, cache), before)
    other = AdaptedEmbedding(base, LinearAdapter.identity(16)).for_documents(cache_dir=tmp_path)
    assert np.array_equal(ingested(other, cache), before)
    assert len(base.batches) == calls


def test_it_goes_to_the_workers_of_a_pipeline_and_is_copied(base, tmp_path):
    for adapter in (ADAPTER, NUDGES):
        side = AdaptedEmbedding(base, adapter).for_documents(cache_dir=tmp_path)
        pipeline = IngestionPipeline(transformations=[side], disable_cache=True)
        alone, two = (pipeline.run(documents=DOCUMENTS, num_workers=n) for n in (None, 2))
        assert [node.embedding for node in two] == [node.embedding for node in alone]
        again = copy.deepcopy(side)
        assert again.to_dict() == pickle.loads(pickle.dumps(side)).to_dict() == side.to_dict()
        assert again.get_text_embedding(TEXTS[0]) == side.get_text_embedding(TEXTS[0])


def test_two_bases_of_one_name_do_not_share_vectors(tmp_path):
    first, second = Named(seed=0), Named(seed=1)
    assert first.to_dict() == second.to_dict()
    for cache_dir in (tmp_path, False):
        cache = IngestionCache()
        models = [AdaptedEmbedding(base, ADAPTER) for base in (first, second)]
        sides = [model.for_documents(cache_dir=cache_dir) for model in models]
        assert sides[0].to_dict() == first.to_dict()
        more = {"fingerprint": fingerprint_of(second).digest}
        assert sides[1].to_dict() == {**second.to_dict(), **more}
        for base, side in zip((first, second), sides, strict=True):
            plain = base.vectors("document", TEXTS)
            assert np.allclose(ingested(side, cache), plain, atol=1e-6)
    again = AdaptedEmbedding(Named(seed=0), ADAPTER).for_documents(cache_dir=tmp_path)
    assert again.to_dict() == first.to_dict()  # known as the first, also in another process


def test_of_models_that_ask_at_once_one_is_the_first(tmp_path):
    models = [AdaptedEmbedding(Named(seed=seed), ADAPTER) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        sides = list(threads.map(lambda model: model.for_documents(cache_dir=tmp_path), models))
    assert sum("fingerprint" not in side.to_dict() for side in sides) == 1
    assert len({str(side.to_dict()) for side in sides}) == 8


def test_each_text_is_embedded_once_whatever_the_adapter_and_the_index(base, tmp_path):
    first = AdaptedEmbedding(base, ADAPTER).for_documents(cache_dir=tmp_path)
    vectors = first.get_text_embedding_batch([*TEXTS, TEXTS[0]])
    assert np.allclose(vectors, base.vectors("document", [*TEXTS, TEXTS[0]]), atol=1e-6)
    first.close()
    calls = len(base.batches)
    second = AdaptedEmbedding(base, NUDGES).for_documents(cache_dir=tmp_path)
    moved = second.get_text_embedding_batch(TEXTS)
    assert np.allclose(moved[1:], vectors[1:3])
    assert not np.allclose(moved[0], vectors[0])
    assert asyncio.run(second.aget_text_embedding_batch(TEXTS)) == moved
    assert asyncio.run(second.aget_text_embedding(TEXTS[0])) == moved[0]
    assert second.get_text_embedding(TEXTS[0]) == moved[0]
    assert second.get_text_embedding_batch([]) == []
    assert len(base.batches) == calls


def test_an_adapter_that_moves_documents_is_named_in_the_dict(base, tmp_path):
    cache = IngestionCache()
    plain = AdaptedEmbedding(base, ADAPTER).for_documents(cache_dir=tmp_path)
    moving = AdaptedEmbedding(base, NUDGES).for_documents(cache_dir=tmp_path)
    assert not np.allclose(ingested(plain, cache), ingested(moving, cache))
    assert moving.to_dict()["adapter"]["class"] == "NudgeAdapter"
    assert moving.to_dict()["fingerprint"] == fingerprint_of(base).digest


async def test_queries_are_refused_because_they_would_not_be_adapted(base):
    side = AdaptedEmbedding(base, ADAPTER).for_documents(cache_dir=False)
    with pytest.raises(OptionError, match="ask the adapted model for queries"):
        side.get_query_embedding("why?")
    with pytest.raises(OptionError, match="ask the adapted model for queries"):
        await side.aget_query_embedding("why?")
