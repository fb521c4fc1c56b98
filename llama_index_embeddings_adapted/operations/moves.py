"""Which documents an adapter moves, how far, and taking that back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters.base import Adapter
from ..adapters.composites import StackedAdapter
from ..adapters.maps import LinearAdapter
from ..adapters.nonparametric import NudgeAdapter
from ..core.arrays import Keys, Vectors, content_hashes, l2_normalize
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import OptionError, quote_some
from ..serving.embedding import AdaptedEmbedding

_MOVED = 1e-4  # distance below which a unit vector has only been rounded


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
        return {
            "documents": self.documents,
            "moved": len(self.distances),
            "mean": self.mean,
            "farthest": self.farthest,
            "distances": dict(self.distances),
            "new": list(self.new),
            "deleted": self.deleted,
            "bound": self.bound,
        }

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
        model: With an adapter that moves documents, or one that does not.
        corpus: Document id → text, as it is embedded. Texts that are cached are not embedded again.
        cache_dir: See :class:`Encoder`.
        show_progress: Show a bar while embedding.

    Raises:
        OptionError: ``corpus`` is empty.
    """
    if not corpus:
        raise OptionError("corpus: expected at least one document, got none.")
    texts = list(corpus.values())
    encoder = Encoder(model.base_embed_model, cache_dir=cache_dir, show_progress=show_progress)
    try:
        vectors = encoder.encode(texts, "document")
    finally:
        encoder.close()
    return report_moves(model.adapter, list(corpus), vectors, content_hashes(texts))


def report_moves(adapter: Adapter, ids: Sequence[str], vectors: Vectors, keys: Keys) -> MoveReport:
    """Report moves of documents whose vectors are at hand.

    Args:
        adapter: Any.
        ids: ``n`` names.
        vectors: ``(n, dim)``, of the base model.
        keys: ``(n,)``, content keys of the documents.

    Raises:
        OptionError: The adapter changes the dimension, so that there is no distance.
    """
    if adapter.input_dim != adapter.output_dim:
        raise OptionError("An adapter that changes the dimension moves documents by no distance.")
    after = l2_normalize(adapter.apply(vectors, "document", keys))
    lengths = np.linalg.norm(after - l2_normalize(vectors), axis=1)
    order = np.argsort(-lengths, kind="stable")
    distances = {ids[row]: float(lengths[row]) for row in order if lengths[row] > _MOVED}
    nudges = _nudges_in(adapter)
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
        adapter: Nudges, or a stack with nudges in it.
        texts: Of the documents whose nudges are undone.
        keep: Of all documents there are: nudges of any other text are dropped, too.

    Raises:
        OptionError: The adapter has no nudges.
    """
    if not _nudges_in(adapter):
        raise OptionError(f"{type(adapter).__name__} has no nudges to undo.")
    return _each_nudge(adapter, lambda nudges: _without(nudges, texts, keep))


def bound_nudges(adapter: Adapter, max_drift: float) -> Adapter:
    """Return an adapter whose nudges are at most so long; shorter ones stay as they are.

    Args:
        adapter: Nudges, or a stack with nudges in it.
        max_drift: Longest offset, in units of the documents' length 1, ``>= 0``.

    Raises:
        OptionError: The adapter has no nudges, or ``max_drift`` is negative.
    """
    if not max_drift >= 0:
        raise OptionError(f"max_drift: expected a number >= 0, got {max_drift!r}.")
    if not _nudges_in(adapter):
        raise OptionError(f"{type(adapter).__name__} has no nudges to bound.")
    return _each_nudge(
        adapter, lambda nudges: NudgeAdapter.of(nudges.keys, nudges.offsets, max_drift=max_drift)
    )


def _nudges_in(adapter: Adapter) -> list[NudgeAdapter]:
    if isinstance(adapter, NudgeAdapter):
        return [adapter]
    if isinstance(adapter, StackedAdapter):
        return [nudges for part in adapter.adapters for nudges in _nudges_in(part)]
    return []


def _each_nudge(adapter: Adapter, change: Callable[[NudgeAdapter], Adapter]) -> Adapter:
    if isinstance(adapter, NudgeAdapter):
        return change(adapter)
    if isinstance(adapter, StackedAdapter):
        return StackedAdapter(*(_each_nudge(part, change) for part in adapter.adapters))
    return adapter


def _without(nudges: NudgeAdapter, texts: Sequence[str], keep: Sequence[str] | None) -> Adapter:
    undone = np.isin(nudges.keys, content_hashes(texts))
    if keep is not None:
        undone |= ~np.isin(nudges.keys, content_hashes(keep))
    if undone.all():  # nothing is left of it but a map that leaves everything as it is
        return LinearAdapter(np.eye(nudges.input_dim, dtype=np.float32), normalize=False)
    return nudges.without(nudges.keys[undone])
