"""Does watching tell queries of another kind from those of training, and raise no false alarm?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sets
from llama_index_embeddings_adapted.adapters.saving import QuerySketch
from llama_index_embeddings_adapted.operations.monitoring import MOST_QUERIES, compare


def run(data: Path, cache: Path) -> list[dict[str, Any]]:
    """Sketch half of the training queries of each set; compare the rest, and other sets.

    ``test`` are the test queries of the same set. Thresholds of the verdict were chosen with the
    rows that are not ``test``.
    """
    trains: dict[str, tuple[np.ndarray[Any, Any], list[str]]] = {}
    tests: dict[str, np.ndarray[Any, Any]] = {}
    encoder = sets.encoder(cache)
    for name in sets.NAMES:
        real = sets.load(data, name)
        groups = [documents[0] for documents in real.train.relevant_docs.values()]
        trains[name] = encoder.encode(list(real.train.queries.values()), "query"), groups
        tests[name] = encoder.encode(list(real.tests["test"].queries.values()), "query")
    encoder.close()
    rows = []
    for name, (vectors, groups) in trains.items():
        order = np.random.default_rng(0).permutation(len(vectors))
        seen, unseen = np.split(order, [len(order) // 2])
        sketch = QuerySketch.of(vectors[seen], [groups[row] for row in seen])
        live = {"the same": vectors[unseen], "test": tests[name]}
        live |= {other: found for other, (found, _) in trains.items() if other != name}
        for kind, queries in live.items():
            report = compare(sketch, queries[:MOST_QUERIES])
            rows.append({"trained on": name, "live": kind, **report.to_dict()})
            print(name, "→", kind, report, flush=True)
    return rows
