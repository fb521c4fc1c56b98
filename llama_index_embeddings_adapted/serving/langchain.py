"""An adapted model as LangChain's ``Embeddings``; the way back is LlamaIndex's own bridge."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding

from ..encoding.base_model import Embedding, check_base
from ..errors import require_extra

Embeddings = require_extra("langchain_core.embeddings", extra="langchain").Embeddings


class LangChainEmbeddings(Embeddings):  # type: ignore[misc, valid-type]
    """Any LlamaIndex embedding model, or a pool's, wherever LangChain takes ``Embeddings``."""

    def __init__(self, model: BaseEmbedding) -> None:
        # LlamaIndex's bridge back takes attributes named model for the name of one.
        self.embed_model = check_base(model, "model")
        self.model_name = self.embed_model.model_name

    def embed_query(self, text: str) -> Embedding:
        """Embed a query; through the adapter, if the model has one."""
        return self.embed_model.get_query_embedding(text)

    def embed_documents(self, texts: list[str]) -> list[Embedding]:
        """Embed documents, in batches of the model."""
        return self.embed_model.get_text_embedding_batch(texts)

    async def aembed_query(self, text: str) -> Embedding:
        """Embed a query, asynchronously."""
        return await self.embed_model.aget_query_embedding(text)

    async def aembed_documents(self, texts: list[str]) -> list[Embedding]:
        """Embed documents, asynchronously."""
        return await self.embed_model.aget_text_embedding_batch(texts)
