"""Encoded data as texts again, and a model that knows their vectors: training without encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import Vectors
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels


class KnownEmbedding(BaseEmbedding):
    """Looks texts up; what it does not know, as probes, has a vector drawn by its length."""

    _vectors: dict[str, Vectors] = PrivateAttr()

    def _get_text_embedding(self, text: str) -> list[float]:
        if text not in self._vectors:
            dim = len(next(iter(self._vectors.values())))
            drawn = np.random.default_rng(len(text)).standard_normal(dim)
            self._vectors[text] = drawn.astype(np.float32)
        return self._vectors[text].tolist()

    _get_query_embedding = _get_text_embedding

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [self._get_text_embedding(text) for text in texts]

    _get_query_embeddings = _get_text_embeddings

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def as_texts(data: EncodedDataset, relevance: Qrels | None = None) -> tuple[Dataset, Any]:
    """Return a data set of numbered texts, one for twins, and the model that knows them."""
    answers = data.relevance if relevance is None else relevance
    vectors = {f"query {row}": vector for row, vector in enumerate(data.queries)}
    vectors |= {f"document {row}": vector for row, vector in enumerate(data.documents)}
    queries = {f"q{row}": f"query {row}" for row in range(len(data.queries))}
    corpus = {f"d{row}": f"document {twin}" for row, twin in enumerate(data.canonical_rows)}
    wanted = {f"q{row}": [f"d{d}" for d in answers.relevant_to(row)] for row in range(len(queries))}
    model = KnownEmbedding(model_name="known", embed_batch_size=1000)
    model._vectors = vectors
    return Dataset(queries, corpus, wanted), model
