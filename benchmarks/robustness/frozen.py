"""What a change that only moves code must leave equal: trained weights.

``results/frozen.json`` was written by version 0.1. What its ``auto`` chose, and its intervals, are
there as a record: both are found in other ways since. Weights are compared bit by bit, which only
the machine and the versions named in that file can promise, and by eight projections to 1e-4.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment, sets

NAMES = ("uberlyft_10k", "scifact")
_TOLERANCE = 1e-4
_COMPARED = ("queries", "base", "adapted")


def run(data: Path, cache: Path) -> list[str]:
    """Train, and print and return what differs from the result file."""
    expected = environment.load("frozen")["sets"]
    differences = [
        f"{name}: {line}"
        for name in NAMES
        for line in differing(found_on(data, cache, name), _kept(expected[name]["linear"]))
    ]
    print("\n".join(differences) or "equal")
    return differences


def found_on(data: Path, cache: Path, name: str) -> dict[str, Any]:
    given = sets.load(data, name)
    options = {"val_dataset": given.dev, "method": "linear"}
    linear = sets.trained(given.train, environment.minilm(), cache, **options)
    arrays = linear.get_finetuned_model().adapter.arrays()
    overall = linear.report.overall.to_dict()
    return {
        "sha256": {name: _digest(array) for name, array in arrays.items()},
        "projected": {name: _projected(array) for name, array in arrays.items()},
        "best_epoch": linear.report.best_epoch,
        "overall": {part: overall[part] for part in _COMPARED},
    }


def _kept(expected: dict[str, Any]) -> dict[str, Any]:
    """Leave out the interval."""
    overall = {part: expected["overall"][part] for part in _COMPARED}
    return {**expected, "overall": overall}


def differing(found: Any, expected: Any, where: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for name in sorted({*found, *expected})
            for line in differing(found.get(name), expected.get(name), f"{where}/{name}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for row, (a, b) in pairs for line in differing(a, b, f"{where}/{row}")]
    if isinstance(expected, float) and isinstance(found, float):
        return [] if abs(found - expected) <= _TOLERANCE else [f"{where} {expected} → {found}"]
    return [] if found == expected else [f"{where} {expected} → {found}"]


def _digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _projected(array: Any) -> list[float]:
    """Return eight numbers that change when the array does."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    directions = np.random.default_rng(0).standard_normal((8, len(flat)))
    return [float(value) for value in directions @ flat]
