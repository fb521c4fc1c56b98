"""A server on loopback that stands in for OpenAI and for Ollama, and misbehaves on request."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from benchmarks.robustness import cheap
from benchmarks.robustness.scripted_server import two_questions

Vectors = list[list[float]]


@dataclass
class Reply:
    """What a server does with one request."""

    status: int = 200  #: Of HTTP; not 200 is an error.
    after_s: float = 0.0  #: How long it waits first.
    retry_after: str = ""  #: Header for errors.
    vectors: Callable[[Vectors], Vectors] | None = None  #: What becomes of them, if anything.
    hang_up: bool = False  #: Close the connection instead of answering.
    says: str = ""  #: Message of an error.


@dataclass
class Flaky:
    """A script, and what happened."""

    #: Texts of a request and its number, from 0 → what to do.
    script: Callable[[list[str], int], Reply] = lambda texts, number: Reply()
    address: str = ""
    requests: list[list[str]] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def serving(script: Callable[[list[str], int], Reply] | None = None) -> Iterator[Flaky]:
    state = Flaky() if script is None else Flaky(script)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        state.address = f"http://127.0.0.1:{http.server_port}/v1"
        yield state
        http.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Flaky

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = body["messages"][-1]["content"] if "messages" in body else body.get("input", [])
        texts = given if isinstance(given, list) else [given]
        number = len(self.state.requests)
        self.state.requests.append(texts)
        self.state.times.append(time.monotonic())
        self.state.keys.append(self.headers.get("Authorization", ""))
        reply = self.state.script(texts, number)
        time.sleep(reply.after_s)
        if reply.hang_up:
            return
        if reply.status != 200:
            message = reply.says or f"status {reply.status}"
            self._send(reply, {"error": {"message": message, "code": None}})
        elif self.path.endswith("/api/show"):
            self._send(reply, {"model_info": {"llama.context_length": 8192}})
        elif "messages" in body:
            self._send(reply, _chat(body["model"], texts[0], ollama="/api/" in self.path))
        else:
            vectors = [cheap.vector(text, "document") for text in texts]
            vectors = vectors if reply.vectors is None else reply.vectors(vectors)
            self._send(reply, _embedded(body["model"], vectors, ollama="/api/" in self.path))
            self.state.answered.update(texts)

    def _send(self, reply: Reply, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            if reply.retry_after:
                self.send_header("Retry-After", reply.retry_after)
            self.end_headers()
            self.wfile.write(payload)
        except OSError:  # a client that gave up
            pass

    def log_message(self, *args: object) -> None: ...


def _chat(model: str, message: str, *, ollama: bool) -> dict[str, Any]:
    said = {"role": "assistant", "content": two_questions(message)[1]}
    if ollama:
        return {"model": model, "created_at": "", "message": said, "done": True}
    choice = {"index": 0, "finish_reason": "stop", "message": said}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": model}
    return {**whole, "choices": [choice], "usage": usage}


def _embedded(model: str, vectors: Vectors, *, ollama: bool) -> dict[str, Any]:
    if ollama:
        return {"model": model, "embeddings": vectors}
    data = [{"object": "embedding", "index": n, "embedding": v} for n, v in enumerate(vectors)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return {"object": "list", "model": model, "data": data, "usage": usage}


def client(address: str, **options: Any) -> Any:
    """Return LlamaIndex's own client of OpenAI; it leaves no connection open."""
    from llama_index.embeddings.openai import OpenAIEmbedding

    limits = httpx.Limits(max_keepalive_connections=0)
    settings = {"timeout": 10.0, "max_retries": 1, "embed_batch_size": 8, "api_key": "sk-none"}
    settings |= {"model": "text-embedding-3-small", "http_client": httpx.Client(limits=limits)}
    settings |= {"async_http_client": httpx.AsyncClient(limits=limits), **options}
    return OpenAIEmbedding(api_base=address, **settings)
