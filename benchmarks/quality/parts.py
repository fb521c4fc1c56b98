"""From how many queries on may a part of them, on known or on new documents, decide?

Simulated: a relevant document lies so many standard deviations above 1,000 others, and its score
under base and adapted model differs by noise, less a loss. How often is a loss called where there
is none, and where there is one of about .15 NDCG@10? In cross-fitting, the second is five times
likelier from 20 queries on, which is what ``verdict.FEWEST`` asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtr

SIZES = (3, 5, 10, 15, 20, 30, 50, 100, 200)
_TRIALS, _RESAMPLES = 2_000, 500
_OTHERS, _LEAD, _SPREAD, _NOISE = 1_000, 2.7, 0.9, 0.4
_LOSS = 0.4  # standard deviations; about .15 NDCG@10


def run() -> dict[str, Any]:
    """Return for each size how often a part loses, by both rules; a few seconds."""
    random = np.random.default_rng(0)
    found = {}
    for size in SIZES:
        rates: dict[str, Any] = {}
        for name, loss in (("no loss", 0.0), ("loss", _LOSS)):
            change, base = _changes(random, size, loss)
            rates[name] = {
                "mean": round(float(change.mean()), 3),
                "deviation": round(float(change.std()), 3),
                "cross-fitted": round(float(_loses(change, base).mean()), 3),
                "interval": round(float(_below_zero(change, random).mean()), 3),
            }
        found[str(size)] = rates
    return found


def _changes(random: np.random.Generator, size: int, loss: float) -> tuple[Any, Any]:
    """Return change and base value of NDCG@10, both ``(trials, size)``."""
    lead = _LEAD + _SPREAD * random.standard_normal((_TRIALS, size))
    noises = (_NOISE * random.standard_normal(lead.shape) for _ in range(2))
    base, adapted = (_ndcg(lead - less + next(noises)) for less in (0.0, loss))
    return adapted - base, base


def _ndcg(lead: Any) -> Any:
    rank = np.floor(_OTHERS * (1 - ndtr(lead)))
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


def _loses(change: Any, base: Any) -> Any:
    """Whether the mean lies more than a standard error below zero, as cross-fitting asks."""
    error = change.std(axis=1, ddof=1) / change.shape[1] ** 0.5
    return change.mean(axis=1) < -np.maximum(error, 0.005 * base.mean(axis=1))


def _below_zero(change: Any, random: np.random.Generator) -> Any:
    """Whether the 95 % bootstrap interval lies below zero, as ``method="linear"`` asks."""
    size = change.shape[1]
    high = [
        np.quantile(row[random.integers(size, size=(_RESAMPLES, size))].mean(axis=1), 0.975)
        for row in change
    ]
    return np.array(high) < 0
