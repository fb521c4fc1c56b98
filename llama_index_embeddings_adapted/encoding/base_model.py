"""How we speak to a base model, any LlamaIndex embedding, and which one it is."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import getattr_static
from typing import Any, TypeVar, cast

import numpy as np
import tenacity
from llama_index.core.async_utils import run_jobs
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent

from .. import errors
from ..core.arrays import Keys, Role, Vectors, as_vectors, l2_normalize
from ..data.reading import repaired
from ..errors import (
    AdaptedError,
    EncodeError,
    OptionError,
    check_kind,
    check_whole,
    nearest,
    truncate,
)
from .serialize import base_name

_dispatcher = get_dispatcher(__name__)

#: Embedded as documents and as queries; never change them, saved adapters depend on it.
PROBE_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset a forgotten password?",
    "Net revenue rose 12% to €3.4 million in fiscal 2021.",
)

_TOLERANCE = "LLAMA_INDEX_ADAPTED_TOLERANCE"
T = TypeVar("T")
Embedding = list[float]
QueryBatch = Callable[[list[str]], list[Embedding]]
_MOST_PER_CALL = 2048  # as BaseEmbedding.embed_batch_size
TRIES, FIRST_WAIT_S, MOST_WAIT_S = 5, 0.5, 20.0  # then the fault is not one that passes

#: What makes a model of a string; a room above, which knows saved adapters, adds itself.
resolvers: list[Callable[[Any], BaseEmbedding]] = [resolve_embed_model]
_known: dict[int, tuple[weakref.ref[BaseEmbedding], dict[str, object], Fingerprint]] = {}
_CHANGES_NO_VECTOR = frozenset(
    ("callback_manager", "embed_batch_size", "embeddings_cache", "num_workers", "rate_limiter")
)
_ORDER_CHECKED = 32  # texts
_MOST_SPREAD = 0.02  # of cosines between answers of one model to one text; quantised ones: 0.01


def tolerance() -> float:
    """Return how far from 1 a cosine between two answers of one model to one text may be.

    The same weights on another machine, in another batch or in half precision stay within .0005; a
    changed instruction or a retrained model does not. For models that are not bit-stable, such as
    quantised ones, ``LLAMA_INDEX_ADAPTED_TOLERANCE`` sets more, at most .2.
    """
    given = os.environ.get(_TOLERANCE, "0.0005")
    if not re.fullmatch(r"\d*\.\d+", given) or not 0.0005 <= float(given) <= 0.2:
        raise OptionError(f"{_TOLERANCE}: expected a number from 0.0005 to 0.2, got {given!r}.")
    return float(given)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """The identity of a base model: its vectors of a few fixed texts."""

    name: str  #: Class and model, for messages; equal names prove nothing.
    #: ``(2 * len(PROBE_TEXTS), dim)``: the probe texts as documents, then as queries.
    probes: Vectors = field(repr=False)

    @property
    def dim(self) -> int:
        return int(self.probes.shape[1])

    def of_role(self, role: str) -> Vectors:
        return self.probes[len(PROBE_TEXTS) :] if role == "query" else self.probes

    @property
    def digest(self) -> str:
        """A short hash of the rounded probes, a name for people; compare by :meth:`agrees_with`."""
        lengths = " ".join(f"{length:.2g}" for length in np.linalg.norm(self.probes, axis=1))
        rounded = np.round(l2_normalize(self.probes), 2) + np.float32(0.0)  # no negative zero
        return hashlib.sha256(lengths.encode() + rounded.tobytes()).hexdigest()[:16]

    def cosine(self, other: Fingerprint) -> float:
        """Return the least cosine between corresponding probes; -1 if the dimensions differ."""
        if self.probes.shape != other.probes.shape:
            return -1.0
        cosines = np.sum(l2_normalize(self.probes) * l2_normalize(other.probes), axis=1)
        both_zero = ~self.probes.any(axis=1) & ~other.probes.any(axis=1)
        return float(np.min(np.where(both_zero, 1.0, cosines)))

    def agrees_with(self, other: Fingerprint) -> bool:
        """Return whether both are the same model, up to float noise."""
        allowed = tolerance()
        ours, theirs = (np.linalg.norm(each.probes, axis=1) for each in (self, other))
        near = self.cosine(other) >= 1.0 - allowed
        return near and bool(np.allclose(ours, theirs, rtol=max(0.01, allowed), atol=1e-6))


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is running."""
    future = asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Start the loop of a process, in a thread: one for all calls, as clients keep connections."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="embeddings-adapted", daemon=True).start()
    return loop


def check_base(model: object, name: str) -> BaseEmbedding:
    """Return a LlamaIndex embedding model, a string resolved, or raise an OptionError."""
    try:
        model = resolvers[-1](model) if isinstance(model, str) else model
    except (ValueError, OSError, ImportError) as cause:
        if isinstance(cause, AdaptedError):
            raise
        reason = " ".join(truncate(str(cause), 200).split())
        said = f"{name}: {model!r} names no model here ({reason})."
        raise OptionError(f"{said}{nearest(str(model), ['minilm'])}") from cause
    kind = 'a LlamaIndex embedding model, or a string that names one such as "minilm"'
    check_kind(name, model, BaseEmbedding, kind)
    return cast(BaseEmbedding, model)


