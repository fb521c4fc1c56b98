import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from benchmarks.robustness import cheap
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS, Fingerprint
from llama_index_embeddings_adapted.encoding.cache import VectorCache
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import EncodeError, ShapeError
from tests.conftest import Noisy
from tests.support.flaky_server import Flaky, Reply, Vectors, client, serving

openai = pytest.importorskip("openai", reason="extra 'dev' is missing")

TEXTS = [f"text {number:03d} of many" for number in range(40)]  # of one length: order is kept
TRUTH = np.float32([cheap.vector(text, "document") for text in TEXTS])
BATCH = 8


@pytest.fixture
def encoder(tmp_path) -> Iterator[Callable[..., Encoder]]:
    """Make encoders over a server with one cache, which are closed in the end."""
    with ExitStack() as opened:

        def make(server: Flaky, **options: object) -> Encoder:
            model = client(server.address, **options)
            work = Encoder(model, cache_dir=tmp_path, show_progress=False)
            return opened.enter_context(work)

        yield make


def asked(server: Flaky) -> list[str]:
    return [text for texts in server.requests for text in texts if text not in PROBE_TEXTS]


def at(moment: str, reply: Reply) -> Callable[[list[str], int], Reply]:
    """Misbehave once, in the request that has this text."""
    left = [reply]
    return lambda texts, number: left.pop() if moment in texts and left else Reply()


def always(moment: str, reply: Reply) -> Callable[[list[str], int], Reply]:
    return lambda texts, number: reply if moment in texts else Reply()


MOMENT = TEXTS[20]  # in the third batch


@pytest.mark.parametrize(
    "reply",
    [Reply(429, retry_after="0.05"), Reply(503), Reply(hang_up=True), Reply(after_s=1.0)],
    ids=["429", "503", "hung up", "timeout"],
)
def test_a_fault_that_passes_is_not_noticed(reply, encoder):
    with serving(at(MOMENT, reply)) as server:
        work = encoder(server, timeout=0.5, max_retries=2)
        assert np.allclose(work.encode(TEXTS, "document"), TRUTH, atol=1e-6)
        assert len(asked(server)) == len(TEXTS) + BATCH


def test_retry_after_is_waited_for(encoder):
    with serving(at(MOMENT, Reply(429, retry_after="1"))) as server:
        work = encoder(server, max_retries=2)
        work.encode(TEXTS, "document")
        [first, again] = [n for n, texts in enumerate(server.requests) if MOMENT in texts]
        assert server.times[again] - server.times[first] >= 0.95


def giving(change: Callable[[list[float]], list[float]]) -> Reply:
    return Reply(vectors=lambda vectors: [change(vector) for vector in vectors])


FAULTS: dict[str, tuple[Reply, type[Exception], str]] = {
    "429": (Reply(429), openai.RateLimitError, "status 429"),
    "401": (Reply(401), openai.AuthenticationError, "status 401"),
    "timeout": (Reply(after_s=0.6), openai.APITimeoutError, "timed out"),
    "hung up": (Reply(hang_up=True), openai.APIConnectionError, "Connection error"),
    "fewer vectors": (Reply(vectors=lambda vs: vs[:-1]), EncodeError, "7 vectors for a batch of 8"),
    "more vectors": (Reply(vectors=lambda vs: [*vs, vs[0]]), EncodeError, "9 vectors for a batch"),
    "another dimension": (giving(lambda v: v[:-1]), EncodeError, r"\(31,\), expected \(32,\)"),
    "zeros": (giving(lambda v: [0.0] * len(v)), EncodeError, "of zeros"),
    "infinity": (giving(lambda v: [math.inf, *v[1:]]), EncodeError, "NaN or infinity"),
    "NaN": (giving(lambda v: [math.nan, *v[1:]]), EncodeError, "NaN or infinity"),
}


