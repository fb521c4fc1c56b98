"""Vectors, words and a document prior as one model, to be judged as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..adapters.prior import DocumentPrior
from ..core.arrays import Keys, Rows, RowSource, Vectors
from ..errors import check_number
from .bm25 import BM25Index

WEIGHT = 0.4  # without a label: the highest of .3, .4, .5 that lost on dev of no set in benchmarks/

_SCORES_PER_BLOCK = 16_000_000


@dataclass(frozen=True, eq=False)
class Mixture:
    """A model with words and a prior beside it: ``cosine + weight · words - prior``.

    :func:`evaluate_retrieval` scores it as :class:`HybridRetriever` would rank with as many
    candidates as there are documents; so ``weight`` and prior can be chosen on held-out queries.

    Args:
        embed_model: Any LlamaIndex embedding model, adapted or not.
        weight: Of words, in cosine units, ``>= 0``.
        prior: Made with vectors of the same model; None for none.
        queries: Such as users ask, see :class:`BM25Index`; not those to be judged on.

    Raises:
        OptionError: ``weight`` out of range.
    """

    embed_model: BaseEmbedding
    weight: float = WEIGHT
    prior: DocumentPrior | None = None
    queries: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0.0)

    def rank(
        self,
        texts: Sequence[str],
        corpus: Mapping[str, str],
        queries: Vectors,
        documents: RowSource,
        keys: Keys,
        *,
        depth: int,
    ) -> Rows:
        """Rank the documents of a corpus, exactly.

        Args:
            texts: ``n``, of the queries.
            corpus: Id → text of ``m`` documents.
            queries: ``(n, dim)``, unit rows, adapted if the model is.
            documents: ``(m, dim)``, likewise.
            keys: ``(m,)``, content keys of the documents.
            depth: How many come back.

        Returns:
            ``(n, min(depth, m))``, rows of documents, best first, ties by row.
        """
        matrix = documents[:]
        words = BM25Index.of(corpus, self.queries)
        shifts = 0.0 if self.prior is None else self.prior.shifts(matrix, keys)
        ranked = np.empty((len(texts), min(depth, len(matrix))), dtype=np.int64)
        step = max(1, _SCORES_PER_BLOCK // len(matrix))
        for start in range(0, len(texts), step):
            part = slice(start, start + step)
            shares = np.stack([words.shares(text) for text in texts[part]])
            scores = queries[part] @ matrix.T + np.float32(self.weight) * shares - shifts
            ranked[part] = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return ranked
