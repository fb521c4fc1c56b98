import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import callbacks
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.rate_limiter import BaseRateLimiter
from llama_index.core.storage.kvstore import SimpleKVStore

from benchmarks.robustness import cheap
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import EncodeError, OptionError
from tests.conftest import CountingEmbedding
from tests.support.processes import fresh

TEXTS = [f"text {number}" for number in range(10)]
TRUTH = CountingEmbedding()


def encoder(model: BaseEmbedding, cache: Path | bool = False, **options: Any) -> Encoder:
    return Encoder(model, cache_dir=cache, show_progress=False, **options)


def test_each_distinct_text_reaches_the_base_once_in_its_batches(base):
    work = encoder(base)
    before = len(base.batches)
    assert work.encode([], "query").shape == (0, 16)
    vectors = work.encode([*TEXTS, *TEXTS], "document")
    assert np.array_equal(vectors, TRUTH.vectors("document", [*TEXTS, *TEXTS]))
    assert base.batches[before:] == [4, 4, 2]
    assert sorted(base.asked_beyond_probes) == sorted(("document", text) for text in TEXTS)
    assert [*work.spent.values()][:2] == [len(base.batches), len(base.asked)] == [7, 16]


def test_a_dataset_keeps_its_order_and_knows_its_twins(base):
    corpus = {"d1": "b", "d2": "a much longer document", "d3": "b"}
    queries = {"q1": "a longer question", "q2": "short"}
    data = EmbeddingQAFinetuneDataset(queries, corpus, {"q1": ["d3"], "q2": ["d2", "d1"]})
    encoded = encoder(base).dataset(data)
    assert encoded.query_ids == ("q1", "q2")
    assert np.array_equal(encoded.queries[0], np.float32(base.vector("query", "a longer question")))
    assert np.array_equal(encoded.documents[0], encoded.documents[2])
    assert encoded.canonical_rows.tolist() == [0, 1, 0]
    second = encoded.take(np.array([1]))
    assert second.query_ids == ("q2",)
    assert np.array_equal(second.queries, encoded.queries[1:])


def test_batch_size_overrides_that_of_the_model_for_this_run_only(base):
    work = encoder(base, batch_size=10)
    work.encode(TEXTS, "document")
    assert base.batches[-1] == 10
    assert base.embed_batch_size == 4
    with pytest.raises(
        OptionError, match="batch_size: expected a whole number from 1 to 2048, got 0"
    ):
        encoder(base, batch_size=0)


def test_a_second_instance_makes_no_call_for_what_is_there_and_a_changed_one_does(tmp_path):
    first, second = CountingEmbedding(), CountingEmbedding()
    vectors = encoder(first, tmp_path).encode(TEXTS, "document")
    again = encoder(second, tmp_path).encode(TEXTS[::-1], "document")
    assert np.array_equal(again, vectors[::-1])
    assert second.asked_beyond_probes == []
    encoder(first, tmp_path).encode(TEXTS, "document")
    assert len(first.asked) == len(TEXTS) + 2 * len(PROBE_TEXTS)  # one object is probed once
    model = CountingEmbedding(seed=1)
    encoder(model, tmp_path).encode(TEXTS, "document")
    model.seed = 2
    vectors = encoder(model, tmp_path).encode(TEXTS, "document")
    assert np.array_equal(vectors[0], np.float32(model.vector("document", TEXTS[0])))


def test_roles_of_equal_text_never_share_nor_does_the_cache_of_the_model(base, tmp_path):
    work = encoder(base, tmp_path)
    document = work.encode(["same text"], "document")
    query = work.encode(["same text"], "query")
    assert np.array_equal(document[0], np.float32(base.vector("document", "same text")))
    assert np.array_equal(query[0], np.float32(base.vector("query", "same text")))
    assert not np.array_equal(document, query)
    model = CountingEmbedding(embeddings_cache=SimpleKVStore())
    model.get_text_embedding("same text")  # LlamaIndex files it under the bare text
    query = encoder(model).encode(["same text"], "query")
    assert np.array_equal(query[0], np.float32(model.vector("query", "same text")))
    assert model.embeddings_cache is not None


WORKER = """
import json, sys
from benchmarks.robustness.cheap import WordsEmbedding
from llama_index_embeddings_adapted.encoding.encoder import Encoder
cache, log, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = WordsEmbedding(log=log, pause_s=0.002, embed_batch_size=5)
encoder = Encoder(model, cache_dir=cache, show_progress=False)
print(json.dumps(encoder.encode(texts, "document").tolist()))
"""


@pytest.mark.slow
def test_processes_share_one_folder_at_once(tmp_path):
    texts = [f"text {number}" for number in range(110)]
    expected = np.float32([cheap.vector(text, "document") for text in texts])

    def right(log: str, rows: slice) -> bool:
        given = tmp_path / "cache", tmp_path / log, json.dumps(texts[rows])
        return np.array_equal(np.float32(fresh(WORKER, *given)), expected[rows])

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(right, ("one", "other"), (slice(70), slice(40, 110))))
    assert right("late", slice(110))
    assert cheap.noted(tmp_path / "one")
    assert cheap.noted(tmp_path / "late") == []


def test_a_model_that_fails_its_probes_is_named():
    class Mute(CountingEmbedding):
        def vector(self, role: str, text: str) -> list[float]:
            return []

    class Nested(CountingEmbedding):
        def vector(self, role: str, text: str) -> list[float]:
            return [super().vector(role, text)]

    for kind in (Mute, Nested):
        said = f"{kind.__name__} did not answer 3 probe texts with finite"
        with pytest.raises(EncodeError, match=said):
            encoder(kind())
    with pytest.raises(EncodeError, match=r"nested lists, or of several lengths\?"):
        encoder(Nested())


