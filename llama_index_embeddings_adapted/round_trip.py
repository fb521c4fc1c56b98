"""Does a question find its passage, and its passage only? The base model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.candidates import Candidate
from llama_index_embeddings_adapted.encode import CacheDir, Encoder
from llama_index_embeddings_adapted.question_report import BaseCost
from llama_index_embeddings_adapted.vectors import Rows, Vectors, unit

_ABOUT_AS_WELL = 0.9
_SCORES_PER_BLOCK = 16_000_000


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """How each question ranks its passage among all.

    Args:
        ranks: ``(n,)``, how many other passages score higher; 0 is first.
        rivals: ``(n,)``, how many other passages reach at least 90 % of its passage's cosine.
        cost: What was asked of the base model.
    """

    ranks: Rows
    rivals: Rows
    cost: BaseCost


def round_trip(
    candidates: Sequence[Candidate],
    corpus: Mapping[str, str],
    embed_model: BaseEmbedding,
    *,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> RoundTrip:
    """Search the corpus for each question with the base model.

    Documents with the same text count as one.

    Args:
        candidates: The questions.
        corpus: Document id → text, as an index embeds it.
        embed_model: The base model.
        cache_dir: See :class:`~llama_index_embeddings_adapted.encode.Encoder`.
        show_progress: Show a bar while embedding.

    Raises:
        EncodeError: The model gave no usable vector.
    """
    texts = list(dict.fromkeys(corpus.values()))
    row_of = {text: row for row, text in enumerate(texts)}
    encoder = Encoder(embed_model, cache_dir=cache_dir, show_progress=show_progress)
    try:
        documents = unit(encoder.encode(texts, "document"))
        queries = unit(encoder.encode([candidate.text for candidate in candidates], "query"))
    finally:
        encoder.close()
    own = np.array([row_of[corpus[c.document]] for c in candidates], dtype=np.int64)
    cost = BaseCost(encoder.base_calls, encoder.base_texts, encoder.base_tokens)
    return RoundTrip(*_ranked(queries, documents, own), cost)


def _ranked(queries: Vectors, documents: Vectors, own: Rows) -> tuple[Rows, Rows]:
    ranks = np.empty(len(queries), dtype=np.int64)
    rivals = np.empty(len(queries), dtype=np.int64)
    step = max(1, _SCORES_PER_BLOCK // max(len(documents), 1))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        scores = queries[part] @ documents.T
        mine = np.take_along_axis(scores, own[part, None], axis=1)
        ranks[part] = (scores > mine).sum(axis=1)
        near = scores >= np.where(mine > 0, _ABOUT_AS_WELL * mine, mine)
        rivals[part] = near.sum(axis=1) - 1
    return ranks, rivals
