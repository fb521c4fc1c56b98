import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.vector_stores import SimpleVectorStore
from typer.testing import CliRunner

import llama_index_embeddings_adapted as package
from benchmarks.robustness import scripted_server
from llama_index_embeddings_adapted.cli.app import app
from llama_index_embeddings_adapted.errors import GenerationError
from llama_index_embeddings_adapted.operations.folder import as_text, inspect_adapter
from tests.support import flaky_server

pytest.importorskip("llama_index.embeddings.openai", reason="extra 'dev' is missing")
pytest.importorskip("llama_index.llms.openai_like", reason="extra 'dev' is missing")

#: One that looks like a key, and others that look like nothing.
KEYS = {
    "embedding": "sk-planted-in-the-embedding-model-0001",
    "llm": "planted/in/the/llm/0002",
    "header": "planted in a header 0003",
    "password": "planted-in-an-address-0004",
    "environment": "planted-in-the-environment-0005",
    "extra": "planted-in-an-argument-0006",
}
#: What OpenAI's client logs itself, with or without us: the address it asks, and headers per call.
CLIENT_SAYS = {"password": ("httpx ", "openai."), "extra": ("openai.",)}


class Events(BaseEventHandler):
    """Keeps the events of the dispatcher as a tracing service would get them."""

    said: list[str] = []  # noqa: RUF012  # a field of pydantic

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.said += [repr(event), str(event.model_dump()), event.class_name()]


class Spans(SimpleSpanHandler):
    """Keeps the arguments that spans are opened with, and who opens them."""

    said: list[str] = []  # noqa: RUF012  # a field of pydantic

    def new_span(self, id_: str, bound_args: Any, instance: Any = None, **kwargs: Any) -> Any:
        ours = isinstance(instance, package.AdaptedEmbedding)  # others answer for themselves
        self.said += [id_, *([repr(instance), str(instance)] if ours else [])]
        return super().new_span(id_, bound_args, instance, **kwargs)


@pytest.fixture
def listening() -> Iterator[list[list[str]]]:
    """What LlamaIndex tells those who trace it."""
    events, spans, dispatcher = Events(), Spans(), get_dispatcher()
    known = dispatcher.event_handlers[:], dispatcher.span_handlers[:]
    dispatcher.add_event_handler(events)
    dispatcher.add_span_handler(spans)
    yield [events.said, spans.said]
    dispatcher.event_handlers, dispatcher.span_handlers = known


@pytest.fixture
def logged(caplog) -> Callable[[], list[str]]:
    """What was logged until it is called, at any level, with what went wrong."""
    caplog.set_level(1)
    lines = logging.Formatter("%(name)s %(message)s")
    return lambda: [lines.format(record) for record in caplog.records]


@pytest.fixture
def planted(monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "MY_SECRET"):
        monkeypatch.setenv(name, KEYS["environment"])


def base_model(address: str, callbacks: LlamaDebugHandler) -> BaseEmbedding:
    extra = {"extra_headers": {"X-Key": KEYS["extra"]}}
    keys = {"api_key": KEYS["embedding"], "default_headers": {"X-Auth": KEYS["header"]}}
    manager = CallbackManager([callbacks])
    return flaky_server.client(address, additional_kwargs=extra, callback_manager=manager, **keys)


def llm(address: str) -> Any:
    headers = {"X-Auth": KEYS["header"]}
    return scripted_server.client(address, api_key=KEYS["llm"], default_headers=headers)


QUIET: dict[str, Any] = {"cache_dir": "cache"}


