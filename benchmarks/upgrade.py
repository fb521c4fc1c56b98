"""Moving to a new base model over the old index, against a real re-embedding of everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from benchmarks import environment, sets
from llama_index_embeddings_adapted import evaluate_upgrade, upgrade_adapter
from llama_index_embeddings_adapted.significance import paired_difference

SET = "uberlyft_10k"


def run(data: Path, cache: Path, mpnet: Path) -> dict[str, Any]:
    """Measure both directions, fitted on documents alone and with unlabelled queries besides.

    Tested on all 790 Uber queries over the 395 Uber chunks. Fitted on the texts of the Uber and
    Lyft chunks; queries are the 600 of the training split, which ask about Lyft.
    """
    real = sets.load(data, SET)
    test = real.tests["test"]
    texts = [*test.corpus.values(), *real.train.corpus.values()]
    models = {
        "all-MiniLM-L6-v2": environment.minilm(),
        "all-mpnet-base-v2": HuggingFaceEmbedding(str(mpnet), embed_batch_size=8),
    }
    found: list[dict[str, Any]] = []
    for old, new in (tuple(models), tuple(reversed(models))):
        for queries in ([], list(real.train.queries.values())):
            for method in ("procrustes", "auto"):
                upgrade = upgrade_adapter(
                    models[old], models[new], texts, queries=queries, method=method, cache_dir=cache
                )
                scores = evaluate_upgrade(upgrade, models[old], models[new], test, cache_dir=cache)
                lost = paired_difference(
                    scores.reembedded.values("ndcg@10"),
                    scores.upgraded.values("ndcg@10"),
                    metric="ndcg@10",
                )
                found.append(
                    {
                        "old": old,
                        "new": new,
                        "texts": len(set(texts)),
                        "queries": len(queries),
                        "asked": method,
                        "method": upgrade.method,
                        "agreement": upgrade.agreement,
                        "cosine": upgrade.cosine,
                        "tried": upgrade.tried,
                        "scores": scores.to_dict(),
                        "against re-embedding": [lost.mean, lost.low, lost.high],
                    }
                )
                print(
                    old, "→", new, len(queries), "queries:", upgrade, scores, sep="\n", flush=True
                )
    return {"set": SET, "test queries": len(test.queries), "runs": found}
