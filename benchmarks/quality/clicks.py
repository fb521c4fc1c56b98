"""What clicks teach: simulated users look at a document of place k once in k, and click on a
relevant one nine times in ten, on another once in ten. Labels taken as they come, or by weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset, evaluate_retrieval

_SHOWN, _SESSIONS = 10, 20
_RIGHT, _WRONG = 0.9, 0.1  # clicks on what is looked at


def run(data: Path, cache: Path) -> None:
    """Say for each set what labels from clicks are worth, beside the true ones."""
    for name in ("uberlyft_10k", "scifact"):
        row = _of_set(sets.load(data, name), cache)
        environment.add("clicks", "python -m benchmarks clicks", ("sets", name), row)


def _of_set(real: sets.RealSet, cache: Path) -> dict[str, Any]:
    base, truth = environment.minilm(), real.train
    scores = evaluate_retrieval(base, truth, cache_dir=cache, show_progress=False)
    shown = {query: scores.retrieved(query, _SHOWN) for query in truth.queries}
    log = [row for query in shown for row in _sessions(query, shown[query], truth)]
    texts = {"queries": truth.queries, "corpus": truth.corpus}
    plain = [{key: row[key] for key in ("query_id", "document_id", "clicks")} for row in log]
    labels = {
        "true": truth,
        "every click": EmbeddingQAFinetuneDataset.from_records(plain, **texts),
        "from_feedback": EmbeddingQAFinetuneDataset.from_feedback(log, **texts),
    }
    test = real.tests["test"]
    found = evaluate_retrieval(base, test, cache_dir=cache, show_progress=False)
    return {"base": found["ndcg@10"]} | {
        name: _worth(own, truth, test, cache) for name, own in labels.items()
    }


def _sessions(query: str, shown: list[str], truth: EmbeddingQAFinetuneDataset) -> Any:
    random = np.random.default_rng(sum(map(ord, query)))
    for session in range(_SESSIONS):
        for place, document in enumerate(shown, start=1):
            looked = random.random() < 1 / place
            right = document in truth.relevant_docs[query]
            clicked = looked and random.random() < (_RIGHT if right else _WRONG)
            row = {"query_id": query, "document_id": document, "position": place}
            yield {**row, "session": session, "clicks": int(clicked)}


def _worth(
    own: EmbeddingQAFinetuneDataset, truth: EmbeddingQAFinetuneDataset, test: Any, cache: Path
) -> dict[str, Any]:
    pairs = [(query, document) for query, found in own.relevant_docs.items() for document in found]
    right = sum(document in truth.relevant_docs[query] for query, document in pairs)
    engine = sets.trained(own, environment.minilm(), cache, method="linear")
    model = engine.get_finetuned_model()
    scores = evaluate_retrieval(model, test, cache_dir=cache, show_progress=False)
    counts = {"queries": len(own), "pairs": len(pairs), "right": right / len(pairs)}
    return {**counts, "ndcg@10": scores["ndcg@10"]}
