"""``python .ci/slim.py save FOLDER``, in any environment; then ``serve FOLDER`` in the slim one.

Serving asks a server on this machine that answers as OpenAI's does, and fails where anything heavy
is installed or a vector is not that of the adapter.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import sysconfig
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MOST = 200  # MiB, as docs/service.md says
HEAVY = ("torch", "transformers", "sentence_transformers", "llama_index.finetuning", "scipy",
         "sklearn", "mistralai")  # fmt: skip
DIM = 8


class Provider(BaseHTTPRequestHandler):
    """Gives each text a vector of its own."""

    def do_POST(self) -> None:  # noqa: D102
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        data = [{"object": "embedding", "index": i, "embedding": vector(text)}
                for i, text in enumerate(texts)]  # fmt: skip
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        body = json.dumps({"object": "list", "model": "m", "data": data, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def vector(text: str) -> list[float]:
    """Return the vector of a text."""
    return [byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:DIM]]


def save(folder: Path, address: str) -> None:
    """Save an adapter that turns queries around."""
    import numpy as np
    from llama_index.embeddings.openai import OpenAIEmbedding

    from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter

    base = OpenAIEmbedding(api_base=address, api_key="none")
    AdaptedEmbedding(base, LinearAdapter(-np.eye(DIM))).save_pretrained(folder)


def serve(folder: Path, address: str) -> None:
    """Serve it, with nothing heavy at hand."""
    # First, as some environments let Python keep what it compiles there, and others do not.
    files = Path(sysconfig.get_path("purelib")).rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
    for name in HEAVY:
        top, *_ = name.split(".")
        found = importlib.util.find_spec(top) and importlib.util.find_spec(name)
        assert not found, f"{name} is installed"
    from llama_index_embeddings_adapted import AdaptedEmbedding

    model = AdaptedEmbedding.from_pretrained(folder, api_key="none", api_base=address)
    query, plain = model.get_query_embedding("why?"), vector("why?")
    cosine = (
        sum(a * b for a, b in zip(query, plain, strict=True)) / sum(b * b for b in plain) ** 0.5
    )
    assert abs(cosine + 1) < 1e-5, f"not the adapted vector: {query}"
    assert model.get_text_embedding_batch(["one", "two"]) == [vector("one"), vector("two")]
    code = "from llama_index_embeddings_adapted import AdaptedEmbedding"
    began = time.perf_counter()  # a second process: the first has compiled what it imported
    subprocess.run([sys.executable, "-c", code], check=True)
    seconds = time.perf_counter() - began
    assert size < MOST, f"{size:.0f} MiB installed, at most {MOST} are promised"
    print(f"Python {sys.version.split()[0]}: {size:.0f} MiB installed, import {seconds:.1f} s")


def main(job: str, folder: str) -> None:
    """Do one of both beside the server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/v1"
        {"save": save, "serve": serve}[job](Path(folder), address)
        http.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
