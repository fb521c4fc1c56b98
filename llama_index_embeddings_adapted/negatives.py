"""Documents that look right to the base model and are not: what a better model must tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encode import CacheDir, EncodedDataset, Encoder
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.unit_rows import unit_rows
from llama_index_embeddings_adapted.vectors import Rows, RowSource, Vectors, top_k, unit

_DEEPER = 4  # times k are looked at, as many of the first are relevant or too close


def mine_hard_negatives(
    dataset: EmbeddingQAFinetuneDataset,
    embed_model: BaseEmbedding,
    *,
    k: int = 10,
    most_of_positive: float = 0.95,
    skip: int = 0,
    batch_size: int | None = None,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> EmbeddingQAFinetuneDataset:
    """Find for each query the documents that the base model takes for answers, wrongly.

    A document that scores more than 95 % of what the query's best relevant document scores is
    likelier an answer that nobody labelled than a negative, and is passed over; so is every text
    that is that of a relevant document.

    Args:
        dataset: Queries, corpus and relevance.
        embed_model: The base model.
        k: Negatives per query, at most.
        most_of_positive: Share of the positive's cosine, in (0, 1], above which a document is
            passed over. A query whose positive scores 0 or less gets no negatives.
        skip: Pass over this many of the first non-relevant documents besides.
        batch_size: Texts per call to the model.
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
        show_progress: Show a bar while embedding.

    Returns:
        The same dataset with ``hard_negatives``, hardest first. The engine makes them compete with
        the relevant documents of their queries.

    Raises:
        OptionError: A number out of range.
        DatasetError: A query without a relevant document.
        EncodeError: The model gave no usable vector.

    Source:
        Moreira et al. 2024, NV-Retriever, arXiv:2407.15831, "TopK-PercPos" with 95 %.
    """
    _check(k, most_of_positive, skip)
    encoder = Encoder(
        embed_model, batch_size=batch_size, cache_dir=cache_dir, show_progress=show_progress
    )
    try:
        data = encoder.dataset(dataset)
    finally:
        encoder.close()
    rows = hard_negatives(data, k=k, most_of_positive=most_of_positive, skip=skip)
    found = {
        query: [data.document_ids[row] for row in documents]
        for query, documents in zip(data.query_ids, rows, strict=True)
        if len(documents)
    }
    return dataset.with_hard_negatives(found)


def hard_negatives(
    data: EncodedDataset, *, k: int, most_of_positive: float, skip: int = 0
) -> list[Rows]:
    """Do the same on arrays.

    Returns:
        One array of document rows per query, hardest first, at most ``k`` long.
    """
    queries, documents = unit(data.queries), unit_rows(data.documents)
    depth = _DEEPER * (k + skip) + int(data.relevance.counts.max(initial=0))
    ranked, scores = top_k(queries, documents, depth)
    best = _best_positive(data, queries, documents)
    found: list[Rows] = []
    for query, (rows, row_scores) in enumerate(zip(ranked, scores, strict=True)):
        relevant = data.twins[data.relevance.of(query)]
        allowed = (row_scores <= most_of_positive * best[query]) & (best[query] > 0)
        allowed &= ~np.isin(data.twins[rows], relevant) & (data.twins[rows] == rows)
        found.append(rows[allowed][skip : skip + k])
    return found


def _best_positive(data: EncodedDataset, queries: Vectors, documents: RowSource) -> Any:
    entries = np.einsum(
        "ij,ij->i", queries[data.relevance.queries], documents[data.relevance.documents]
    )
    best = np.full(len(queries), -np.inf, dtype=np.float32)
    np.maximum.at(best, data.relevance.queries, entries)
    return best


def _check(k: int, most_of_positive: float, skip: int) -> None:
    for name, value, least in (("k", k, 1), ("skip", skip, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise OptionError(f"{name}: expected a whole number >= {least}, got {value!r}.")
    if not 0.0 < most_of_positive <= 1.0:
        raise OptionError(
            f"most_of_positive: expected a share in (0, 1], got {most_of_positive!r}."
        )
