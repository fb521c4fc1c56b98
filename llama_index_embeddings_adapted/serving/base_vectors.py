"""Vectors of the base model while serving: its limiter and cache apply, its events do not.

The wrapper fires LlamaIndex's events once per call, so it must not call the base model's public
methods; what those do besides (rate limit, cache) is done here. Unlike there, a query and a
document of the same text never share a cache entry.

What can be asked both ways is written once: a generator yields calls, each with its asynchronous
twin, and :func:`run_steps` or :func:`arun_steps` makes them.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore

from ..core.arrays import Role
from ..data.reading import repaired
from ..encoding.base_model import (
    Embedding,
    clear_trace_map,
    fingerprint_of,
    query_batch,
    whole_batch,
)
from ..encoding.serialize import base_name
from ..errors import EncodeError, check_kind

T = TypeVar("T")

#: A function, its asynchronous twin, and their arguments.
Call = tuple[Callable[..., Any], Callable[..., Awaitable[Any]], tuple[Any, ...]]
Steps = Generator[Call, Any, T]


def run_steps(steps: Steps[T]) -> T:
    """Make the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            call, _, arguments = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        answer = call(*arguments)


async def arun_steps(steps: Steps[T]) -> T:
    """Await the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            _, call, arguments = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        answer = await call(*arguments)


class SteppedRetriever(BaseRetriever):
    """Finds nodes by a generator of calls, :meth:`_steps`, both ways."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run_steps(self._steps(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await arun_steps(self._steps(query_bundle))

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        raise NotImplementedError


Nodes = Mapping[str, BaseNode] | BaseDocumentStore


def check_retriever(name: str, retriever: object) -> None:
    """Refuse, by an :class:`OptionError`, what is no retriever."""
    hint = "Of an index: index.as_retriever(similarity_top_k=100)."
    check_kind(name, retriever, BaseRetriever, "a LlamaIndex retriever", hint)


def check_nodes(nodes: object) -> None:
    """Refuse, by an :class:`OptionError`, where no node can be looked up."""
    check_kind("nodes", nodes, (Mapping, BaseDocumentStore), "a dict of id → node or a docstore")


def fetch_nodes(nodes: Nodes, ids: list[str]) -> Steps[dict[str, BaseNode]]:
    """Yield the call that gets nodes by their ids; those that are not known are passed over."""
    if isinstance(nodes, BaseDocumentStore):
        stored = yield nodes.get_nodes, nodes.aget_nodes, (ids, False)
        return {node.node_id: node for node in stored}
    return {name: nodes[name] for name in ids if name in nodes}


def base_vectors(
    model: BaseEmbedding,
    texts: Sequence[str],
    role: Role,
    size: int,
    manager: CallbackManager,
    cache: Any | None = None,
) -> Steps[list[Embedding]]:
    """Yield the calls that embed texts: look up, wait for the limiter, ask, remember.

    The store is LlamaIndex's, by default the base model's own ``embeddings_cache``, whose documents
    are shared with the model, its queries kept apart. ``manager`` is that of the model served.
    """
    clear_trace_map(manager)
    texts = [repaired(text) for text in texts]  # half a surrogate is no text to a server
    missing, found = list(dict.fromkeys(texts)), dict[str, Embedding]()
    store: Any = model.embeddings_cache if cache is None else cache
    if store is not None:
        collection = "embeddings"
        if cache is not None or role == "query":
            collection = f"embeddings:{role}:{fingerprint_of(model).digest}"
        for text in missing:
            # LlamaIndex's stores keep one vector as {random id: vector}, shared with us.
            if entry := (yield store.get, store.aget, (text, collection)):
                found[text] = next(iter(entry.values()))
        missing = [text for text in missing if text not in found]
    ask, aask, step = _ways(model, role, min(size, len(missing)))
    for start in range(0, len(missing), step):
        batch = missing[start : start + step]
        if (limiter := model.rate_limiter) is not None:
            yield limiter.acquire, limiter.async_acquire, ()
        answers = whole_batch(model, (yield ask, aask, (batch,)), batch)
        found.update(zip(batch, answers, strict=True))
        for text, answer in zip(batch, answers, strict=True) if store is not None else ():
            if not np.isfinite(answer).all():  # remembered, it would be served for ever
                name = base_name(model)
                raise EncodeError(f"{name} gave a vector with NaN or infinity.", text=text)
            yield store.put, store.aput, (text, {str(uuid.uuid4()): answer}, collection)
    return [found[text] for text in texts]


def _ways(
    model: BaseEmbedding, role: Role, size: int
) -> tuple[Callable[..., Any], Callable[..., Awaitable[Any]], int]:
    """Return how to ask for a batch, both ways, and how large it may be."""
    if role == "document":
        return model._get_text_embeddings, model._aget_text_embeddings, max(size, 1)

    async def alone(batch: list[str]) -> list[Embedding]:
        return [await model._aget_query_embedding(text) for text in batch]

    if size > 1 and (together := query_batch(model)) is not None:
        return together, alone, size
    return lambda batch: [model._get_query_embedding(text) for text in batch], alone, 1
