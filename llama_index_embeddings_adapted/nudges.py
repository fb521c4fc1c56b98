"""An adapter that moves single documents, known by their content."""

from __future__ import annotations

from typing import Any

import numpy as np

from llama_index_embeddings_adapted.adapters import Adapter, frozen
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.folder import Arrays
from llama_index_embeddings_adapted.vectors import Keys, Vectors, unit


class NudgeAdapter(Adapter):
    """Adds an offset to the vectors of the documents it knows; leaves queries as they are.

    Documents are known by the hash of their text. A new or an edited document has no offset and
    keeps its vector; the offset of one that was deleted is never looked up. Without keys, as for
    vectors whose texts are not at hand, nothing is moved.

    Args:
        keys: ``(n,)``, ascending, the content keys of the moved documents.
        offsets: ``(n, dim)``, added to their unit vectors.

    Raises:
        ShapeError: Shapes that disagree.
        OptionError: Keys out of order, or twice.
    """

    def __init__(self, keys: Keys, offsets: Vectors) -> None:
        self.keys = np.array(keys, dtype=np.uint64)
        self.offsets = frozen(offsets, "offsets", ndim=2)
        if self.keys.shape != self.offsets.shape[:1]:
            raise ShapeError("keys", expected=self.offsets.shape[:1], actual=self.keys.shape)
        if (self.keys[1:] <= self.keys[:-1]).any():
            raise OptionError("keys: expected distinct content keys in ascending order.")
        self.keys.setflags(write=False)

    @classmethod
    def of(cls, keys: Keys, offsets: Vectors, *, max_drift: float | None = None) -> NudgeAdapter:
        """Build from keys in any order; of documents with equal text, the first counts.

        Args:
            keys: ``(n,)``.
            offsets: ``(n, dim)``.
            max_drift: Longest offset allowed, in units of the document vectors' length 1; longer
                ones are scaled down.
        """
        distinct, first = np.unique(keys, return_index=True)
        moved = np.asarray(offsets[first], dtype=np.float32)
        if max_drift is not None:
            lengths = np.linalg.norm(moved, axis=1, keepdims=True)
            moved = moved * np.minimum(1.0, max_drift / np.maximum(lengths, 1e-12))
        return cls(distinct, moved)

    @property
    def input_dim(self) -> int:
        return int(self.offsets.shape[1])

    @property
    def output_dim(self) -> int:
        return self.input_dim

    @property
    def adapts_documents(self) -> bool:
        return True

    @property
    def drift(self) -> float:
        """The longest offset, in units of the document vectors' length 1."""
        return float(np.linalg.norm(self.offsets, axis=1).max())

    def arrays(self) -> Arrays:
        return {"keys": self.keys, "offsets": self.offsets}

    def config(self) -> dict[str, Any]:
        return {}

    def without(self, keys: Keys) -> NudgeAdapter:
        """Undo the nudges of these documents; at least one other must remain.

        Args:
            keys: Their content keys.

        Raises:
            OptionError: None would remain; serve without this adapter instead.
        """
        keep = ~np.isin(self.keys, keys)
        if not keep.any():
            raise OptionError("No nudge would remain: use the adapter below it, or the base model.")
        return NudgeAdapter(self.keys[keep], self.offsets[keep])

    def scaled(self, share: float) -> NudgeAdapter:
        """Return the same with every offset a share as long."""
        return NudgeAdapter(self.keys, np.float32(share) * self.offsets)

    def map(self, vectors: Vectors) -> Vectors:
        return vectors

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        if keys is None:
            return vectors
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known = self.keys[at] == keys
        moved = np.array(np.atleast_2d(vectors))
        moved[known] = unit(unit(moved[known]) + self.offsets[at[known]])
        return moved.reshape(vectors.shape)
