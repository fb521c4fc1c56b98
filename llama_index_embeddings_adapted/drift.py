"""Do live queries still look like those an adapter was trained on? Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.vectors import Vectors

#: The neighbour whose distance says how far a query is from all others.
NEIGHBOUR = 3
#: Share of training queries that count as far from the others, by definition.
FAR = 0.05
PERMUTATIONS = 999

Distances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Drift:
    """How live queries lie relative to training queries.

    Args:
        distance: Energy distance of the two samples, as a share of their mean distance, in [0, 1]:
            0 for equal distributions, 1 for two far-off points.
        p_value: How often a random split of both samples has such a distance.
        far: ``(n,)``, which live queries are farther from the training queries than all but 5 % of
            those are from each other.
        strangeness: ``(n,)``, distance to the third nearest training query, in units of the
            distance at which a query counts as far.
    """

    distance: float
    p_value: float
    far: NDArray[np.bool_]
    strangeness: Distances


def drift(reference: Vectors, live: Vectors, *, seed: int = 0) -> Drift:
    """Compare live queries with training queries.

    Args:
        reference: ``(m, dim)``, at least 5.
        live: ``(n, dim)``, at least 2.
        seed: Of the permutations.

    Source:
        Székely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018: energy distance, its normalised
        form, and the permutation test.
    """
    within, across = _distances(reference, reference), _distances(live, reference)
    nearest = np.sort(within + np.diag(np.full(len(within), np.inf)), axis=1)[:, NEIGHBOUR - 1]
    limit = max(float(np.quantile(nearest, 1 - FAR)), 1e-9)
    strangeness = np.sort(across, axis=1)[:, NEIGHBOUR - 1] / limit
    everything = np.block([[within, across.T], [across, _distances(live, live)]])
    distance, p_value = _energy_test(everything, len(reference), seed)
    return Drift(distance, p_value, strangeness > 1.0, strangeness)


def _distances(one: Vectors, other: Vectors) -> Distances:
    """Return Euclidean distances, ``(len(one), len(other))``."""
    first, second = one.astype(np.float64), other.astype(np.float64)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _energy_test(distances: Distances, count: int, seed: int) -> tuple[float, float]:
    """Return the energy distance of the first ``count`` rows to the others, and its p-value."""
    total = len(distances)
    random = np.random.default_rng(seed)
    labels = np.zeros((total, 1 + PERMUTATIONS))
    labels[:count, 0] = 1.0
    for column in range(1, labels.shape[1]):
        labels[random.permutation(total)[:count], column] = 1.0
    sums = distances @ labels  # to the rows marked, for every row and every split
    row_sums = distances.sum(axis=1)[:, None]
    inside = (labels * sums).sum(axis=0)
    across = (labels * (row_sums - sums)).sum(axis=0)
    outside = distances.sum() - inside - 2 * across
    rest = total - count
    cross = 2 * across / (count * rest)
    energy = cross - inside / count**2 - outside / rest**2
    p_value = float(np.mean(energy >= energy[0] - 1e-12))
    return float(np.clip(energy[0] / max(cross[0], 1e-12), 0.0, 1.0)), p_value
