"""Adapter versions of one serving model: which came before, and what may follow."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.sketch import QuerySketch

#: How many earlier versions can be rolled back to.
DEPTH = 8


@dataclass(frozen=True, eq=False)
class Version:
    """An adapter and what is known of it; immutable, so that a reference to it is a snapshot.

    Args:
        adapter: The adapter.
        training: Data, scores and settings of its training.
        sketch: What its training queries looked like.
    """

    adapter: Adapter
    training: dict[str, Any] = field(default_factory=dict)
    sketch: QuerySketch | None = None


class Versions:
    """The earlier versions of a model, latest last; at most :data:`DEPTH`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._past: list[Version] = []

    def keep(self, version: Version) -> None:
        """Remember a version that is about to be replaced; the oldest is forgotten."""
        self._past = [*self._past, version][-DEPTH:]

    def take_back(self) -> Version:
        """Return the version before, and forget it.

        Raises:
            OptionError: There is none.
        """
        if not self._past:
            raise OptionError(
                f"There is no earlier adapter to roll back to; the last {DEPTH} swaps are kept."
            )
        *self._past, latest = self._past
        return latest


def check_successor(current: Adapter, new: Adapter, *, index_rebuilt: bool) -> None:
    """Check that an adapter can take the place of another over the same index.

    Args:
        current: The adapter in service.
        new: Its successor.
        index_rebuilt: The caller's word that the index holds the successor's document vectors.

    Raises:
        ShapeError: Other dimensions.
        OptionError: It treats documents otherwise, so that the index no longer fits.
    """
    if (new.input_dim, new.output_dim) != (current.input_dim, current.output_dim):
        raise ShapeError(
            "The adapter to swap in",
            expected=f"{current.input_dim} → {current.output_dim}, as the one in service",
            actual=f"{new.input_dim} → {new.output_dim}",
            hint="Was it trained on another base model?",
        )
    moves = new.adapts_documents or current.adapts_documents
    if moves and not index_rebuilt and new != current:
        raise OptionError(
            "One of the two adapters moves documents, so the index in service does not fit the "
            "other. Rebuild it with adapt_index, then swap with index_rebuilt=True."
        )
