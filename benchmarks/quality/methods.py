"""Methods side by side on real test sets: known and new documents."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import environment, sets
from benchmarks.processes import timed
from benchmarks.quality.judged import judge

Row = dict[str, Any]

COMMAND = "python -m benchmarks methods --packages packages"
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "auto, query": {"method": "auto"},
    "auto, both": {"method": "auto", "adapts": "both"},
}


def run(
    load: Callable[[str], sets.RealSet], cache: Path, names: tuple[str, ...],
    variants: tuple[str, ...], seeds: int,
) -> None:  # fmt: skip
    """Train on train and dev, test once; each run is saved as it ends.

    Every set has a seed before any has the next, so that a part of the runs is of use. Runs of this
    version are kept; that of another version makes room for the one of the same seed.
    """
    base = environment.minilm(embed_batch_size=32)
    present = version()
    for seed, variant, name in product(range(seeds), variants, names):
        if _there(name, variant, seed, present):
            continue
        row = {"seed": seed, "version": present}
        row |= one(base, load(name), cache, {**VARIANTS[variant], "seed": seed})
        environment.add("methods", COMMAND, ("sets", name, variant), row, by=("seed",))
        _tell(name, variant, row)


def version() -> str:
    """Return the last commit that changed the package."""
    command = ["git", "log", "-1", "--format=%h", "--", "llama_index_embeddings_adapted"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def _there(name: str, variant: str, seed: int, present: str) -> bool:
    # Read anew before each run, as another process may have added it.
    kept = environment.found("methods", "sets", name, variant)
    return any((row["seed"], row["version"]) == (seed, present) for row in kept)


def _tell(name: str, variant: str, row: Row) -> None:
    shown = ", ".join(
        f"{part} {found['base']['ndcg@10']:.4f} → {found['adapted']['ndcg@10']:.4f}"
        for part, found in row["tests"]["test"].items()
    )
    print(f"{name}, {variant}, seed {row['seed']}: {shown}; {row['recipe']}; "
          f"{row['seconds']:.0f} s", flush=True)  # fmt: skip


def one(base: Any, real: sets.RealSet, cache: Path, options: dict[str, Any]) -> Row:
    """Train a variant on train and dev, and test it."""
    train = partial(sets.trained, real.train, base, cache, val_dataset=real.dev, **options)
    engine, seconds = timed(train)
    report, model = engine.report, engine.get_finetuned_model()
    choice = report.choice
    return {
        "verdict": report.verdict,
        "recipe": "linear" if choice is None else choice.recipe,
        "expect": None if choice is None else choice.expect,
        "seconds": seconds,
        "train_queries": report.train_queries,
        "base_texts": report.base_texts,
        "base_calls": report.base_calls,
        "cross_fitted": {
            "known": None if report.known is None else report.known.difference.mean,
            "new": None if report.new is None else report.new.difference.mean,
        },
        "tests": {split: judge(base, model, real, split, cache) for split in real.tests},
    }
