import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex

from llama_index_embeddings_adapted import AdaptedEmbedding, AdapterPool, LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.adapters.saving import QuerySketch
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.errors import BaseModelMismatchError, OptionError, ShapeError
from llama_index_embeddings_adapted.serving.embedding import DEPTH
from tests.conftest import CountingEmbedding

DIM = 16
TURN = LinearAdapter(-np.eye(DIM), np.full(DIM, -3.0))
KEEP = LinearAdapter(np.eye(DIM), np.full(DIM, 3.0))


@pytest.fixture
def model(base) -> AdaptedEmbedding:
    return AdaptedEmbedding(base, KEEP)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_while_it_is_swapped_no_query_fails_and_no_vector_mixes_two_versions(model):
    """Weights and bias of one version point the same way; a mixture of two would not."""
    answers = {"why?": np.array(model.get_query_embedding("why?"), dtype=np.float32)}
    done = threading.Event()

    def swaps() -> int:
        count = 0
        while not done.is_set():
            model.swap(TURN)
            model.roll_back()
            count += 1
        return count

    def ask(_: int) -> list[list[float]]:
        return [model.get_query_embedding("why?") for _ in range(200)]

    async def ask_together() -> list[list[float]]:
        return list(await asyncio.gather(*[model.aget_query_embedding("why?") for _ in range(200)]))

    with ThreadPoolExecutor(8) as threads:
        swapping = threads.submit(swaps)
        try:
            asked = [threads.submit(ask, number) for number in range(6)]
            found = [vector for future in asked for vector in future.result()]
            found += asyncio.run(ask_together())
        finally:
            done.set()
        assert swapping.result() > 10
    signs = np.float32(found) @ answers["why?"]
    assert np.allclose(np.abs(signs), 1, atol=1e-5)
    assert {round(float(sign)) for sign in signs} == {-1, 1}  # both versions were in service
    assert len(found) == 1400


def test_an_index_and_its_retriever_follow_a_swap(model):
    texts = ["apple pie", "blue whale", "city bus"]
    index = VectorStoreIndex.from_documents([Document(text=t) for t in texts], embed_model=model)
    retriever = index.as_retriever(similarity_top_k=3)
    first = [found.text for found in retriever.retrieve("apple pie")]
    asked = len(model.base_embed_model.asked)
    model.swap(LinearAdapter(-np.eye(DIM)))
    second = [found.text for found in retriever.retrieve("apple pie")]
    assert first[0] == second[-1] == "apple pie"
    roles = [role for role, _ in model.base_embed_model.asked[asked:]]
    assert roles == ["query"]


def test_a_folder_is_swapped_in_with_what_is_known_of_it(base, model, tmp_path):
    AdaptedEmbedding(base, TURN, training={"data": "second"}).save_pretrained(tmp_path / "two")
    model.swap(tmp_path / "two")
    assert model.adapter == TURN
    assert model.training == {"data": "second"}
    model.save_pretrained(tmp_path / "again")
    assert AdaptedEmbedding.from_pretrained(tmp_path / "again", base).training == model.training
    assert model.roll_back() is KEEP
    assert model.training == {}
    AdaptedEmbedding(CountingEmbedding(seed=1), TURN).save_pretrained(tmp_path / "other")
    with pytest.raises(BaseModelMismatchError, match="other was trained on"):
        model.swap(tmp_path / "other")
    assert model.adapter is KEEP
    model.swap(tmp_path / "other", verify=False)
    assert model.adapter == TURN


def test_what_a_folder_says_holds_wherever_it_is_named(base, model, tmp_path):
    sketch = QuerySketch.of(np.float32([base.vector("query", f"why {n}?") for n in range(40)]))
    known = {"training": {"data": "second"}, "sketch": sketch, "transform_query": False}
    AdaptedEmbedding(base, TURN, **known).save_pretrained(tmp_path / "off")
    model.swap(tmp_path / "off")
    pooled, made = AdapterPool(tmp_path, base)["off"], AdaptedEmbedding(base, tmp_path / "off")
    for each in (model, pooled, made):
        assert (each.training, each.transform_query) == ({"data": "second"}, False)
        assert each.sketch.queries == 40
        assert each.get_query_embedding("why?") == base.get_query_embedding("why?")
    model.swap(TURN)
    assert not model.transform_query
    model.roll_back(), model.roll_back()
    assert (model.transform_query, model.sketch) == (True, None)
    given = AdaptedEmbedding(base, tmp_path / "off", training={"data": "mine"})
    assert given.training == {"data": "mine"}


def test_the_base_model_is_swapped_in_and_out(base, model, tmp_path):
    kept = model.get_query_embedding("why?")
    assert model.swap(None) is KEEP
    plain = np.float32(base.get_query_embedding("why?"))
    assert np.array_equal(np.float32(model.get_query_embedding("why?")), plain)
    model.save_pretrained(tmp_path / "base")
    model.roll_back()
    assert model.get_query_embedding("why?") == kept
    model.swap(tmp_path / "base")
    assert np.array_equal(np.float32(model.get_query_embedding("why?")), plain)
    assert model.swap(TURN).is_identity
    moving = AdaptedEmbedding(base, LinearAdapter(-np.eye(DIM), shared=True))
    with pytest.raises(OptionError, match="moves documents"):
        moving.swap(None)


def test_what_does_not_fit_the_index_is_refused(model):
    with pytest.raises(ShapeError, match="The adapter to swap in: expected 16 → 16"):
        model.swap(LinearAdapter.identity(8))
    moving = NudgeAdapter.of(content_hashes(["x"]), np.ones((1, DIM), dtype=np.float32))
    with pytest.raises(OptionError, match=r"moves documents.*Rebuild it with adapt_index"):
        model.swap(moving)
    with pytest.raises(OptionError, match="expected an Adapter or a folder"):
        model.swap(model)
    model.swap(moving, index_rebuilt=True)
    assert model.adapter is moving


def test_as_many_swaps_can_be_undone_as_are_kept(model):
    with pytest.raises(OptionError, match="no earlier adapter to roll back to"):
        model.roll_back()
    adapters = [LinearAdapter(np.eye(DIM) * (2 + number)) for number in range(DEPTH + 2)]
    for adapter in adapters:
        model.swap(adapter)
    for adapter in adapters[-2 : -DEPTH - 2 : -1]:
        assert model.roll_back() is adapter
    with pytest.raises(OptionError, match=f"the last {DEPTH} swaps"):
        model.roll_back()
