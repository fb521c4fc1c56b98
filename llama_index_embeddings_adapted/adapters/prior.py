"""A prior over documents: those that stand near every query are held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..core import arrays
from ..core.arrays import Keys, Role, Rows, Vectors, as_vectors, l2_normalize
from ..errors import OptionError, ShapeError, check_length, check_number, check_whole
from .base import Adapter, key_array, places_of, reading, settle
from .export import Program

WEIGHT, NEIGHBOURS = 0.2, 10
MOST_QUERIES = 2_000  # of a bank that are kept

_NOWHERE = np.uint64(0)  # a query that no document of the corpus was the source of


class DocumentPrior(Adapter):
    """Takes ``weight · (h - neutral)`` off the cosine of each document, whatever is asked.

    ``h`` is the mean cosine of a document to its nearest queries of a bank: high for documents
    that resemble every query and so displace right ones. The queries need no labels, but have to
    look like those of users; those of other domains teach nothing. Two more dimensions carry the
    prior, exactly, in any dense index: documents ``[d, -s, √(limit² - s²)]`` with
    ``s = weight · (h - neutral)``, queries ``[q, 1, 0]``. All documents are equally long, and all
    queries, so stores rank alike by cosine, inner product and Euclidean distance. An index has to
    be rebuilt; beside an existing index, :class:`HybridRetriever` applies the same prior.

    New documents get theirs from the bank. A document may have a value of its own instead, by
    content key: one that was learnt from labels, or ``neutral`` where its prior is undone.

    Args:
        bank: ``(n, dim)``, query vectors; kept as unit rows. Of adapted models, adapted ones.
        sources: ``(n,)``, the content key of the document that a query was written from, which
            does not count for that document; 0 for none. By default no query has a source.
        keys: ``(k,)``, ascending, the content keys of documents with a value of their own.
        values: ``(k,)``, theirs, in place of ``h``.
        weight: λ, in cosine units, ``>= 0``.
        neighbours: How many nearest queries count, at most.
        neutral: The ``h`` that changes nothing; the corpus' mean in :meth:`of`. It shifts all
            documents alike, so that no ranking depends on it, only what ``limit`` bounds.
        limit: The most that a score may change, in cosine units; ``weight`` by default, which in
            practice bounds nothing.

    Raises:
        ShapeError: Shapes that disagree, or an empty bank.
        OptionError: A number out of range, or keys out of order.

    Source: Cross-domain similarity local scaling without its query half, which changes no ranking
    (Conneau et al. 2018, arXiv:1710.04087); a bank of queries: Bogolin et al. 2022,
    arXiv:2112.12777. Hubs: Radovanović et al. 2010. The two dimensions turn inner products into
    equal lengths (Bachrach et al. 2014, DOI 10.1145/2645710.2645741).
    """

    ARRAYS = ("bank", "sources", "keys", "values")
    SETTINGS = ("weight", "neighbours", "neutral", "limit")

    input_dim: ClassVar[int] = reading("bank", 1)
    adapts_documents: ClassVar[bool] = True

    def __init__(
        self,
        bank: Vectors,
        sources: Keys | None = None,
        keys: Keys | None = None,
        values: Vectors | None = None,
        *,
        weight: float = WEIGHT,
        neighbours: int = NEIGHBOURS,
        neutral: float = 0.0,
        limit: float | None = None,
    ) -> None:
        rows = as_vectors(bank, what="bank")
        is_unit = np.abs(np.linalg.norm(rows, axis=1, keepdims=True) - 1.0) < 1e-5
        self.bank = np.where(is_unit, rows, l2_normalize(rows))  # saved bit-equal
        self.weight, self.neighbours, self.neutral = weight, neighbours, neutral
        self.limit = weight if limit is None else limit
        check_number("weight", weight, least=0.0)
        check_whole("neighbours", neighbours)
        check_number("neutral", neutral, least=-1.0, most=1.0 + 1e-6)
        check_number("limit", self.limit, least=0.0)
        settle(self, bank="n dim", weight=float, neighbours=int, neutral=float, limit=float)
        given = np.zeros(len(self.bank)) if sources is None else sources
        self.sources = key_array(given, ascending=False)
        self.keys = key_array([] if keys is None else keys)
        self.values = np.array([] if values is None else values, dtype=np.float32)
        self.values.setflags(write=False)
        if self.sources.shape != self.bank.shape[:1]:
            raise ShapeError("sources", expected=self.bank.shape[:1], actual=self.sources.shape)
        if self.keys.shape != self.values.shape or not np.isfinite(self.values).all():
            raise ShapeError("values", expected=f"{len(self.keys)} numbers", actual=self.values)

    @classmethod
    def of(
        cls,
        bank: Vectors,
        documents: Vectors,
        keys: Keys | None = None,
        *,
        sources: Keys | None = None,
        most: int = MOST_QUERIES,
        seed: int = 0,
        **settings: Any,
    ) -> DocumentPrior:
        """Build a prior whose neutral value is the mean over a corpus.

        Args:
            bank: ``(n, dim)``, query vectors.
            documents: ``(m, dim)``, of the same model.
            keys: ``(m,)``, their content keys; needed where ``sources`` are given.
            sources: See the class.
            most: Of a larger bank, so many queries are drawn, by ``seed``.
            settings: ``weight``, ``neighbours``, ``limit``.
        """
        if sources is not None and keys is None:
            raise OptionError("keys: expected those of the documents, as sources are, got None.")
        if sources is not None:
            check_length("sources", sources, bank)
        chosen = np.sort(np.random.default_rng(seed).permutation(len(bank))[:most])
        rows = np.asarray(bank)[chosen]
        prior = cls(rows, None if sources is None else sources[chosen], **settings)
        return prior.changed(neutral=float(prior.nearness(documents, keys).mean()))

    @property
    def output_dim(self) -> int:
        return self.input_dim + 2

    def changed(self, **settings: Any) -> DocumentPrior:
        """Return the same prior with other settings or arrays, such as ``weight`` or ``limit``.

        Without a ``limit``, a new ``weight`` takes the old one's ratio of the two along.
        """
        if "weight" in settings and "limit" not in settings and self.weight > 0:
            settings["limit"] = self.limit * settings["weight"] / self.weight
        elif "weight" in settings:
            settings.setdefault("limit", settings["weight"])
        return type(self)(**{**self.arrays(), **self.config(), **settings})

    def with_values(self, keys: Keys, values: Vectors) -> DocumentPrior:
        """Give documents values of their own in place of ``h``; of equal keys the first counts.

        ``keys`` and ``values`` are ``(n,)``, else it is a ShapeError.
        """
        check_length("values", values, keys)
        both = np.concatenate([np.asarray(keys, dtype=np.uint64), self.keys])
        distinct, first = np.unique(both, return_index=True)
        merged = np.concatenate([np.asarray(values, dtype=np.float32), self.values])
        return self.changed(keys=distinct, values=merged[first])

    def without(self, keys: Keys) -> DocumentPrior:
        """Undo the prior of the documents of these keys: their cosines stay as they are."""
        return self.with_values(keys, np.full(len(keys), self.neutral, dtype=np.float32))

    def nearness(self, vectors: Vectors, keys: Keys | None = None) -> Vectors:
        """Return ``h`` of documents, ``(n, dim)``, as ``(n,)``, in [-1, 1].

        Without content ``keys``, ``(n,)``, no document has a value of its own, and every query of
        the bank counts.
        """
        rows, dim = np.atleast_2d(vectors), self.input_dim
        if rows.shape[1:] != (dim,) or (keys is not None and len(keys) != len(rows)):
            actual = f"shape {rows.shape}" + ("" if keys is None else f", {len(keys)} keys")
            raise ShapeError("documents", expected=f"(n, {dim}), and n keys or none", actual=actual)
        found = np.empty(len(rows), dtype=np.float32)
        step = min(arrays.DOCUMENTS_PER_BLOCK, max(1, arrays.SCORES_PER_BLOCK // len(self.bank)))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            cosines = l2_normalize(rows[part]) @ self.bank.T
            found[part] = self._mean_of_nearest(cosines, None if keys is None else keys[part])
        if keys is not None and len(self.keys):
            at, own = places_of(keys, self.keys)
            found[own] = self.values[at[own]]
        return found

    def _mean_of_nearest(self, cosines: Vectors, keys: Keys | None) -> Vectors:
        count = min(self.neighbours, cosines.shape[1])
        if keys is not None and self.sources.any():
            own = (self.sources == keys[:, None]) & (self.sources != _NOWHERE)
            cosines[own] = -np.inf
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        counted = np.isfinite(nearest)
        total = np.where(counted, nearest, 0.0).sum(axis=1)
        # Where only its own queries are near, nothing is known of a document.
        mean = total / np.maximum(counted.sum(axis=1), 1)
        return np.asarray(np.where(counted.any(axis=1), mean, self.neutral), dtype=np.float32)

    def shifts(self, vectors: Vectors, keys: Keys | None = None) -> Vectors:
        """Return what is taken off the cosines of documents, ``(n,)``, within ``±limit``."""
        moved = self.weight * (self.nearness(vectors, keys) - self.neutral)
        return np.asarray(np.clip(moved, -self.limit, self.limit), dtype=np.float32)

    def most_moved(
        self, ids: Sequence[str], vectors: Vectors, keys: Keys | None = None, *, count: int = 20
    ) -> dict[str, float]:
        """Return the ``count`` documents whose scores change most: id → change, largest first."""
        changes = -self.shifts(vectors, keys)
        order: Rows = np.argsort(-np.abs(changes), kind="stable")[:count]
        return {ids[row]: float(changes[row]) for row in order}

    def map(self, vectors: Vectors) -> Vectors:
        rows = l2_normalize(vectors)
        more = np.broadcast_to(np.array([1, 0], np.float32), (*rows.shape[:-1], 2))
        return np.concatenate([rows, more], axis=-1)

    def trace(self, program: Program, vector: str, role: Role) -> str:
        if role == "document":  # a prior knows documents by their texts, too
            return super().trace(program, vector, role)
        unit, more = program.apply("normalize", vector), np.eye(self.output_dim)[-2]
        return program.linear(unit, np.eye(self.output_dim, self.input_dim), more)

    def map_documents(self, vectors: Vectors, keys: Keys | None) -> Vectors:
        rows = l2_normalize(np.atleast_2d(vectors))
        shifts = self.shifts(rows, keys)
        rest = np.sqrt(np.maximum(self.limit**2 - shifts**2, 0.0))
        mapped = np.concatenate([rows, -shifts[:, None], rest[:, None]], axis=1)
        return mapped.astype(np.float32).reshape(*vectors.shape[:-1], self.output_dim)