def trained(base: BaseEmbedding, address: str) -> list[object]:
    """Write questions, train, save, evaluate and report; return what is shown on the way."""
    options = {"output_path": "pairs.json", "embed_model": base, "verbose": True, **QUIET}
    nodes = scripted_server.nodes(30)
    pairs = package.generate_qa_embedding_pairs(nodes, llm(address), **options)
    places = {"model_output_path": "model", "report_path": "report.html"}
    steps = {"model_checkpoint_path": "steps", "checkpoint_save_steps": 1, "epochs": 2}
    options = {**places, **steps, "verbose": True, **QUIET}
    engine = package.EmbeddingAdapterFinetuneEngine(pairs, base, **options)
    engine.finetune()
    model = engine.get_finetuned_model()
    scores = package.evaluate_retrieval(model, pairs, **QUIET)
    with pytest.warns(UserWarning, match="it was trained on. Split first"):
        compared = package.compare_retrieval({"base": base, "ours": model}, pairs, **QUIET)
    compared.to_html("comparison.html")
    live = package.inspect_queries(model, [f"boat {number}" for number in range(30)], **QUIET)
    return [model.to_dict(), model.to_json(), model, repr(model), model.to_payload(),
            scores.to_dict(), compared.to_markdown(), engine.report.to_dict(), engine.report,
            pairs.report, pairs.report.to_dict(), live]  # fmt: skip


def served(base: BaseEmbedding) -> list[object]:
    """Load, serve, swap, pool and rebuild; return what is shown on the way."""
    model = package.AdaptedEmbedding.from_pretrained("model", base)
    model.get_query_embedding("a boat")
    model.get_text_embedding_batch(["a boat", "another"])
    model.swap("model")
    package.AdapterPool(".", base)["model"].get_query_embedding("a boat")
    shared = package.AdaptedEmbedding(base, package.LinearAdapter.identity(32, shared=True))
    shared.save_pretrained("shared")
    index = VectorStoreIndex(scripted_server.nodes(30), embed_model=base)
    package.adapt_index(index, shared, SimpleVectorStore(), embed_missing=True, **QUIET)
    inspected = CliRunner().invoke(app, ["inspect", "model", "--json"])
    nodes, nobody = scripted_server.nodes(31)[30:], llm("http://127.0.0.1:9/v1")
    with pytest.raises(GenerationError, match="reach") as failed:
        package.generate_qa_embedding_pairs(nodes, nobody, **QUIET)
    return [as_text(inspect_adapter("model")), inspected.output, failed.value]


def test_no_key_is_in_what_a_run_leaves(planted, listening, logged, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = LlamaDebugHandler(print_trace_on_end=False)
    with flaky_server.serving() as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        base = base_model(server.address, callbacks)
        shown = [*trained(base, server.address), *served(base)]
        # A password in an address takes the place of the key.
        secret_address = server.address.replace("http://", f"http://user:{KEYS['password']}@")
        base = base_model(secret_address, callbacks)
        other = package.AdaptedEmbedding(base, package.LinearAdapter.identity(32))
        other.save_pretrained("other")
        shown += [other, other.to_json(), other.get_query_embedding("a boat")]
    for name in ("embedding", "llm"):  # the keys were in use
        assert any(KEYS[name] in header for header in server.keys)
    printed = capfd.readouterr()
    called = [f"{event.event_type} {event.payload}" for event in callbacks.get_events()]
    told = [*map(str, shown), *(str(each.message) for each in warned), printed.out, printed.err,
            *called, *logged(), *(text for kind in listening for text in kind)]  # fmt: skip
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".html", ".json", ".md", ".safetensors", ".sqlite", ".f32"}
    assert min(map(len, [called, logged(), *listening])) > 20
    for name, key in KEYS.items():
        assert not [path for path in files if key.encode() in path.read_bytes()], name
        found = [text[:500] for text in told if key in text]
        assert not [text for text in found if not text.startswith(CLIENT_SAYS.get(name, ()))], name


def test_a_server_that_repeats_the_key_is_not_quoted(planted, tmp_path):
    """As OpenAI's does: "Incorrect API key provided: sk-…"."""
    script = flaky_server.Reply(401, says=f"Incorrect API key provided: {KEYS['embedding']}")
    nodes = scripted_server.nodes(1)
    with flaky_server.serving(lambda texts, number: script) as server:
        model = llm(server.address)
        model.api_key = KEYS["embedding"]
        with pytest.raises(GenerationError, match=r"refuse|401|key") as caught:
            package.generate_qa_embedding_pairs(nodes, model, cache_dir=tmp_path)
    assert KEYS["embedding"] not in str(caught.value)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEYS["embedding"].encode() not in path.read_bytes()
