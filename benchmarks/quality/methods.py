"""Methods side by side on real test sets: known and new documents."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import environment, sets
from benchmarks.quality.quality import judge

Row = dict[str, Any]

COMMAND = "python -m benchmarks methods --seeds 5"  # measures all that the file is to have
VARIANTS: dict[str, dict[str, Any]] = {
    "auto, query": {"method": "auto"},
    "auto, both": {"method": "auto", "adapts": "both"},
}


def run(
    data: Path,
    cache: Path,
    names: tuple[str, ...],
    variants: tuple[str, ...],
    seeds: int,
    *,
    first_seed: int = 0,
    skip_existing: bool = False,
) -> None:
    """Train on train and dev, test once; each run is saved as it ends, beside earlier ones.

    It replaces the run of the same set, variant and seed. Every set has a seed before any has the
    next, so that a part of the runs is of use. ``skip_existing`` leaves out those of this version.
    """
    base = environment.minilm(embed_batch_size=32)
    present = version()
    for seed, variant, name in _order(names, variants, range(first_seed, first_seed + seeds)):
        if skip_existing and _there(name, variant, seed, present):
            continue
        row = {"seed": seed, "version": present}
        row |= one(base, sets.load(data, name), cache, {**VARIANTS[variant], "seed": seed})
        environment.add("methods", COMMAND, ("sets", name, variant), row, seeded=True)
        _tell(name, variant, row)


def version() -> str:
    """Return the last commit that changed the package."""
    command = ["git", "log", "-1", "--format=%h", "--", "llama_index_embeddings_adapted"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def _order(
    names: tuple[str, ...], variants: tuple[str, ...], seeds: range
) -> Iterator[tuple[int, str, str]]:
    for seed in seeds:
        for variant in variants:
            for name in names:
                yield seed, variant, name


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
    began = time.perf_counter()
    engine = sets.trained(real, base, cache, **options)
    seconds = time.perf_counter() - began
    report = engine.report
    assert report.choice is not None
    model = engine.get_finetuned_model()
    return {
        "verdict": report.verdict,
        "recipe": report.choice.recipe,
        "expect": report.choice.expect,
        "candidates": {name: list(gain) for name, gain in report.choice.gains.items()},
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
