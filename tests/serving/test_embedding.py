import asyncio
import copy
import itertools
import pickle
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import numpy as np
import pytest
from llama_index.core import callbacks
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.storage.kvstore import SimpleKVStore

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.errors import EncodeError, FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.serving.pool import PooledEmbedding
from tests.adapters.test_adapters import Turned
from tests.conftest import CountingEmbedding
from tests.encoding.test_encode import Asynchronous, Limiter

TEXTS = [f"text {number}" for number in range(10)]
RANDOM = np.random.default_rng(0)
ADAPTER = LinearAdapter(RANDOM.standard_normal((16, 16)), RANDOM.random(16))
BOTH = Turned(np.array([-1.0] * 8 + [1.0] * 8), shift=1)  # adapts documents too


@pytest.fixture(params=[ADAPTER, BOTH], ids=["queries", "queries and documents"])
def model(request, base) -> AdaptedEmbedding:
    return AdaptedEmbedding(base, request.param)


def expected(model: AdaptedEmbedding, role: str, texts: list[str]) -> list[list[float]]:
    """The answer by way of the adapter alone; bit-equal documents where it leaves them."""
    base = model.base_embed_model
    assert isinstance(base, CountingEmbedding)
    vectors = [base.vector(role, text) for text in texts]
    if role == "document" and not model.adapter.adapts_documents:
        return vectors
    return model.adapter.apply(np.array(vectors), role).tolist()


async def test_all_paths_give_what_base_and_adapter_give(model):
    query = expected(model, "query", TEXTS)
    documents = expected(model, "document", TEXTS)
    one = (model.get_query_embedding, query[0]), (model.get_text_embedding, documents[0])
    cases = [(path, TEXTS[0], answer) for path, answer in one]
    for path, args, answer in (*cases, (model.get_text_embedding_batch, TEXTS, documents)):
        found, afound = path(args), await getattr(model, f"a{path.__name__}")(args)
        assert np.allclose(found, answer, atol=1e-6)
        assert np.allclose(afound, answer, atol=1e-6)
        if path != model.get_query_embedding and not model.adapter.adapts_documents:
            assert found == afound == answer  # bit for bit
    assert np.linalg.norm(model.get_query_embedding("why?")) == pytest.approx(1)
    assert {type(value) for value in model.get_query_embedding("why?")} == {float}
    assert np.allclose(model.get_agg_embedding_from_queries(TEXTS), np.mean(query, axis=0))


async def test_the_base_gets_true_batches_and_has_to_answer_each_text(base):
    model = AdaptedEmbedding(base, ADAPTER)
    model.get_text_embedding_batch(TEXTS)
    assert base.batches == [4, 4, 2]
    larger = AdaptedEmbedding(base, ADAPTER, embed_batch_size=8)
    larger.get_text_embedding_batch(TEXTS)
    assert base.batches[3:] == [8, 2]

    class Short(CountingEmbedding):
        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return super()._get_text_embeddings(texts)[1:]

    with pytest.raises(EncodeError, match=r"Short gave 9 vectors for a batch of 10.*'text 0'"):
        AdaptedEmbedding(Short(), ADAPTER).get_text_embedding_batch(TEXTS)


def test_the_base_can_be_shown_as_it_is_and_be_an_adapted_model(base):
    model = AdaptedEmbedding(base, ADAPTER, transform_query=False)
    assert model.get_query_embedding("why?") == base.get_query_embedding("why?")
    model.transform_query = True
    assert np.allclose(model.get_query_embedding("why?"), expected(model, "query", ["why?"])[0])
    inner = AdaptedEmbedding(base, ADAPTER)
    outer = AdaptedEmbedding(inner, LinearAdapter(-np.eye(16)))
    query = outer.get_query_embedding("why?")
    assert np.allclose(query, -np.array(inner.get_query_embedding("why?")), atol=1e-6)
    outer.get_text_embedding_batch(TEXTS)
    assert base.batches[-3:] == [4, 4, 2]
    assert outer.adapter.input_dim == 16


