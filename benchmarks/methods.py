"""Methods side by side on real test sets: known and new documents, told and not told."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import environment, sets
from benchmarks.quality import judge
from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine

# Share of test queries about documents with training questions: the one thing a user may know.
SEEN = {
    "nfcorpus": 1.0,
    "scifact": 0.65,
    "uberlyft_10k": 0.0,
    "squad_dev": 0.19,
    "nl2bash": 0.22,
    "tldr_pages": 0.47,
    "banking77_intent": 1.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "auto, query": {"method": "auto"},
    "auto, query, told": {"method": "auto", "told": True},
    "auto, both": {"method": "auto", "adapts": "both"},
    "auto, both, told": {"method": "auto", "adapts": "both", "told": True},
}


def run(data: Path, cache: Path, names: tuple[str, ...], variants: tuple[str, ...]) -> None:
    """Train on train and dev, test once; each run is saved as it ends, beside earlier ones."""
    base = environment.minilm(embed_batch_size=32)
    for variant in variants:
        for name in names:
            row = _one(base, sets.load(data, name), cache, dict(VARIANTS[variant]))
            _keep(name, variant, row)
            shown = ", ".join(
                f"{part} {found['base']['ndcg@10']:.4f} → {found['adapted']['ndcg@10']:.4f}"
                for part, found in row["tests"]["test"].items()
            )
            print(f"{name}, {variant}: {shown}; {row['recipe']}; {row['seconds']:.0f} s",
                  flush=True)  # fmt: skip


def _keep(name: str, variant: str, row: dict[str, Any]) -> None:
    results = environment.load("methods")["sets"] if environment.exists("methods") else {}
    results.setdefault(name, {})[variant] = row
    environment.save("methods", "python -m benchmarks methods", {"sets": results})


def _one(base: Any, real: sets.RealSet, cache: Path, options: dict[str, Any]) -> dict[str, Any]:
    if options.pop("told", False):
        options["expect"] = SEEN[real.name]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = EmbeddingAdapterFinetuneEngine(
            real.train,
            base,
            val_dataset=real.dev,
            model_output_path=Path(folder) / "adapter",
            cache_dir=cache,
            show_progress=False,
            **options,
        )
        engine.finetune()
    seconds = time.perf_counter() - began
    report = engine.report
    assert report.choice is not None
    model = engine.get_finetuned_model()
    return {
        "verdict": report.verdict,
        "recipe": report.choice.recipe,
        "expect": report.choice.expectation.share,
        "candidates": {name: list(gain) for name, gain in report.choice.gains.items()},
        "seconds": seconds,
        "base_texts": report.base_texts,
        "base_calls": report.base_calls,
        "cross_fitted": {
            "known": None if report.known is None else report.known.difference.mean,
            "new": None if report.new is None else report.new.difference.mean,
        },
        "tests": {split: judge(base, model, real, split, cache) for split in real.tests},
    }
