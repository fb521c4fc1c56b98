"""The same embedding job in one process and on a local Ray, with one actor and with two."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import environment, sets
from benchmarks.processes import in_a_process

TEXTS = 512
ACTORS = (0, 1, 2)  # 0 is this process alone
REPEATS = 2
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_memory_monitor_refresh_ms": "0",  # what else runs on the machine must not kill workers
}


def run(data: Path) -> dict[str, Any]:
    """Measure each, in turn and several times, each in a process of its own."""
    rows = []
    for repeat in range(REPEATS):
        for actors in ACTORS:
            found = in_a_process("-m", __name__, data.resolve(), actors, **SETTINGS)
            rows.append({"repeat": repeat, **found})
            print(rows[-1], flush=True)
    return {"texts": TEXTS, "threads_per_model": 1, "rows": rows}


def _measure(data: Path, actors: int) -> dict[str, Any]:
    from llama_index_embeddings_adapted import embed_corpus

    load = os.getloadavg()[0]
    texts = list(islice(sets.load(data, "squad_dev").train.corpus.values(), TEXTS))
    began = time.perf_counter()
    if actors:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=2**27)
        ray.data.DataContext.get_current().enable_progress_bars = False
    started, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        done = embed_corpus(
            texts,
            environment.minilm,
            executor="ray" if actors else "local",
            actors=max(actors, 1),
            cache_dir=folder,
            show_progress=False,
        )
    if actors:
        ray.shutdown()
    return {
        "actors": actors,
        "embedded": done.embedded,
        "words_per_text": sum(len(text.split()) for text in texts) / len(texts),
        "start_seconds": started - began,
        "seconds": done.seconds,
        "cpu_seconds_here": time.process_time() - cpu,  # all there is where no actors work
        "load_average": load,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))