def base_of(model: BaseEmbedding) -> BaseEmbedding:
    """Return the base of a model that maps its vectors by ``adapt``; any other model itself."""
    base: BaseEmbedding = getattr(model, "base_embed_model", model)
    return base if hasattr(model, "adapt") else model


def adapted(model: Any, vectors: Vectors, role: Role, keys: Keys | None = None) -> Vectors:
    """Return ``(n, dim)`` vectors of a model's base as the model gives them."""
    mapped: Vectors = vectors if base_of(model) is model else model.adapt(vectors, role, keys)
    return mapped


class BaseModelCalls:
    """Calls to one base model through its public methods, so that events, limits and retries apply.

    Without synchronous methods it is reached through the asynchronous ones. Queries, for which
    LlamaIndex has no batches, are batched where the model can, else go one by one, or
    ``num_workers`` at a time. Its ``embeddings_cache`` confuses queries with documents, so it is
    not consulted.
    """

    def __init__(self, model: BaseEmbedding, *, batch_size: int | None = None) -> None:
        self.calls = self.texts = self.characters = 0
        size = model.embed_batch_size if batch_size is None else batch_size
        check_whole("batch_size", size, most=_MOST_PER_CALL)
        changes = {"embeddings_cache": None, "embed_batch_size": size}
        same = all(getattr(model, name) == value for name, value in changes.items())
        self._model, self.batch_size = model if same else model.model_copy(update=changes), size
        self._embed_queries = query_batch(self._model)
        # A client that tries again itself is not made to do so once more.
        self._tries = 1 if getattr(model, "max_retries", None) else TRIES
        self._only_async = False

    def embed(self, role: str, texts: Sequence[str]) -> Iterator[Embedding]:
        """Yield the answers of the model for at most one batch of texts, as they arrive."""
        clear_trace_map(self._model.callback_manager)
        self.texts += len(texts)
        self.characters += sum(map(len, texts))
        given = [repaired(text) for text in texts]  # half a surrogate is no text to a server
        if self.batches(role):
            answers = self._patiently(lambda: self._batch(role, given))
            yield from whole_batch(self._model, answers, given)
            return
        at_once = self._only_async or (self._model.num_workers or 1) > 1
        for done, text in enumerate(() if at_once else given):
            try:
                answer = self._patiently(partial(self._model.get_query_embedding, text))
            except NotImplementedError:
                self._only_async, given, at_once = True, given[done:], True
                break
            self.calls += 1
            yield answer
        if at_once:
            yield from self._patiently(lambda: self._queries_at_once(given))

    def batches(self, role: str) -> bool:
        """Whether texts of a role are asked for together."""
        return role == "document" or self._embed_queries is not None

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask, and again where a fault passes: a server that is busy, a line that broke."""
        if self._tries == 1:
            return ask()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(errors.is_passing),
            stop=tenacity.stop_after_attempt(self._tries),
            wait=tenacity.wait_exponential(FIRST_WAIT_S, MOST_WAIT_S)
            + tenacity.wait_random(0, FIRST_WAIT_S),
            reraise=True,
        )
        return retrying(ask)

    def _batch(self, role: str, texts: list[str]) -> list[Embedding]:
        self.calls += 1
        if role == "query" and self._embed_queries is not None:
            return _embed_queries(self._model, self._embed_queries, list(texts))
        if not self._only_async:
            try:
                return self._model.get_text_embedding_batch(list(texts))
            except NotImplementedError:
                self._only_async = True
        return run(self._model.aget_text_embedding_batch(list(texts)))

    def _queries_at_once(self, texts: list[str]) -> list[Embedding]:
        self.calls += len(texts)

        async def gather() -> list[Embedding]:
            jobs = [self._model.aget_query_embedding(text) for text in texts]
            return await run_jobs(jobs, workers=self._model.num_workers or 1)

        return run(gather())


def whole_batch(
    model: BaseEmbedding, answers: list[Embedding], texts: Sequence[str]
) -> list[Embedding]:
    """Refuse a batch of another length: which vector is whose can no longer be told."""
    if len(answers) != len(texts):
        raise EncodeError(
            f"{base_name(model)} gave {len(answers)} vectors for a batch of {len(texts)} texts; "
            "none of them is kept.",
            text=texts[0],
        )
    return answers


def _embed_queries(model: BaseEmbedding, embed: QueryBatch, queries: list[str]) -> list[Embedding]:
    """Ask for a batch of queries as LlamaIndex asks for texts: with its events and rate limit."""
    payload = model.to_payload()
    _dispatcher.event(EmbeddingStartEvent(model_dict=payload))
    given: Any = {EventPayload.SERIALIZED: payload}
    with model.callback_manager.event(CBEventType.EMBEDDING, payload=given) as event:
        if model.rate_limiter is not None:
            model.rate_limiter.acquire()
        answers = embed(queries)
        event.on_end(payload={EventPayload.CHUNKS: queries, EventPayload.EMBEDDINGS: answers})
    _dispatcher.event(EmbeddingEndEvent(chunks=queries, embeddings=answers))
    return answers


def query_batch(model: BaseEmbedding) -> QueryBatch | None:
    """Return the function that embeds a batch of queries as queries, where the model has one.

    That is a method ``_get_query_embeddings`` (ours has it, and any class may), or the query path
    of ``HuggingFaceEmbedding``, unless a subclass replaced it.
    """
    own = getattr(model, "_get_query_embeddings", None)
    if callable(own):
        return cast(QueryBatch, own)
    # Not imported here: a model of that class has imported it.
    module = sys.modules.get("llama_index.embeddings.huggingface.base")
    cls = getattr(module, "HuggingFaceEmbedding", None)
    path = "_get_query_embedding"
    if cls is None or getattr_static(type(model), path) is not getattr_static(cls, path, None):
        return None
    embed: Any = getattr(model, "_embed")  # noqa: B009  (its own, and without a public name)
    return lambda texts: cast(list[Embedding], embed(texts, prompt_name="query"))


def clear_trace_map(manager: CallbackManager) -> None:
    """Drop LlamaIndex's notes of past events where no handler is there to be given them.

    A model that is asked on its own begins no trace, and would gather 100 bytes a query for ever.
    """
    if not manager.handlers:
        notes = getattr(manager, "_trace_map", None)
        if notes:
            notes.clear()


def _state(model: BaseEmbedding) -> dict[str, object]:
    """Return what tells a model object that was changed: plain settings, identity of others."""
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else id(value)
        for name, value in vars(model).items()
        if name not in _CHANGES_NO_VECTOR
    }


def fingerprint_of(model: BaseEmbedding, calls: BaseModelCalls | None = None) -> Fingerprint:
    """Embed the probe texts, once per model object and its settings, or raise an EncodeError."""
    entry = _known.get(id(model))
    if entry is not None and entry[0]() is model and entry[1] == _state(model):
        return entry[2]
    calls = calls or BaseModelCalls(model)
    answers: list[Embedding] = []
    try:
        for role in ("document", "query"):
            for start in range(0, len(PROBE_TEXTS), calls.batch_size):
                answers += calls.embed(role, PROBE_TEXTS[start : start + calls.batch_size])
        probes = as_vectors(cast(Any, answers), what="probe vectors of the base model")
        if probes.shape[0] != 2 * len(PROBE_TEXTS) or probes.shape[1] == 0:
            raise errors.ShapeError("answers", expected=2 * len(PROBE_TEXTS), actual=probes.shape)
    except (TypeError, ValueError) as cause:
        if isinstance(cause, EncodeError) or errors.status_of(cause) is not None:
            raise
        reason = " ".join(truncate(str(cause), 200).split())
        if not isinstance(cause, AdaptedError):  # in words of ours, where pydantic or numpy spoke
            reason = f"nested lists, or of several lengths? {truncate(reason, 60)}"
        raise EncodeError(
            f"{base_name(model)} did not answer {len(PROBE_TEXTS)} probe texts with finite vectors "
            f"of one length, as documents and as queries ({reason}).",
            text=PROBE_TEXTS[0],
        ) from cause
    found = Fingerprint(base_name(model), np.ascontiguousarray(probes))
    number = id(model)
    _known[number] = (weakref.ref(model, lambda _: _known.pop(number, None)), _state(model), found)
    return found


def is_unchanged(
    model: BaseEmbedding, calls: BaseModelCalls, role: str, known: Fingerprint
) -> bool:
    """Ask for probe texts again, as they were asked for; forget a fingerprint that is another now.

    A model whose vectors depend on the batch is compared in the same batch. One that differs from
    itself from call to call is asked twice: as far as its two answers are apart, it may be off.
    """
    count = min(len(PROBE_TEXTS), calls.batch_size) if calls.batches(role) else 1
    before = Fingerprint(known.name, known.of_role(role)[:count])

    def ask() -> Fingerprint:
        answers = list(calls.embed(role, PROBE_TEXTS[:count]))
        return Fingerprint(known.name, np.array(answers, dtype=np.float32))

    now = ask()
    if now.agrees_with(before):
        return True
    spread = 1.0 - now.cosine(ask())
    if 0.0 < spread < _MOST_SPREAD and 1.0 - now.cosine(before) <= 3.0 * spread:
        return True
    _known.pop(id(model), None)
    return False


def keeps_order(calls: BaseModelCalls, role: str, known: Fingerprint) -> bool:
    """Return whether a batch comes back in the order it was given, by probes in one."""
    count = min(calls.batch_size, _ORDER_CHECKED)
    if count < 2 or not calls.batches(role):
        return True
    wanted = [number % len(PROBE_TEXTS) for number in range(count)]
    answers = np.array(list(calls.embed(role, [PROBE_TEXTS[n] for n in wanted])), dtype=np.float32)
    own = l2_normalize(answers) @ l2_normalize(known.of_role(role)[: len(PROBE_TEXTS)]).T
    nearest = own.max(axis=1) - max(_MOST_SPREAD, tolerance())
    return bool((own[np.arange(count), wanted] >= nearest).all())