async def test_an_asynchronous_base_serves_asynchronously():
    model = AdaptedEmbedding(Asynchronous(), ADAPTER)
    double = CountingEmbedding()
    query = ADAPTER.apply(np.float32(double.vector("query", "why?")))
    assert np.allclose(await model.aget_query_embedding("why?"), query)
    assert await model.aget_text_embedding("x") == double.vector("document", "x")
    assert len(await model.aget_text_embedding_batch(TEXTS)) == 10


class Ends(BaseEventHandler):
    seen: list[EmbeddingEndEvent] = []  # noqa: RUF012  (a pydantic field)

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, EmbeddingEndEvent):
            self.seen.append(event)


@pytest.fixture
def ends() -> Iterator[Ends]:
    handler, root = Ends(), get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


async def test_events_and_callbacks_fire_once_per_call(ends):
    debug = callbacks.LlamaDebugHandler(print_trace_on_end=False)
    base = CountingEmbedding(embed_batch_size=4, callback_manager=CallbackManager([debug]))
    model = AdaptedEmbedding(base, ADAPTER)  # the callback manager of the base
    calls: list[Callable[[], Any]] = [
        lambda: model.get_query_embedding("one"),
        lambda: model.aget_query_embedding("two"),
        lambda: model.get_text_embedding("three"),
        lambda: model.aget_text_embedding("four"),
        lambda: model.get_text_embedding_batch(TEXTS[:4]),
        lambda: model.aget_text_embedding_batch(TEXTS[:4]),
    ]
    for number, call in enumerate(calls, start=1):
        answer = call()
        answer = await answer if isinstance(answer, Awaitable) else answer
        begun_and_ended = debug.get_event_pairs(callbacks.CBEventType.EMBEDDING)
        assert len(ends.seen) == len(begun_and_ended) == number
        assert all(len(pair) == 2 for pair in begun_and_ended)
    assert ends.seen[0].chunks == ["one"]
    assert np.allclose(ends.seen[0].embeddings, expected(model, "query", ["one"]), atol=1e-6)


async def test_the_limiters_of_base_and_wrapper_both_apply():
    inner, outer = Limiter(), Limiter()
    base = CountingEmbedding(embed_batch_size=4, rate_limiter=inner)
    model = AdaptedEmbedding(base, ADAPTER, rate_limiter=outer)
    model.get_query_embedding("one")
    model.get_text_embedding("two")
    model.get_text_embedding_batch(TEXTS)
    assert inner.acquired == outer.acquired == 1 + 1 + 3
    await model.aget_query_embedding("one")
    await model.aget_text_embedding("two")
    await model.aget_text_embedding_batch(TEXTS)
    assert inner.async_acquired == outer.async_acquired == 1 + 1 + 3


@pytest.mark.parametrize("given", ["to the constructor", "by assignment", "to the base"])
async def test_a_cache_saves_calls_and_never_skips_the_adapter(base, given):
    store = SimpleKVStore()
    if given == "to the base":
        base.embeddings_cache = store
    at_once = {"embeddings_cache": store} if given == "to the constructor" else {}
    model = AdaptedEmbedding(base, ADAPTER, **at_once)
    if given == "by assignment":
        model.embeddings_cache = store
    query, document = expected(model, "query", ["same"]), expected(model, "document", ["same"])
    for _ in range(2):
        assert model.get_text_embedding("same") == document[0]
        assert np.allclose(model.get_query_embedding("same"), query[0], atol=1e-6)
        assert await model.aget_text_embedding_batch(["same", "same"]) == document * 2
        assert np.allclose(await model.aget_query_embedding("same"), query[0], atol=1e-6)
        assert model.get_text_embedding_batch(TEXTS) == expected(model, "document", TEXTS)
    asked = base.asked_beyond_probes
    assert len(asked) == len(set(asked)) == 2 + 10