@pytest.mark.parametrize(("reply", "error", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_came_before_a_fault_is_kept_and_nothing_of_it(reply, error, message, encoder):
    with serving(always(MOMENT, reply)) as server:
        work = encoder(server, timeout=0.3, max_retries=0)
        with pytest.raises(error, match=message):
            work.encode(TEXTS, "document")
        rows, found = work.cache.get("document", TEXTS)
        assert rows.tolist() == list(range(2 * BATCH))
        assert np.allclose(found, TRUTH[:16], atol=1e-6)
        server.script, before = Flaky().script, len(asked(server))
        work = encoder(server)
        assert np.allclose(work.encode(TEXTS, "document"), TRUTH, atol=1e-6)
        assert sorted(asked(server)[before:]) == TEXTS[16:]


def test_answered_queries_are_kept_and_of_many_refusals_the_model_is_at_fault(encoder):
    with serving(always(MOMENT, Reply(500))) as server:
        work = encoder(server, max_retries=0)
        with pytest.raises(openai.InternalServerError, match="status 500"):
            work.encode(TEXTS, "query")
        assert work.cache.get("query", TEXTS)[0].tolist() == list(range(20))
    with serving() as server:
        work = encoder(server, max_retries=0)
        server.script = lambda texts, number: Reply(400)
        before = len(server.requests)
        with pytest.raises(openai.BadRequestError):
            work.encode(TEXTS, "document")
        assert len(server.requests) - before < 2 * BATCH


@pytest.mark.parametrize("nonsense", [[], [None], ["x"], [[1.0]]], ids=str)
def test_a_server_that_talks_nonsense_from_the_start_is_named(nonsense, encoder, tmp_path):
    answer = Reply(vectors=lambda vs: [nonsense] * len(vs))
    refused = pytest.raises((EncodeError, ValueError), match=r"vector|embedding|Input")
    with serving(lambda texts, number: answer) as server, refused:
        encoder(server, max_retries=0)
    assert not (tmp_path / "vectors.sqlite").exists()


def turned(vectors: Vectors) -> Vectors:
    return [[*v[1:], v[0]] for v in vectors]


def test_a_model_that_is_exchanged_while_it_is_asked_is_noticed(encoder, tmp_path):
    texts = [f"text {number:03d} of many" for number in range(700)]
    truth = np.float32([cheap.vector(text, "document") for text in texts])

    def script(given: list[str], number: int) -> Reply:
        server.exchanged |= texts[400] in given
        return Reply(vectors=turned) if server.exchanged else Reply()

    with serving(script) as server:
        server.exchanged = False
        work = encoder(server)
        with pytest.raises(EncodeError, match=r"has changed: a probe text.*last 256 texts"):
            work.encode(texts, "document")
        rows, found = work.cache.get("document", texts)
        assert rows.tolist() == list(range(256))
        assert np.allclose(found, truth[:256], atol=1e-6)
        new = Encoder(work._model, cache_dir=tmp_path, show_progress=False)
        assert len(new.cache.get("document", texts)[0]) == 0  # another model has vectors of its own
        expected = np.float32(turned(truth[:70].tolist()))
        assert np.allclose(new.encode(texts[:70], "document"), expected, atol=1e-6)
        new.close()


def test_looking_costs_three_texts_in_256_and_a_batch_of_probes_once(encoder):
    with serving() as server:
        work = encoder(server)
        work.encode([f"text {number}" for number in range(600)], "document")
    probes = sum(text in PROBE_TEXTS for texts in server.requests for text in texts)
    assert probes == 2 * len(PROBE_TEXTS) + 3 * len(PROBE_TEXTS) + BATCH
    with serving() as server:
        work = encoder(server)
        assert len(work.encode(["Let \ud835 be a vector."], "document")) == 1
        assert "Let \N{REPLACEMENT CHARACTER} be a vector." in server.requests[-1]


def test_a_text_that_a_provider_refuses_is_named_and_the_others_are_kept(encoder):
    queries, corpus = {"q": "text 000 of many"}, {f"p{row}": text for row, text in enumerate(TEXTS)}
    data = package.EmbeddingQAFinetuneDataset(queries, corpus, {"q": ["p0", "p20"]})
    with serving(always(MOMENT, Reply(400))) as server:
        work = encoder(server, max_retries=0)
        message = r"refuses 1 of 40 texts .first: of 16 characters; it says: .*400.*Ids: .p20."
        with pytest.raises(EncodeError, match=message) as caught:
            work.dataset(data)
        assert (caught.value.texts, caught.value.ids) == ((MOMENT,), ("p20",))
        assert len(work.cache.get("document", TEXTS)[0]) == len(TEXTS) - 1
        smaller = data.without(caught.value.ids)
        assert smaller.relevant_docs == {"q": ["p0"]}
        assert work.dataset(smaller).documents.shape == (39, 32)


@pytest.mark.parametrize("reply", [Reply(503), Reply(429), Reply(hang_up=True)], ids=str)
def test_faults_that_pass_are_waited_for_where_the_client_does_not(reply, encoder):
    with serving(lambda texts, number: reply if number % 4 == 3 else Reply()) as server:
        work = encoder(server, max_retries=0)
        assert np.allclose(work.encode(TEXTS, "document"), TRUTH, atol=1e-6)
        assert len(work.encode(TEXTS, "query")) == len(TEXTS)


def test_a_batch_in_another_order_is_noticed_and_nothing_of_it_kept(encoder):
    texts = [f"text {number:03d} of many" for number in range(80)]
    turning = Reply(vectors=lambda vs: vs[::-1] if len(vs) > 3 else vs)
    with serving(lambda given, number: turning) as server:
        work = encoder(server)
        with pytest.raises(EncodeError, match=r"another order than its texts.*batch_size=1"):
            work.encode(texts, "document")
        assert len(work.cache.get("document", texts)[0]) == 0


@pytest.mark.parametrize("noise", [{"by_batch": 0.02}, {"by_call": 0.02}], ids=str)
def test_a_model_that_is_not_stable_to_the_bit_is_the_same_model(noise, tmp_path):
    model = Noisy(embed_batch_size=20, **noise)
    with Encoder(model, cache_dir=tmp_path, show_progress=False) as work:
        assert len(work.encode([f"word{n} here" for n in range(600)], "document")) == 600
    changed = Noisy(embed_batch_size=20, **noise)
    with Encoder(changed, cache_dir=tmp_path / "other", show_progress=False) as work:
        changed.seed = 7  # behind its name
        with pytest.raises(EncodeError, match="has changed"):
            work.encode([f"word{n} here" for n in range(100)], "document")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((1, 4)), "expected 2, got 1"),
        (np.ones((2, 5)), "expected 4 dimensions, got 5"),
        (np.ones(4), r"matrix \(n, dim\)"),
        (np.full((2, 4), np.nan), "NaN or infinity"),
    ],
)
def test_the_cache_refuses_what_is_no_vector_of_its_model(vectors, message, tmp_path):
    cache = VectorCache(tmp_path, Fingerprint("model", np.ones((6, 4), dtype=np.float32)))
    with pytest.raises(ShapeError, match=message):
        cache.put("query", ["one", "two"], vectors)
    assert len(cache.get("query", ["one", "two"])[0]) == 0
    cache.close()


@pytest.mark.parametrize("path", ["get_text_embedding", "aget_text_embedding"])
async def test_no_wrong_vector_stays_in_the_cache_of_a_serving_model(path):
    from llama_index.core.storage.kvstore import SimpleKVStore

    wrong = Reply(vectors=lambda vs: [[math.nan] * 32 for _ in vs])
    with serving(always("why", wrong)) as server:
        base, identity = client(server.address), package.LinearAdapter.identity(32)
        model = package.AdaptedEmbedding(base, identity, embeddings_cache=SimpleKVStore())

        with pytest.raises(EncodeError, match="NaN or infinity"):
            await getattr(model, path)("why")  # where it is not to be awaited, it fails before
        server.script = Flaky().script
        found = model.get_text_embedding("why")
        assert np.allclose(found, cheap.vector("why", "document"), atol=1e-6)
