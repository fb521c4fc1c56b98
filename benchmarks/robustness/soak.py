"""Queries from many threads and coroutines at once, while adapters are swapped."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.known import KnownEmbedding
from benchmarks.processes import in_a_process, memory
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter

DIM, TEXTS = 384, [f"question number {number}" for number in range(500)]
THREADS, COROUTINES = 32, 32  # at once
PARTS = 20  # memory is measured after each; the first two are warm-up


class TableEmbedding(KnownEmbedding):
    """Knows all texts; asynchronously, others have their turn first."""

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(0)
        return self._get_query_embedding(query)


def _base() -> TableEmbedding:
    rows = np.random.default_rng(0).standard_normal((len(TEXTS), DIM)).astype(np.float32)
    base = TableEmbedding()
    base._vectors = dict(zip(TEXTS, rows, strict=True))
    return base


class Load:
    """A model under load, and what came of it."""

    def __init__(self) -> None:
        random = np.random.default_rng(1)
        self._adapters = [LinearAdapter(random.standard_normal((DIM, DIM))) for _ in range(2)]
        self._model = AdaptedEmbedding(_base(), self._adapters[0])
        single = [AdaptedEmbedding(_base(), adapter) for adapter in self._adapters]
        self._right = {text: [m.get_query_embedding(text) for m in single] for text in TEXTS}
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def run(self, queries: int) -> None:
        """Ask so many, half of them from threads and half from coroutines."""
        each = queries // 2
        shares = [each // THREADS] * THREADS
        done = threading.Event()
        with ThreadPoolExecutor(THREADS + 2) as pool:
            swapping = pool.submit(self._swap, done)
            running = [pool.submit(self._ask, share, n) for n, share in enumerate(shares)]
            running.append(pool.submit(asyncio.run, self._ask_together(queries - sum(shares))))
            for future in running:
                self.counts += future.result()
            done.set()
            swapping.result()

    def _ask(self, queries: int, seed: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text in _texts(queries, seed):
            try:
                self._judge(text, self._model.get_query_embedding(text), counts)
            except Exception as error:
                self._failed(error, counts)
        return counts

    async def _ask_together(self, queries: int) -> Counter[str]:
        share, more = divmod(queries, COROUTINES)
        counted = [self._aask(share + (n < more), n) for n in range(COROUTINES)]
        return sum(await asyncio.gather(*counted), Counter())

    async def _aask(self, queries: int, seed: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        for text in _texts(queries, seed):
            try:
                self._judge(text, await self._model.aget_query_embedding(text), counts)
            except Exception as error:
                self._failed(error, counts)
        return counts

    def _judge(self, text: str, vector: list[float], counts: Counter[str]) -> None:
        counts["served"] += 1
        known = [number for number, right in enumerate(self._right[text]) if vector == right]
        counts[f"version {known[0]}" if known else "wrong"] += 1

    def _failed(self, error: Exception, counts: Counter[str]) -> None:
        counts["errors"] += 1
        self.errors[f"{type(error).__name__}: {error}"[:200]] += 1

    def _swap(self, done: threading.Event) -> None:
        for adapter in itertools.cycle(reversed(self._adapters)):
            if done.wait(0.005):
                return
            self._model.swap(adapter)
            self.counts["swaps"] += 1


def _texts(queries: int, seed: int) -> Iterator[str]:
    return itertools.islice(itertools.cycle(TEXTS[seed:] + TEXTS[:seed]), queries)


def soak(queries: int = 200_000, parts: int = PARTS) -> dict[str, Any]:
    """Load a model; count what came back, and look at the memory of this process.

    That is measured after each of the ``parts``, of which the first tenth is warm-up.
    """
    load, began = Load(), time.perf_counter()
    resident = []
    for part in range(parts):
        load.run(queries // parts + (part < queries % parts))
        gc.collect()
        resident.append(memory())
    warming = max(1, parts // 10)
    warm, after = resident[warming - 1], resident[warming:]
    counts = load.counts
    return {
        "queries": queries,
        **{name: counts[name] for name in ("served", "errors", "wrong", "swaps")},
        "kinds_of_error": dict(load.errors),
        "by_version": [counts["version 0"], counts["version 1"]],
        "seconds": time.perf_counter() - began,
        "resident_mb": {"warm": warm, "end": after[-1], "most": max(after)},
        "growth": max(after) / warm - 1,
    }


def run(queries: int = 200_000) -> dict[str, Any]:
    """Do it in a process that does nothing else."""
    return in_a_process("-m", __name__, queries)


if __name__ == "__main__":
    print(json.dumps(soak(int(sys.argv[1]))))
