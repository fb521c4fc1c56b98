"""What LlamaIndex calls on an adapted model: queries and texts in, adapted vectors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]
    DISPATCHER_SPAN_DECORATED_ATTR,
)
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.base_model import Embedding, base_name, forget_events
from llama_index_embeddings_adapted.base_vectors import BaseVectors
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.vectors import content_keys

Method = TypeVar("Method", bound=Callable[..., Any])


def _without_span(method: Method) -> Method:
    """Keep LlamaIndex from opening a second span inside that of the public method.

    It would trace nothing new, and cost more than the adapter.
    """
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class AdaptedCalls(BaseEmbedding):
    """The six ways in which LlamaIndex asks for vectors, each through the adapter.

    Abstract: :class:`AdaptedEmbedding` is the one model, and says what the fields are.
    """

    transform_query: bool = Field(default=True, description="Apply the adapter to queries.")

    # Fields, not private attributes: pydantic takes 50 times as long to look those up.
    base_embed_model: BaseEmbedding = Field(exclude=True, description="Whose vectors are adapted.")
    adapter: Adapter = Field(exclude=True, description="What adapts them.")

    _vectors: BaseVectors = PrivateAttr()

    @_without_span
    def _get_query_embedding(self, query: str) -> Embedding:
        return self._adapted(self._vectors.query(query))

    @_without_span
    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._adapted(await self._vectors.aquery(query))

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        answers = self._vectors.queries(queries, self.embed_batch_size)
        return self._adapted_batch(answers) if self.transform_query else answers

    @_without_span
    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        answers = self._vectors.documents(texts, self.embed_batch_size)
        return self._adapted_documents(answers, texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        answers = await self._vectors.adocuments(texts, self.embed_batch_size)
        return self._adapted_documents(answers, texts)

    def _adapted(self, vector: Embedding) -> Embedding:
        forget_events(self.callback_manager)
        if not self.transform_query:
            return vector
        array = np.fromiter(vector, dtype=np.float32, count=len(vector))
        adapted: Embedding = self.adapter.apply(array).tolist()
        return adapted

    def _adapted_batch(self, vectors: list[Embedding]) -> list[Embedding]:
        forget_events(self.callback_manager)
        if not vectors:
            return vectors
        adapted: list[Embedding] = self.adapter.apply(np.array(vectors, dtype=np.float32)).tolist()
        return adapted

    def _adapted_documents(self, vectors: list[Embedding], texts: list[str]) -> list[Embedding]:
        forget_events(self.callback_manager)
        adapter = self.adapter  # read once: another may be swapped in meanwhile
        if not vectors or not adapter.adapts_documents:
            return vectors
        array = np.array(vectors, dtype=np.float32)
        adapted: list[Embedding] = adapter.apply(array, "document", content_keys(texts)).tolist()
        return adapted

    def __setattr__(self, name: str, value: Any) -> None:
        # LlamaIndex's cache knows neither role nor adapter: base vectors go there, by our keys.
        if name == "embeddings_cache":
            self._vectors = base_vectors(self.base_embed_model, value)
            return
        if name == "adapter":
            check_adapter(value)
        super().__setattr__(name, value)
        if name == "base_embed_model":
            self._vectors = BaseVectors(value, self._vectors.cache)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Show which model is adapted, not its settings: keys are among them."""
        shown = ("model_name", "embed_batch_size", "transform_query", "adapter")
        return [
            ("base_embed_model", base_name(self.base_embed_model)),
            *((name, getattr(self, name)) for name in shown),
        ]


def base_vectors(model: BaseEmbedding, cache: object) -> BaseVectors:
    """Return the way to a base model's vectors, through a key-value store where there is one.

    Raises:
        OptionError: The cache is something else.
    """
    if cache is not None and not isinstance(cache, BaseKVStore):
        raise OptionError(
            f"embeddings_cache: expected a LlamaIndex key-value store, got {type(cache).__name__}."
        )
    return BaseVectors(model, cache)


def check_adapter(adapter: object) -> None:
    """Refuse an adapter that queries and documents cannot be compared through.

    Raises:
        OptionError: It is none.
        ShapeError: It changes the dimension of queries but leaves documents alone.
    """
    if not isinstance(adapter, Adapter):
        raise OptionError(
            f"adapter: expected an Adapter or a folder with one, got {type(adapter).__name__}."
        )
    if adapter.input_dim != adapter.output_dim and not adapter.adapts_documents:
        raise ShapeError(
            "Adapted queries",
            expected=f"{adapter.input_dim} dimensions, as the documents they are compared with",
            actual=f"{adapter.output_dim}",
            hint="This adapter leaves documents as they are, so it cannot change the dimension.",
        )
