"""Watching an adapter in service: do live queries still look like those it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from numpy.typing import NDArray

from ..adapters.sketch import QuerySketch
from ..core.arrays import Vectors
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import DatasetError, FolderError
from ..evaluation.verdict import Decision, Verdict
from ..serving.embedding import AdaptedEmbedding

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
    from scipy.spatial.distance import cdist  # takes a while to import: only who watches pays

    within, across = cdist(reference, reference), cdist(live, reference)
    nearest = np.sort(within + np.diag(np.full(len(within), np.inf)), axis=1)[:, NEIGHBOUR - 1]
    limit = max(float(np.quantile(nearest, 1 - FAR)), 1e-9)
    strangeness = np.sort(across, axis=1)[:, NEIGHBOUR - 1] / limit
    everything = np.block([[within, across.T], [across, cdist(live, live)]])
    distance, p_value = _energy_test(everything, len(reference), seed)
    return Drift(distance, p_value, strangeness > 1.0, strangeness)


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


#: Fewer live queries say nothing.
FEWEST_QUERIES = 30

#: Most live queries that are compared; of more, a sample is.
MOST_QUERIES = 2_000

#: Retrain where the share of far queries is surely above this, or the distance above that.
FAR_LIMIT, DISTANCE_LIMIT = 2 * FAR, 0.03
_ALPHA = 0.01


@dataclass(frozen=True)
class DriftReport:
    """Live queries against those an adapter was trained on.

    Args:
        queries: Live queries compared.
        trained_on: Training queries the adapter has seen.
        sketch: How many of these were kept to compare with.
        far_share: Share of live queries far from any training query, in [0, 1]: farther than all
            but 5 % of the training queries are from each other.
        far_low: Lower end of its 95 % interval (Wilson 1927).
        far_high: Upper end.
        distance: Energy distance of the two distributions, in [0, 1]; 0 is none.
        p_value: How often chance alone gives a distance this large.
        farthest: The live queries farthest from training, the farthest first.
    """

    queries: int
    trained_on: int
    sketch: int
    far_share: float
    far_low: float
    far_high: float
    distance: float
    p_value: float
    farthest: tuple[str, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether live queries are surely distributed otherwise, however little."""
        return self.p_value <= _ALPHA

    @property
    def retrain(self) -> bool:
        """Whether live queries have moved so far that training should see some of them."""
        return self.far_low > FAR_LIMIT or (self.moved and self.distance > DISTANCE_LIMIT)

    @property
    def verdict(self) -> Verdict:
        """What the numbers say."""
        moved = f"(distance {self.distance:.3f}, p = {self.p_value:.3f})"
        if self.far_low > FAR_LIMIT:
            return Verdict(
                Decision.RETRAIN,
                f"{self.far_share:.0%} of the queries are far from any training query, {FAR:.0%} "
                "would be usual; judge and add some of them first",
            )
        if self.retrain:
            return Verdict(
                Decision.RETRAIN,
                f"the queries have another distribution {moved}, though few are far from all "
                "training queries",
            )
        if self.moved:
            return Verdict(Decision.WATCH, f"the queries have moved a little {moved}")
        return Verdict(Decision.KEEP, "the queries look like those of training")

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON knows it."""
        return {
            **asdict(self),
            "farthest": list(self.farthest),
            "moved": self.moved,
            "retrain": self.retrain,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        return (
            f"{self.verdict}\n{self.queries} live queries, {self.trained_on} of training: "
            f"{self.far_share:.1%} [{self.far_low:.1%}, {self.far_high:.1%}] far from training, "
            f"distance {self.distance:.3f}, p = {self.p_value:.3f}"
        )


def inspect_queries(
    model: AdaptedEmbedding | str | Path,
    queries: Sequence[str],
    base_embed_model: BaseEmbedding | None = None,
    *,
    examples: int = 5,
    cache_dir: CacheDir = None,
    seed: int = 0,
    show_progress: bool = True,
) -> DriftReport:
    """Compare live queries with those an adapter was trained on, and say when to retrain.

    Embeds the queries with the base model; those that are cached are not embedded again. Needs the
    sketch of training queries that ``finetune()`` saves in the folder.

    Args:
        model: A model in service, or the folder of one.
        queries: Live queries, at least 30 distinct ones; a sample of 2,000 is compared.
        base_embed_model: For a folder; None builds it from what the folder says.
        examples: How many of the farthest queries to report.
        cache_dir: See :class:`Encoder`.
        seed: Of the sample and the test.
        show_progress: Show a bar while embedding.

    Raises:
        DatasetError: Too few queries.
        FolderError: The folder has no sketch, or is no folder of ours.
        BaseModelMismatchError: The base model is not the one of the folder.
    """
    distinct = list(dict.fromkeys(queries))
    if len(distinct) < FEWEST_QUERIES:
        raise DatasetError(
            f"queries: expected at least {FEWEST_QUERIES} distinct ones, got {len(distinct)}. "
            "Fewer say nothing about a distribution."
        )
    if not isinstance(model, AdaptedEmbedding):
        model = AdaptedEmbedding.from_pretrained(model, base_embed_model)
    sketch = model.sketch
    if sketch is None:
        raise FolderError(
            "There is no sketch of the training queries to compare with. Adapters trained by this "
            "version have one; for another, pass sketch=QuerySketch.of(vectors) to "
            "AdaptedEmbedding and save it again."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:MOST_QUERIES])
    texts = [distinct[row] for row in chosen]
    encoder = Encoder(model.base_embed_model, cache_dir=cache_dir, show_progress=show_progress)
    try:
        vectors = encoder.encode(texts, "query")
    finally:
        encoder.close()
    return compare(sketch, vectors, texts, examples=examples, seed=seed)


def compare(
    sketch: QuerySketch,
    vectors: np.ndarray[Any, Any],
    texts: Sequence[str] = (),
    *,
    examples: int = 5,
    seed: int = 0,
) -> DriftReport:
    """Compare vectors of live queries with a sketch.

    Args:
        sketch: Of the training queries.
        vectors: ``(n, dim)``, of the base model.
        texts: Their texts, for the examples; may be left out.
        examples: How many of the farthest to report.
        seed: Of the test.

    Raises:
        DatasetError: The sketch is of fewer than 5 queries.
    """
    from scipy import stats

    if len(sketch.points) < 5:
        raise DatasetError(
            f"The adapter was trained on {sketch.queries} queries; at least 5 different ones are "
            "needed to compare with."
        )
    found = drift(sketch.reference, sketch.place(vectors), seed=seed)
    interval = stats.binomtest(int(found.far.sum()), len(vectors)).proportion_ci(method="wilson")
    order = np.argsort(-found.strangeness, kind="stable")[:examples]
    return DriftReport(
        len(vectors),
        sketch.queries,
        len(sketch.points),
        float(found.far.mean()),
        float(interval.low),
        float(interval.high),
        found.distance,
        found.p_value,
        tuple(texts[row] for row in order) if texts else (),
    )
