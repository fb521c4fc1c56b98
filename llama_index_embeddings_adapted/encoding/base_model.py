"""How we speak to a base model: any LlamaIndex embedding, whichever of its paths works.

Which base model is this? A name, and its vectors of a few fixed texts.

One event loop for all asynchronous work that a synchronous caller waits for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from llama_index.core.async_utils import run_jobs
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.callbacks import CallbackManager

from llama_index_embeddings_adapted.core.arrays import Vectors, as_vectors, l2_normalize
from llama_index_embeddings_adapted.encoding.serialize import without_url_secrets
from llama_index_embeddings_adapted.errors import EncodeError, OptionError, ShapeError

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
        if self.cosine(other) < MIN_COSINE:
            return False
        ours = np.linalg.norm(self.probes, axis=1)
        theirs = np.linalg.norm(other.probes, axis=1)
        return bool(np.allclose(ours, theirs, rtol=0.01, atol=1e-6))


T = TypeVar("T")


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


Embedding = list[float]
_MOST_PER_CALL = 2048  # as BaseEmbedding.embed_batch_size
QueryBatch = Callable[[list[str]], list[Embedding]]
_State = dict[str, object]


def check_base(model: object, name: str) -> None:
    """Refuse what is no LlamaIndex embedding model.

    Args:
        model: What was given.
        name: Of the argument, for the error.

    Raises:
        OptionError: It is none.
    """
    if not isinstance(model, BaseEmbedding):
        raise OptionError(
            f"{name}: expected a LlamaIndex embedding model, got {type(model).__name__}. "
            "Strings: use resolve_embed_model first."
        )


class BaseModelCalls:
    """Calls to one base model, through its public methods, so that events, rate limits and retries
    apply, and its role is always the right one.

    A model whose synchronous methods are not implemented is reached through its asynchronous ones.
    LlamaIndex has no method for a batch of queries: models that can batch them are asked to,
    others get them one by one, or ``num_workers`` at a time where that field of theirs is set. A
    ``embeddings_cache`` of the model is not consulted: it confuses a query with the document of
    the same text.

    Args:
        model: The base model.
        batch_size: Texts per call; the model's ``embed_batch_size`` by default.
    """

    def __init__(self, model: BaseEmbedding, *, batch_size: int | None = None) -> None:
        self.calls = 0
        self.texts = 0
        self.characters = 0
        if batch_size is not None and not 0 < batch_size <= _MOST_PER_CALL:
            raise OptionError(
                f"batch_size: expected a number from 1 to {_MOST_PER_CALL}, got {batch_size!r}."
            )
        changes: dict[str, Any] = {}
        if model.embeddings_cache is not None:
            changes["embeddings_cache"] = None
        if batch_size is not None and batch_size != model.embed_batch_size:
            changes["embed_batch_size"] = batch_size
        self._model = model.model_copy(update=changes) if changes else model
        self._queries = _QueryBatches.of(self._model)
        self._only_async = False

    @property
    def batch_size(self) -> int:
        """How many texts the model takes at once."""
        return self._model.embed_batch_size

    def embed(self, role: str, texts: Sequence[str]) -> Iterator[Embedding]:
        """Yield the answers of the model for at most one batch of texts, as they arrive."""
        clear_trace_map(self._model.callback_manager)
        self.texts += len(texts)
        self.characters += sum(map(len, texts))
        if role == "document":
            yield from self._documents(list(texts))
        elif self._queries is not None:
            self.calls += 1
            answers = self._queries.get_text_embedding_batch(list(texts))
            yield from whole_batch(self._model, answers, texts)
        elif (self._model.num_workers or 1) > 1 or self._only_async:
            yield from self._queries_at_once(list(texts))
        else:
            for done, text in enumerate(texts):
                try:
                    answer = self._model.get_query_embedding(text)
                except NotImplementedError:
                    self._only_async = True
                    yield from self._queries_at_once(list(texts[done:]))
                    return
                self.calls += 1
                yield answer

    def _documents(self, texts: list[str]) -> list[Embedding]:
        self.calls += 1
        if not self._only_async:
            try:
                answers = self._model.get_text_embedding_batch(texts)
                return whole_batch(self._model, answers, texts)
            except NotImplementedError:
                self._only_async = True
        answers = run(self._model.aget_text_embedding_batch(texts))
        return whole_batch(self._model, answers, texts)

    def _queries_at_once(self, texts: list[str]) -> list[Embedding]:
        self.calls += len(texts)
        workers = self._model.num_workers or 1

        async def gather() -> list[Embedding]:
            jobs = [self._model.aget_query_embedding(text) for text in texts]
            return await run_jobs(jobs, workers=workers)

        return run(gather())


def whole_batch(
    model: BaseEmbedding, answers: list[Embedding], texts: Sequence[str]
) -> list[Embedding]:
    """Refuse a batch of another length: which vector is whose can no longer be told.

    Raises:
        EncodeError: More or fewer answers than texts.
    """
    if len(answers) != len(texts):
        raise EncodeError(
            f"{base_name(model)} gave {len(answers)} vectors for a batch of {len(texts)} texts; "
            "none of them is kept.",
            text=texts[0],
        )
    return answers


class _QueryBatches(BaseEmbedding):
    """Shows the query path of a model as a text path, because only texts have a batch method.

    Events, callbacks and the rate limiter come from :class:`BaseEmbedding`, once per batch.
    """

    _embed: QueryBatch = PrivateAttr()
    _payload: dict[str, Any] = PrivateAttr()

    @classmethod
    def of(cls, model: BaseEmbedding) -> _QueryBatches | None:
        """Return the view, or None where the model cannot batch queries."""
        embed = query_batch(model)
        if embed is None:
            return None
        view = cls(
            model_name=model.model_name,
            embed_batch_size=model.embed_batch_size,
            callback_manager=model.callback_manager,
            rate_limiter=model.rate_limiter,
        )
        view._embed = embed
        view._payload = model.to_payload()
        return view

    def to_payload(self) -> dict[str, Any]:
        return self._payload

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed(texts)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([query])[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._embed([query])[0]


def query_batch(model: BaseEmbedding) -> QueryBatch | None:
    """Return the function that embeds a batch of queries as queries, where the model has one.

    That is a method ``_get_query_embeddings`` (ours has it, and any class may), or the query path
    of ``HuggingFaceEmbedding``, unless a subclass replaced it.
    """
    own = getattr(model, "_get_query_embeddings", None)
    if callable(own):
        return cast(QueryBatch, own)
    path = type(model)._get_query_embedding
    if path.__qualname__ == "HuggingFaceEmbedding._get_query_embedding":
        embed = getattr(model, "_embed", None)
        if callable(embed):
            return lambda texts: cast(list[Embedding], embed(texts, prompt_name="query"))
    return None


def clear_trace_map(manager: CallbackManager) -> None:
    """Drop LlamaIndex's notes of past events where no handler is there to be given them.

    A manager notes every event until the next trace begins; a model that is asked on its own, and
    not by an index, begins none. That would be 100 bytes a query for as long as a process serves.
    """
    if not manager.handlers:
        notes = getattr(manager, "_trace_map", None)
        if notes:
            notes.clear()


def base_name(model: BaseEmbedding) -> str:
    """Return class and model name, as messages and saved folders show them.

    Of a local path only the end is shown: the same model elsewhere is the same model. Of an
    address neither user nor password.
    """
    name = type(model).__name__
    if model.model_name in ("", "unknown"):
        return name
    path = Path(model.model_name)
    shown = "/".join(path.parts[-2:]) if path.is_absolute() else model.model_name
    return f"{name}({without_url_secrets(shown)})"


_known: dict[int, tuple[weakref.ref[BaseEmbedding], _State, Fingerprint]] = {}
_CHANGES_NO_VECTOR = frozenset(
    ("callback_manager", "embed_batch_size", "embeddings_cache", "num_workers", "rate_limiter")
)


def _state(model: BaseEmbedding) -> _State:
    """Return what tells a model object that was changed: plain settings, identity of others."""
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else id(value)
        for name, value in vars(model).items()
        if name not in _CHANGES_NO_VECTOR
    }


def fingerprint_of(model: BaseEmbedding, calls: BaseModelCalls | None = None) -> Fingerprint:
    """Embed the probe texts, once per model object and its settings.

    Raises:
        EncodeError: The model answers the probes with something that is not vectors.
    """
    entry = _known.get(id(model))
    if entry is not None and entry[0]() is model and entry[1] == _state(model):
        return entry[2]
    calls = calls or BaseModelCalls(model)
    answers: list[Embedding] = []
    for role in ("document", "query"):
        for start in range(0, len(PROBE_TEXTS), calls.batch_size):
            answers += calls.embed(role, PROBE_TEXTS[start : start + calls.batch_size])
    try:
        probes = as_vectors(cast(Any, answers), what="probe vectors of the base model")
        if probes.shape[0] != 2 * len(PROBE_TEXTS) or probes.shape[1] == 0:
            raise ShapeError("answers", expected=2 * len(PROBE_TEXTS), actual=probes.shape)
    except (TypeError, ValueError) as cause:
        raise EncodeError(
            f"{base_name(model)} did not answer {len(PROBE_TEXTS)} probe texts with finite vectors "
            f"of one length, as documents and as queries ({cause})",
            text=PROBE_TEXTS[0],
        ) from cause
    found = Fingerprint(base_name(model), np.ascontiguousarray(probes))
    number = id(model)
    _known[number] = (weakref.ref(model, lambda _: _known.pop(number, None)), _state(model), found)
    return found


def still_is(model: BaseEmbedding, calls: BaseModelCalls, role: str, known: Fingerprint) -> bool:
    """Ask for one probe text again; where the answer is another one, forget the fingerprint."""
    row = len(PROBE_TEXTS) if role == "query" else 0
    answer = np.array(list(calls.embed(role, PROBE_TEXTS[:1])), dtype=np.float32)
    if Fingerprint(known.name, answer).agrees_with(
        Fingerprint(known.name, known.probes[row : row + 1])
    ):
        return True
    _known.pop(id(model), None)
    return False