def test_one_cache_serves_many_adapters_and_models(base):
    store = SimpleKVStore()
    other = CountingEmbedding(seed=1)
    parts = itertools.product((base, other), (ADAPTER, BOTH, TwoLayerAdapter.identity(16)))
    models = [AdaptedEmbedding(*pair, embeddings_cache=store) for pair in parts]
    for _ in range(2):
        for model in models:
            for text in ("same", "other"):
                query, document = (expected(model, role, [text]) for role in ("query", "document"))
                assert np.allclose(model.get_query_embedding(text), query[0], atol=1e-6)
                assert np.allclose(model.get_text_embedding(text), document[0], atol=1e-6)
    assert len(base.asked_beyond_probes) == 4
    own = CountingEmbedding(embeddings_cache=SimpleKVStore())
    own.get_text_embedding_batch(TEXTS)
    AdaptedEmbedding(own, ADAPTER).get_text_embedding_batch(TEXTS)
    assert len(own.asked) == 10  # the cache of the base is shared for documents


@pytest.mark.parametrize("cached", [False, True])
def test_threads_get_what_single_calls_get(base, cached):
    store = SimpleKVStore() if cached else None
    model = AdaptedEmbedding(base, ADAPTER, embeddings_cache=store)
    barrier = threading.Barrier(16)

    def ask(number: int) -> tuple[list[float], list[float]]:
        barrier.wait()
        text = f"text {number % 5}"
        return model.get_query_embedding(text), model.get_text_embedding(text)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    singles = AdaptedEmbedding(CountingEmbedding(), ADAPTER)
    for number, (query, document) in enumerate(answers):
        assert query == singles.get_query_embedding(f"text {number % 5}")
        assert document == singles.get_text_embedding(f"text {number % 5}")


async def test_coroutines_get_what_single_calls_get(base):
    model = AdaptedEmbedding(base, ADAPTER, embeddings_cache=SimpleKVStore())
    texts = [f"text {number % 7}" for number in range(50)]
    queries = await asyncio.gather(*map(model.aget_query_embedding, texts))
    documents = await asyncio.gather(*map(model.aget_text_embedding, texts))
    singles = AdaptedEmbedding(CountingEmbedding(), ADAPTER)
    assert queries == [singles.get_query_embedding(text) for text in texts]
    assert documents == [singles.get_text_embedding(text) for text in texts]


@pytest.mark.parametrize(
    ("handlers", "kept"),
    [([], 256), ([callbacks.LlamaDebugHandler(print_trace_on_end=False)], 600)],
)
def test_past_events_are_noted_only_for_handlers(base, handlers, kept):
    """LlamaIndex would note each call for ever, at 100 bytes, with or without a handler."""
    manager = CallbackManager(handlers)
    model = AdaptedEmbedding(base, ADAPTER, callback_manager=manager)
    for number in range(300):
        model.get_query_embedding(f"text {number}")
        model.get_text_embedding(f"text {number}")
    noted = sum(map(len, manager._trace_map.values()))
    assert noted <= kept
    assert (noted == kept) == bool(handlers)


@pytest.mark.parametrize(
    "again",
    [
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: cloudpickle.loads(cloudpickle.dumps(model)),
        copy.deepcopy,
        copy.copy,
        lambda model: model.model_copy(),
        lambda model: AdaptedEmbedding.from_dict(model.to_dict()),
        lambda model: AdaptedEmbedding.from_json(model.to_json()),
        lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
    ],
    ids=["pickle", "cloudpickle", "deepcopy", "copy", "model_copy", "dict", "json", "both"],
)
def test_copies_keep_weights_and_settings(base, again):
    settings = {"embed_batch_size": 3, "num_workers": 2, "model_name": "mine"}
    for adapter in (ADAPTER, BOTH):
        model = AdaptedEmbedding(base, adapter, training={"seed": 1}, **settings)
        other = again(model)
        assert other.adapter == adapter
        assert (other.embed_batch_size, other.num_workers) == (3, 2)
        assert (other.model_name, other.training) == ("mine", {"seed": 1})
        assert other.get_query_embedding("why?") == model.get_query_embedding("why?")
        assert other.get_text_embedding_batch(TEXTS) == model.get_text_embedding_batch(TEXTS)


