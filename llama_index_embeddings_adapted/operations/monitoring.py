"""Watching an adapter in service: what it moves, and whether queries still look as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..adapters.base import Adapter
from ..adapters.composites import StackedAdapter
from ..adapters.maps import LinearAdapter, NudgeAdapter
from ..adapters.prior import DocumentPrior
from ..adapters.saving import QuerySketch
from ..core.arrays import Floats, content_hashes, l2_normalize
from ..encoding.cache import CacheDir
from ..encoding.encoder import encode
from ..errors import DatasetError, FolderError, OptionError, check_number, check_texts, quote_some
from ..evaluation.verdict import Decision, Verdict
from ..serving.embedding import AdaptedEmbedding
from .folder import nudges_in

NEIGHBOUR = 3  # whose distance says how far a query is from all others
FAR = 0.05  # share of training queries that count as far from the others, by definition
PERMUTATIONS = 999
FEWEST_QUERIES = 30  # fewer live ones say nothing
MOST_QUERIES = 2_000  # of more live ones, a sample is compared

#: Retrain where the share of far queries is surely above this, or the distance above that.
FAR_LIMIT, DISTANCE_LIMIT = 2 * FAR, 0.03
_ALPHA = 0.01
_MOVED = 1e-4  # distance below which a unit vector has only been rounded


def energy_test(distances: Floats, count: int, *, seed: int = 0) -> tuple[float, float]:
    """Compare the first ``count`` of ``n`` points with the others, by ``(n, n)`` distances.

    Returned are their energy distance, as a share of their mean distance, in [0, 1], and how often
    a random split has such a distance. Source: Székely and Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018.
    """
    random, total = np.random.default_rng(seed), len(distances)
    labels = np.zeros((total, 1 + PERMUTATIONS))
    labels[:count, 0] = 1.0
    for column in range(1, labels.shape[1]):
        labels[random.permutation(total)[:count], column] = 1.0
    sums = distances @ labels  # to the rows marked, for every row and every split
    row_sums = distances.sum(axis=1)[:, None]
    inside = (labels * sums).sum(axis=0)
    across = (labels * (row_sums - sums)).sum(axis=0)
    outside = distances.sum() - inside - 2 * across
    cross = 2 * across / (count * (total - count))
    energy = cross - inside / count**2 - outside / (total - count) ** 2
    p_value = float(np.mean(energy >= energy[0] - 1e-12))
    return float(np.clip(energy[0] / max(cross[0], 1e-12), 0.0, 1.0)), p_value


@dataclass(frozen=True)
class DriftReport:
    """Live queries against those an adapter was trained on.

    Args:
        queries: Live queries compared.
        trained_on: Training queries the adapter has seen.
        sketch: How many of these were kept to compare with.
        far_share: Share of live queries far from any training query, in [0, 1]: farther than all
            but 5 % of the training queries are from each other.
        far_low, far_high: Its 95 % interval (Wilson 1927).
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
        decision, why = Decision.KEEP, "the queries look like those of training"
        if self.moved:
            decision, why = Decision.WATCH, f"the queries have moved a little {moved}"
        if self.retrain:
            decision, why = Decision.RETRAIN, f"the queries have another distribution {moved}"
            why += ", though few are far from all training queries"
        if self.far_low > FAR_LIMIT:
            why = f"{self.far_share:.0%} of the queries are far from any training query, {FAR:.0%} "
            why += "would be usual; judge and add some of them first"
        return Verdict(decision, why)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON knows it."""
        found = {**asdict(self), "farthest": list(self.farthest)}
        return found | {name: getattr(self, name) for name in ("moved", "retrain", "verdict")}

    def __str__(self) -> str:
        return (
            f"{self.verdict}\n{self.queries} live queries, {self.trained_on} of training: "
            f"{self.far_share:.1%} [{self.far_low:.1%}, {self.far_high:.1%}] far from training, "
            f"distance {self.distance:.3f}, p = {self.p_value:.3f}"
        )


def inspect_queries(
    model: AdaptedEmbedding | str | Path,
    queries: Sequence[str],
    base_embed_model: BaseEmbedding | str | None = None,
    *,
    examples: int = 5,
    cache_dir: CacheDir = None,
    seed: int = 0,
    show_progress: bool = True,
) -> DriftReport:
    """Compare live queries with those an adapter was trained on, and say when to retrain.

    Embeds the queries with the base model. Needs the sketch of training queries that
    ``finetune()`` saves in the folder.

    Args:
        model: A model in service, or the folder of one.
        queries: Live queries, at least 30 distinct ones; a sample of 2,000 is compared.
        base_embed_model: For a folder; None builds it from what the folder says.
        examples: How many of the farthest queries to report.
        cache_dir, show_progress: See :class:`Encoder`.
        seed: Of the sample and the test.

    Raises:
        DatasetError: Too few queries.
        FolderError: The folder has no sketch, or is no folder of ours.
        BaseModelMismatchError: The base model is not the one of the folder.
    """
    distinct = list(dict.fromkeys(check_texts("queries", queries)))
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
    settings: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    vectors = encode(model.base_embed_model, texts, "query", **settings)
    return compare(sketch, vectors, texts, examples=examples, seed=seed)


def compare(
    sketch: QuerySketch,
    vectors: np.ndarray[Any, Any],
    texts: Sequence[str] = (),
    *,
    examples: int = 5,
    seed: int = 0,
) -> DriftReport:
    """Compare ``(n, dim)`` live queries with a sketch of 5 or more, else raise a DatasetError."""
    from scipy import stats  # takes a while to import: only who watches pays
    from scipy.spatial.distance import cdist

    if len(sketch.points) < 5:
        raise DatasetError(
            f"The adapter was trained on {sketch.queries} queries; at least 5 different ones are "
            "needed to compare with."
        )
    everything = np.concatenate([sketch.reference, sketch.project(vectors)])
    distances, trained, count = cdist(everything, everything), len(sketch.points), len(vectors)
    within, across = distances[:trained, :trained], distances[trained:, :trained]
    nearest = np.sort(within, axis=1)[:, NEIGHBOUR]  # the first is each query itself
    limit = max(float(np.quantile(nearest, 1 - FAR)), 1e-9)
    novelty = np.sort(across, axis=1)[:, NEIGHBOUR - 1] / limit
    far = int((novelty > 1.0).sum())
    interval = stats.binomtest(far, count).proportion_ci(method="wilson")
    order = np.argsort(-novelty, kind="stable")[:examples]
    shares = far / count, float(interval.low), float(interval.high)
    farthest = tuple(texts[row] for row in order) if texts else ()
    test = energy_test(distances, trained, seed=seed)
    return DriftReport(count, sketch.queries, trained, *shares, *test, farthest)


@dataclass(frozen=True)
class MoveReport:
    """Documents of a corpus, as an adapter moves them.

    Args:
        distances: Document id → distance between its unit vectors before and after, in [0, 2], the
            farthest first; documents that stay are not among them.
        documents: How many documents there are.
        new: Ids of documents without a nudge: new, edited, or never asked for. They keep their
            vectors. Empty where the adapter has no nudges.
        deleted: How many nudges belong to no document of the corpus; :func:`undo_nudges` with
            ``keep`` drops them.
        bound: The longest offset that the nudges can add; None where there are none.
    """

    distances: Mapping[str, float]
    documents: int
    new: tuple[str, ...] = ()
    deleted: int = 0
    bound: float | None = None

    @property
    def farthest(self) -> float:
        """The largest distance; 0 where nothing moves."""
        return max(self.distances.values(), default=0.0)

    @property
    def mean(self) -> float:
        """Mean distance of the documents that move; 0 where nothing does."""
        return float(np.mean(list(self.distances.values()))) if self.distances else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON knows it."""
        found = {"moved": len(self.distances), "mean": self.mean, "farthest": self.farthest}
        return {**asdict(self), "new": list(self.new), **found}

    def to_markdown(self, limit: int = 20) -> str:
        """Return a table of the documents that move farthest."""
        rows = [f"| {name} | {length:.3f} |" for name, length in self.distances.items()]
        return "\n".join(["| document | moved by |", "|---|---:|", *rows[:limit]])

    def __str__(self) -> str:
        text = (
            f"{len(self.distances)} of {self.documents} documents move, by {self.mean:.3f} on "
            f"average and {self.farthest:.3f} at most"
        )
        if self.distances:
            text += f" (farthest: {quote_some(self.distances)})"
        if self.bound is not None:
            text += (
                f"; {len(self.new)} are new, edited or never asked for and stay; {self.deleted} "
                f"nudges belong to no document; offsets are at most {self.bound:.3f} long"
            )
        return text