class Limiter(BaseRateLimiter):
    def __init__(self) -> None:
        self.acquired = self.async_acquired = 0

    def acquire(self, num_tokens: int = 0) -> None:
        self.acquired += 1

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.async_acquired += 1


class Asynchronous(BaseEmbedding):
    """Has no synchronous side, and counts how many queries are under way at once."""

    _double: CountingEmbedding = PrivateAttr(default_factory=CountingEmbedding)
    _now: int = PrivateAttr(default=0)
    _most: int = PrivateAttr(default=0)

    def _get_query_embedding(self, query: str) -> list[float]:
        raise NotImplementedError

    def _get_text_embedding(self, text: str) -> list[float]:
        raise NotImplementedError

    async def _aget_query_embedding(self, query: str) -> list[float]:
        if query == "broken":
            raise RuntimeError("the provider is down")
        self._now += 1
        self._most = max(self._most, self._now)
        await asyncio.sleep(0.001 * (len(query) % 3))
        self._now -= 1
        return self._double._get_query_embedding(query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return self._double._get_text_embedding(text)


class Synchronous(CountingEmbedding):
    async def _aget_query_embedding(self, query: str) -> list[float]:
        raise NotImplementedError

    async def _aget_text_embedding(self, text: str) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("model", [Asynchronous(), Synchronous()], ids=lambda m: type(m).__name__)
def test_a_model_with_one_side_will_do(model):
    work = encoder(model)
    for role in ("query", "document"):
        assert np.array_equal(work.encode(TEXTS, role), TRUTH.vectors(role, TEXTS))


async def test_an_asynchronous_model_works_inside_a_running_loop():
    vectors = encoder(Asynchronous()).encode(TEXTS, "query")
    assert np.array_equal(vectors, TRUTH.vectors("query", TEXTS))


def test_the_error_of_an_asynchronous_model_is_not_mistaken_for_one_of_the_loop():
    with pytest.raises(RuntimeError, match="the provider is down"):
        encoder(Asynchronous()).encode(["broken"], "query")


@pytest.mark.parametrize(("workers", "most"), [(None, 1), (3, 3)])
def test_num_workers_queries_are_under_way_at_once_and_stay_in_order(workers, most):
    model = Asynchronous(num_workers=workers)
    texts = [f"{'x' * (number % 5)} {number}" for number in range(20)]
    assert np.array_equal(encoder(model).encode(texts, "query"), TRUTH.vectors("query", texts))
    assert model._most == most


def test_rate_limit_and_callbacks_of_the_base_apply_once_per_call():
    limiter, tokens = Limiter(), callbacks.TokenCountingHandler(tokenizer=str.split)
    debug = callbacks.LlamaDebugHandler(print_trace_on_end=False)
    told = {"callback_manager": callbacks.CallbackManager([tokens, debug])}
    work = encoder(CountingEmbedding(embed_batch_size=4, rate_limiter=limiter, **told))
    work.encode(TEXTS, "document")
    work.encode(TEXTS, "query")
    calls = len(debug.get_event_pairs(callbacks.CBEventType.EMBEDDING))
    assert limiter.acquired == calls == work.spent["base_calls"] == 4 + 3 + 10
    assert tokens.total_embedding_token_count >= 2 * len(TEXTS) * 2

    limiter = Limiter()
    encoder(Asynchronous(rate_limiter=limiter)).encode(TEXTS, "query")
    assert limiter.async_acquired >= 10


def test_a_model_that_can_batch_queries_is_asked_to():
    class BatchesQueries(CountingEmbedding):
        def _get_query_embeddings(self, queries: list[str]) -> list[list[float]]:
            return self._answer("query", queries)

    limiter = Limiter()
    model = BatchesQueries(embed_batch_size=4, rate_limiter=limiter)
    vectors = encoder(model).encode(TEXTS, "query")
    assert model.batches[-3:] == [4, 4, 2]
    assert limiter.acquired == len(model.batches)
    assert np.array_equal(vectors, TRUTH.vectors("query", TEXTS))


def test_queries_of_a_real_model_are_batched_unless_a_subclass_has_its_own(minilm):
    texts = ["what is a query?", "why", "a far longer question about the lengths of questions"]
    work = encoder(minilm)
    before = work.spent["base_calls"]
    vectors = work.encode(texts, "query")
    assert work.spent["base_calls"] == before + 1
    singles = np.float32([minilm.get_query_embedding(text) for text in texts])
    assert np.allclose(vectors, singles, atol=1e-5)
    from llama_index_embeddings_adapted.encoding.base_model import query_batch

    class Prefixed(type(minilm)):
        def _get_query_embedding(self, query: str) -> list[float]:
            return super()._get_query_embedding(f"query: {query}")

    assert query_batch(minilm) is not None
    assert query_batch(Prefixed.model_construct()) is None


def test_the_default_folder_is_llama_indexs_and_a_bar_is_shown(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path))
    Encoder(base, show_progress=False).encode(TEXTS, "query")
    assert (tmp_path / "embeddings_adapted" / "vectors.sqlite").exists()
    encoder(base).encode(TEXTS, "query")
    assert capsys.readouterr().err == ""
    Encoder(base, cache_dir=False).encode(TEXTS, "query")
    assert "Embedding queries: 100%" in capsys.readouterr().err
