"""Which base model is this? A name, and its vectors of a few fixed texts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from llama_index_embeddings_adapted.vectors import Vectors, unit

#: Embedded as documents and as queries; never change them, saved adapters depend on it.
PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset a forgotten password?",
    "Net revenue rose 12% to €3.4 million in fiscal 2021.",
)

#: Least cosine between probe vectors of one model. The same weights on another machine, in
#: another batch or in half precision stay above .9995; a changed instruction or a retrained model
#: falls below.
MIN_COSINE = 0.9995


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The identity of a base model.

    Args:
        name: Class and model name, for messages; equal names prove nothing.
        probes: ``(2 * len(PROBE_TEXTS), dim)``: the probe texts as documents, then as queries.
    """

    name: str
    probes: Vectors = field(repr=False)

    @property
    def dim(self) -> int:
        """The dimension of the model's vectors."""
        return int(self.probes.shape[1])

    @property
    def digest(self) -> str:
        """A short hash of the rounded probes, a name for people; compare by :meth:`agrees_with`."""
        lengths = " ".join(f"{length:.2g}" for length in np.linalg.norm(self.probes, axis=1))
        rounded = np.round(unit(self.probes), 2) + np.float32(0.0)  # no negative zero
        return hashlib.sha256(lengths.encode() + rounded.tobytes()).hexdigest()[:16]

    def cosine(self, other: Fingerprint) -> float:
        """Return the least cosine between corresponding probes; -1 if the dimensions differ."""
        if self.probes.shape != other.probes.shape:
            return -1.0
        cosines = np.sum(unit(self.probes) * unit(other.probes), axis=1)
        both_zero = ~self.probes.any(axis=1) & ~other.probes.any(axis=1)
        return float(np.min(np.where(both_zero, 1.0, cosines)))

    def agrees_with(self, other: Fingerprint) -> bool:
        """Return whether both are the same model, up to float noise."""
        if self.cosine(other) < MIN_COSINE:
            return False
        ours = np.linalg.norm(self.probes, axis=1)
        theirs = np.linalg.norm(other.probes, axis=1)
        return bool(np.allclose(ours, theirs, rtol=0.01, atol=1e-6))