def moved_documents(
    model: AdaptedEmbedding,
    corpus: Mapping[str, str],
    *,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> MoveReport:
    """Report which documents a model moves, and how far.

    Args:
        model: Any; of a :class:`DocumentPrior` the changes of scores are reported. Another adapter
            that changes the dimension is an OptionError.
        corpus: Document id → text, as it is embedded; without any, it is an OptionError.
        cache_dir, show_progress: See :class:`Encoder`.
    """
    if not corpus:
        raise OptionError("corpus: expected at least one document, got none.")
    texts = list(corpus.values())
    adapter, ids, keys = model.adapter, list(corpus), content_hashes(texts)
    if adapter.input_dim != adapter.output_dim and not isinstance(adapter, DocumentPrior):
        raise OptionError("An adapter that changes the dimension moves documents by no distance.")
    settings: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    vectors = encode(model.base_embed_model, texts, "document", **settings)
    if isinstance(adapter, DocumentPrior):
        lengths = np.abs(adapter.shifts(vectors, keys))
    else:
        after = l2_normalize(adapter.apply(vectors, "document", keys))
        lengths = np.linalg.norm(after - l2_normalize(vectors), axis=1)
    order = np.argsort(-lengths, kind="stable")
    distances = {ids[row]: float(lengths[row]) for row in order if lengths[row] > _MOVED}
    nudges = nudges_in(adapter)
    if not nudges:
        return MoveReport(distances, len(ids))
    known = np.unique(np.concatenate([each.keys for each in nudges]))
    new = tuple(name for name, old in zip(ids, np.isin(keys, known), strict=True) if not old)
    deleted = int(np.sum(~np.isin(known, keys)))
    return MoveReport(distances, len(ids), new, deleted, sum(each.drift for each in nudges))


def undo_nudges(
    adapter: Adapter, texts: Sequence[str] = (), *, keep: Sequence[str] | None = None
) -> Adapter:
    """Return an adapter without the nudges of some documents; all other parts stay.

    Args:
        adapter: Nudges, or a stack with nudges in it; without any, an OptionError.
        texts: Of the documents whose nudges are undone.
        keep: Of all documents there are: nudges of any other text are dropped, too.
    """

    def without(nudges: NudgeAdapter) -> Adapter:
        undone = np.isin(nudges.keys, content_hashes(texts))
        if keep is not None:
            undone |= ~np.isin(nudges.keys, content_hashes(keep))
        if undone.all():  # nothing is left of it but a map that leaves everything as it is
            return LinearAdapter(np.eye(nudges.input_dim, dtype=np.float32), normalize=False)
        return nudges.without(nudges.keys[undone])

    return _changed(adapter, "undo", without)


def bound_nudges(adapter: Adapter, max_drift: float) -> Adapter:
    """Return an adapter whose nudges are at most so long; shorter ones stay as they are.

    ``max_drift`` is the longest offset, in units of the documents' length 1, ``>= 0``. An
    OptionError if it is negative, or if neither the adapter nor a part of it has nudges.
    """
    check_number("max_drift", max_drift, least=0.0)
    return _changed(
        adapter, "bound", lambda each: NudgeAdapter.of(each.keys, each.offsets, max_drift=max_drift)
    )


def _changed(adapter: Adapter, what: str, change: Callable[[NudgeAdapter], Adapter]) -> Adapter:
    if not nudges_in(adapter):
        raise OptionError(f"{type(adapter).__name__} has no nudges to {what}.")

    def each(part: Adapter) -> Adapter:
        if isinstance(part, StackedAdapter):
            return StackedAdapter(*map(each, part.adapters))
        return change(part) if isinstance(part, NudgeAdapter) else part

    return each(adapter)
