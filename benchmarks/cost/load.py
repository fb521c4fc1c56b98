"""The service of the examples under 16 clients: what an adapter adds to the base model."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter

CLIENTS, DIM, ANSWER_S = 16, 384, 0.02
MODELS = ("base", "adapter", "tenant:acme")
SCRIPT = Path(__file__).parents[2] / "examples" / "service.py"


class Provider(BaseEmbedding):
    """A base model as an API nearby is: 20 ms, of which no processor time is ours."""

    def _get_query_embedding(self, query: str) -> list[float]:
        time.sleep(ANSWER_S)
        return np.random.default_rng(len(query)).standard_normal(DIM).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)


def run(requests: int) -> dict[str, Any]:
    """Ask each model in turn from 16 clients at once, so that drift hits all alike."""
    with tempfile.TemporaryDirectory() as folder, _serving(folder) as address:
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as threads:
            each = [requests // CLIENTS] * CLIENTS
            rows = threads.map(_client, [address] * CLIENTS, each)
            asked = list(chain.from_iterable(rows))
        seconds = time.perf_counter() - began
    found: dict[str, Any] = {}
    for model in MODELS:
        took = [took for name, took, status in asked if name == model and status == 200]
        p50, p95 = np.percentile(took, [50, 95]) * 1000
        errors = sum(status != 200 for name, _, status in asked if name == model)
        found[model] = {"requests": len(took), "errors": errors, "p50_ms": p50, "p95_ms": p95}
    rates = {"requests_per_second": len(asked) / seconds, "load_average": os.getloadavg()[0]}
    settings = {"clients": CLIENTS, "base_answers_after_ms": ANSWER_S * 1000}
    return {**settings, **rates, "models": found}


def _client(address: str, count: int) -> list[tuple[str, float, int]]:
    found = []
    with httpx.Client(timeout=60) as client:
        for number in range(count):
            model = MODELS[number % len(MODELS)]
            began = time.perf_counter()
            asked = {"model": model, "input": f"query {number}", "encoding_format": "base64"}
            answer = client.post(f"{address}/v1/embeddings", json=asked)
            found.append((model, time.perf_counter() - began, answer.status_code))
    return found[len(MODELS) :]  # the first of each connect


@contextmanager
def _serving(folder: str) -> Iterator[str]:
    """Yield the address of the service, which runs in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.cost.load", folder, str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _serve(folder: Path, port: int) -> None:
    import uvicorn

    base, random = Provider(), np.random.default_rng(0)
    for name in ("adapter", "tenants/acme"):
        weight = np.eye(DIM) + random.standard_normal((DIM, DIM)) / DIM
        AdaptedEmbedding(base, LinearAdapter(weight, np.zeros(DIM))).save_pretrained(folder / name)
    names = runpy.run_path(str(SCRIPT), run_name="service")
    service = names["Service"](base, folder / "adapter", folder / "tenants", folder / "versions")
    uvicorn.run(names["create_app"](service, None), port=port, log_level="warning")


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
