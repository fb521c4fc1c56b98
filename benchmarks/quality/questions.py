"""Questions that a 135M Llama wrote: how good they are, and what an adapter makes of them."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.schema import TextNode

from benchmarks import environment, sets
from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    Candidate,
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    LocalLlama,
    compare_retrieval,
    generate_qa_embedding_pairs,
)
from llama_index_embeddings_adapted.questions.selection import round_trip

PASSAGES = {"uberlyft_10k": 100, "scifact": 120}
OPTIONS: dict[str, Any] = {
    "num_questions_per_chunk": 2,
    "questions_per_call": 1,
    "styles": ("question", "keywords"),
    "concurrency": 1,
    "seed": 0,
}
SHOWN = 30
METRICS = ("ndcg@10", "mrr@10", "hit_rate@5")


def llama() -> LocalLlama:
    """Return SmolLM2 with the settings of the documentation."""
    return LocalLlama(max_tokens=48, stop=["\n"], temperature=0.0)


def run(data: Path, cache: Path) -> dict[str, Any]:
    """Write questions on both sets, judge them, train on them and nothing else, test."""
    base = environment.minilm(embed_batch_size=32)
    results: dict[str, Any] = {}
    for name, most in PASSAGES.items():
        dataset = written(data, cache, name, most, base)
        found: dict[str, Any] = {"questions": _judged(dataset, base, cache)}
        test = sets.load(data, name).tests["test"]
        for variant, train in _variants(dataset).items():
            found[variant] = _trained(train, test, base, cache)
            print(
                name, variant, found[variant]["verdict"], found[variant]["difference"], flush=True
            )
        results[name] = found
    return results


def written(data: Path, cache: Path, name: str, most: int, base: Any) -> EmbeddingQAFinetuneDataset:
    """Have the Llama write about a sample of a set's passages; Lyft only, of uberlyft_10k."""
    return generate_qa_embedding_pairs(
        nodes_of(data / name, "lyft" if name == "uberlyft_10k" else None),
        llama(),
        max_chunks=most,
        embed_model=base,
        cache_dir=cache,
        **OPTIONS,
    )


def nodes_of(folder: Path, source: str | None) -> list[TextNode]:
    """Read the corpus of a set as nodes."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    return [
        TextNode(id_=line["_id"], text=f"{line['title']} {line['text']}".strip())
        for line in lines
        if source is None or line["metadata"]["source"] == source
    ]


def _judged(dataset: EmbeddingQAFinetuneDataset, base: Any, cache: Path) -> dict[str, Any]:
    report = dataset.report
    trip = round_trip(report.kept, dataset.corpus, base, cache_dir=cache, show_progress=False)
    randomness = random.Random(0)
    return {
        "model": "SmolLM2-135M-Instruct Q4_1",
        "options": {**OPTIONS, "llm": llama().model_dump(include={"max_tokens", "stop"})},
        "report": {**report.to_dict(), "failed": len(report.failed)},
        "kept_share": report.kept_fraction,
        "kept_in_top_5": float((trip.ranks < 5).mean()),
        "kept_first": float((trip.ranks == 0).mean()),
        "searched": len(set(dataset.corpus.values())),
        "random_kept": [_shown(c) for c in _some(report.kept, randomness)],
        "random_dropped": [
            {"reason": d.reason, **_shown(d.candidate)} for d in _some(report.dropped, randomness)
        ],
    }


def _some(items: Sequence[Any], randomness: random.Random) -> list[Any]:
    return randomness.sample(list(items), min(SHOWN, len(items)))


def _shown(candidate: Candidate) -> dict[str, Any]:
    return {"question": candidate.text, "style": candidate.style, "passage": candidate.document}


def _variants(dataset: EmbeddingQAFinetuneDataset) -> dict[str, EmbeddingQAFinetuneDataset]:
    """Return what to train on: the kept questions, everything written, and nonsense."""
    report = dataset.report
    everything = [*report.kept, *(d.candidate for d in report.dropped)]
    queries = {c.query_id: c.text for c in everything}
    relevant = {c.query_id: [c.document] for c in everything}
    shuffled = list(dataset.relevant_docs.values())
    random.Random(0).shuffle(shuffled)
    wrong = dict(zip(dataset.queries, shuffled, strict=True))
    return {
        "kept": dataset,
        "unfiltered": EmbeddingQAFinetuneDataset(queries, dataset.corpus, relevant).reported(
            None, synthetic=True
        ),
        "wrong passages": EmbeddingQAFinetuneDataset(
            dataset.queries, dataset.corpus, wrong
        ).reported(None, synthetic=True),
    }


def _trained(
    train: EmbeddingQAFinetuneDataset, test: EmbeddingQAFinetuneDataset, base: Any, cache: Path
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine = EmbeddingAdapterFinetuneEngine(
            train,
            base,
            model_output_path=Path(folder) / "a",
            cache_dir=cache,
            show_progress=False,
            method="linear",
        )
        engine.finetune()
        adapted: AdaptedEmbedding = engine.get_finetuned_model()
    compared = compare_retrieval(
        {"base": base, "adapted": adapted}, test, cache_dir=cache, show_progress=False
    )
    difference = compared.significance("base", "adapted")
    return {
        "train_queries": len(train),
        "verdict": engine.report.verdict,
        "epoch": engine.report.best_epoch,
        "test_queries": len(test),
        **{m: {metric: s[metric] for metric in METRICS} for m, s in compared.scores.items()},
        "difference": difference.mean,
        "interval": [difference.low, difference.high],
        "p_value": difference.p_value,
    }