@pytest.mark.parametrize("kind", [AdaptedEmbedding, package.ComposedEmbedding, PooledEmbedding])
def test_no_span_is_opened_inside_that_of_the_call(kind):
    for name in ("_embed", "_aembed", "_mapped", "_get_query_embedding", "_get_text_embedding"):
        assert not hasattr(getattr(kind, name, None), "__wrapped__"), name


class Own(AdaptedEmbedding):
    note: str = "mine"


def test_pickles_name_the_package_and_leave_locks_which_come_along_in_a_copy(base):
    limiter, store = Limiter(), SimpleKVStore()
    limiter.lock = threading.Lock()  # no pickle holds one
    manager = CallbackManager([])
    given = {"rate_limiter": limiter, "embeddings_cache": store, "callback_manager": manager}
    model = AdaptedEmbedding(base, ADAPTER, **given)
    sent = pickle.loads(pickle.dumps(model))
    assert sent.rate_limiter is None
    assert sent.get_query_embedding("why?") == model.get_query_embedding("why?")
    for copied in (copy.deepcopy(model), model.normalized()):
        assert copied.rate_limiter is limiter
        assert copied.callback_manager is manager
        asked = len(base.asked)
        copied.get_query_embedding("why?")  # from the same cache
        assert len(base.asked) == asked
    assert AdaptedEmbedding.__module__ == "llama_index_embeddings_adapted"
    model = AdaptedEmbedding(base, ADAPTER)
    assert b"llama_index_embeddings_adapted\x94\x8c\x10AdaptedEmbedding" in pickle.dumps(model)
    own = pickle.loads(pickle.dumps(Own(base, ADAPTER)))
    assert (type(own), own.note) == (Own, "mine")
    assert own.get_query_embedding("why?") == model.get_query_embedding("why?")


@pytest.mark.parametrize("data", [{}, {"weights": "&"}, {"weights": "AAAA"}, {"weights": 1}, []])
def test_a_damaged_dict_is_refused(data):
    with pytest.raises(FolderError, match=r"Not the dict of|not safetensors"):
        AdaptedEmbedding.from_dict(data)


@pytest.mark.parametrize(
    ("model", "adapter", "cache", "error", "message"),
    [
        (None, LinearAdapter(np.ones((8, 16))), None, ShapeError,
         "expected 16 dimensions, as the documents.*got 8.*cannot change the dimension"),
        ("local:x", ADAPTER, None, OptionError, "base_embed_model.*names no model"),
        (None, np.eye(16), None, OptionError, "adapter: .*got ndarray"),
        (None, ADAPTER, {}, OptionError, "embeddings_cache: expected a LlamaIndex key.*got dict"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_construction(base, model, adapter, cache, error, message):
    with pytest.raises(error, match=message):
        AdaptedEmbedding(base if model is None else model, adapter, embeddings_cache=cache)
    assert base.asked == []


def test_base_and_adapter_can_be_exchanged_but_not_for_nonsense(base):
    model, other = AdaptedEmbedding(base, ADAPTER), CountingEmbedding(seed=1)
    model.base_embed_model = other
    assert model.get_text_embedding("x") == other.vector("document", "x")
    model.adapter = BOTH
    assert np.allclose(model.get_text_embedding("x"), expected(model, "document", ["x"])[0])
    with pytest.raises(OptionError, match="adapter: expected an Adapter"):
        model.adapter = np.eye(16)
    model = AdaptedEmbedding(CountingEmbedding(dim=8), ADAPTER)
    with pytest.raises(ShapeError, match=r"expected 16 dimensions.*got shape \(8,\).*another base"):
        model.get_query_embedding("why?")
