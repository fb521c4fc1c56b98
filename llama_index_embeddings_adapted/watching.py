"""Watching an adapter in service: have the queries moved away from what it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.drift import FAR, drift
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.encode import CacheDir, Encoder
from llama_index_embeddings_adapted.errors import DatasetError, FolderError
from llama_index_embeddings_adapted.sketch import QuerySketch

#: Fewer live queries say nothing.
FEWEST_QUERIES = 30
#: Most live queries that are compared; of more, a sample is.
MOST_QUERIES = 2_000
#: Retrain where the share of far queries is surely above this, or the distance above that.
FAR_LIMIT, DISTANCE_LIMIT = 2 * FAR, 0.03
_ALPHA = 0.01
_Z = 1.96  # 95 % interval


@dataclass(frozen=True)
class DriftReport:
    """Live queries against those an adapter was trained on.

    Args:
        queries: Live queries compared.
        trained_on: Training queries the adapter has seen.
        sketch: How many of these were kept to compare with.
        far_share: Share of live queries far from any training query, in [0, 1]: farther than all
            but 5 % of the training queries are from each other.
        far_low: Lower end of its 95 % interval (Wilson).
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
    def verdict(self) -> str:
        """What the numbers say, in words."""
        if self.far_low > FAR_LIMIT:
            return (
                f"retrain: {self.far_share:.0%} of the queries are far from any training query, "
                f"{FAR:.0%} would be usual; judge and add some of them first"
            )
        if self.retrain:
            return (
                f"retrain: the queries have another distribution (distance {self.distance:.3f}, "
                f"p = {self.p_value:.3f}), though few are far from all training queries"
            )
        if self.moved:
            return (
                f"keep, and look again: the queries have moved a little (distance "
                f"{self.distance:.3f}, p = {self.p_value:.3f})"
            )
        return "keep: the queries look like those of training"

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
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
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
    if len(sketch.points) < 5:
        raise DatasetError(
            f"The adapter was trained on {sketch.queries} queries; at least 5 different ones are "
            "needed to compare with."
        )
    found = drift(sketch.reference, sketch.place(vectors), seed=seed)
    share = float(found.far.mean())
    low, high = wilson(share, len(vectors))
    order = np.argsort(-found.strangeness, kind="stable")[:examples]
    return DriftReport(
        len(vectors),
        sketch.queries,
        len(sketch.points),
        share,
        low,
        high,
        found.distance,
        found.p_value,
        tuple(texts[row] for row in order) if texts else (),
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    Args:
        share: In [0, 1].
        count: Of how many.

    Source:
        Wilson 1927.
    """
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    spread = share * (1 - share) / count + _Z**2 / (4 * count**2)
    half = _Z * spread**0.5 / (1 + _Z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)
