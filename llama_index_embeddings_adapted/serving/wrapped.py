"""Models around a base model: how LlamaIndex asks them, how they are saved, copied and sent.

A model fires LlamaIndex's events once per call, so it must not call the base model's public
methods; what those do besides (rate limit, cache) is done here. Unlike there, a query and a
document of the same text never share a cache entry.

What can be asked both ways is written once: a generator yields calls, each with its asynchronous
twin, and :func:`run_steps` or :func:`arun_steps` makes them.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR  # type: ignore[attr-defined]
from llama_index.core.storage.kvstore.types import BaseKVStore
from typing_extensions import Self

from ..adapters import saving
from ..core.arrays import Role
from ..data.reading import repaired
from ..encoding import base_model
from ..encoding.base_model import Embedding, Fingerprint, check_base, fingerprint_of
from ..encoding.serialize import base_name, rebuild_base, without_url_secrets
from ..errors import EncodeError, OptionError, check_kind

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])

#: A function, its asynchronous twin, and their arguments.
Call = tuple[Callable[..., Any], Callable[..., Awaitable[Any]], tuple[Any, ...]]
Steps = Generator[Call, Any, T]
#: What a folder holds: how to build the base model, its fingerprint, and arguments.
Loaded = tuple[dict[str, Any] | None, Fingerprint | None, dict[str, Any]]


def run_steps(steps: Steps[T]) -> T:
    """Make the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            call, _, arguments = steps.send(answer)
        except StopIteration as done:
            return cast(T, done.value)
        answer = call(*arguments)


async def arun_steps(steps: Steps[T]) -> T:
    """Await the calls that a generator yields; return what it returns."""
    answer: Any = None
    while True:
        try:
            _, call, arguments = steps.send(answer)
        except StopIteration as done:
            return cast(T, done.value)
        answer = await call(*arguments)


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
    base_model.clear_trace_map(manager)
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
        answers = base_model.whole_batch(model, (yield ask, aask, (batch,)), batch)
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

    if size > 1 and (together := base_model.query_batch(model)) is not None:
        return together, alone, size
    return lambda batch: [model._get_query_embedding(text) for text in batch], alone, 1


def without_span(method: Method) -> Method:
    """Keep LlamaIndex from a second span inside the public method's, dearer than the adapter."""
    setattr(method, DISPATCHER_SPAN_DECORATED_ATTR, True)
    return method


class WrappedEmbedding(BaseEmbedding):
    """A model that answers by way of a base model, whose settings it has unless told otherwise.

    Abstract: :meth:`_steps` is where LlamaIndex's ways to ask lead. Fields that are None are as
    good as absent; ``prefix`` stands before the base model's name in logs.
    """

    _NAME: ClassVar[str]  # that of subclasses, too, which LlamaIndex does not know

    def __init__(self, base: BaseEmbedding, prefix: str, **fields: Any) -> None:
        settings = {
            "model_name": f"{prefix}{without_url_secrets(base.model_name)}",
            "embed_batch_size": base.embed_batch_size,
            "callback_manager": base.callback_manager,
            "num_workers": base.num_workers,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        super().__init__(**{**settings, **given})

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return cls._NAME

    def _steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        raise NotImplementedError

    def _embed(self, texts: list[str], role: Role) -> list[Embedding]:
        return run_steps(self._steps(texts, role))

    async def _aembed(self, texts: list[str], role: Role) -> list[Embedding]:
        return await arun_steps(self._steps(texts, role))

    @without_span
    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([query], "query")[0]

    @without_span
    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([query], "query"))[0]

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        return self._embed(queries, "query")

    @without_span
    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed(texts, "document")


class ServedEmbedding(WrappedEmbedding):
    """A base model and something trained beside it, which can be saved, copied and sent.

    Abstract: a subclass says how vectors are made of those of the base model, what its folders and
    dicts hold, and names the arguments of its constructor. ``training`` is saved along; ``cache``
    is a LlamaIndex key-value store for base vectors.
    """

    _MARK: ClassVar[str]  # a key of ``config.json`` by which its folders are told

    # Fields, not private attributes: pydantic takes 50 times as long to look those up.
    base_embed_model: BaseEmbedding = Field(exclude=True, description="The base model.")

    _store: Any = PrivateAttr(default=None)
    _training: dict[str, Any] = PrivateAttr(default_factory=dict)

    #: Arguments of the constructor that a copy is made with; locks and connections stay behind.
    _STATE: ClassVar[tuple[str, ...]]
    _STATE = ("base_embed_model", "embed_batch_size", "num_workers", "model_name", "training")
    #: Arguments that are taken out of those for the base model.
    _OPTIONS: ClassVar[tuple[str, ...]] = (*_STATE[1:], "callback_manager")
    _SHOWN: ClassVar[tuple[str, ...]] = ("model_name", "embed_batch_size")

    def __init__(
        self,
        base: BaseEmbedding | str,
        prefix: str,
        *,
        training: Mapping[str, Any] | None,
        cache: Any = None,
        **fields: Any,
    ) -> None:
        base = check_base(base, "base_embed_model")
        super().__init__(base, prefix, base_embed_model=base, **fields)
        self._training = dict(training or {})
        self.embeddings_cache = cache

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the training: data, scores, settings."""
        return self._training

    def _base_steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        asked = self.base_embed_model, texts, role, self.embed_batch_size
        return base_vectors(*asked, self.callback_manager, self._store)

    def _steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        return self._mapped((yield from self._base_steps(texts, role)), texts, role)

    def _mapped(self, answers: list[Embedding], texts: list[str], role: Role) -> list[Embedding]:
        """Return the vectors of this model, given those of the base model."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        # LlamaIndex's cache knows neither role nor training: base vectors go there, by our keys.
        if name == "embeddings_cache":
            if value is not None:
                check_kind(name, value, BaseKVStore, "a LlamaIndex key-value store")
            name = "_store"
        super().__setattr__(name, value)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Show which model is served, not its settings: keys are among them."""
        base = ("base_embed_model", base_name(self.base_embed_model))
        return [base, *((name, getattr(self, name)) for name in self._SHOWN)]

    @classmethod
    @abstractmethod
    def _load(cls, folder: Path) -> Loaded:
        """Read a folder."""

    @classmethod
    @abstractmethod
    def _restore(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that a dict holds besides :attr:`_OPTIONS`."""

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """Return what a dict holds of this model besides its name and settings."""

    def _shared(self) -> dict[str, Any]:
        """Return the arguments that a copy in this process has besides its state."""
        return {"callback_manager": self.callback_manager}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_embed_model: BaseEmbedding | str | None = None,
        *,
        verify: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a saved model. Nothing in the folder is executed.

        Args:
            folder: A folder of :meth:`save_pretrained`, or of ``llama-index-finetuning``.
            base_embed_model: The base model, or what names one such as ``"minilm"``; None builds it
                from what the folder says.
            verify: Refuse another base model than that of the training, by a few probe vectors.
                Folders of the old package know no model.
            kwargs: Passed to the constructor; without ``base_embed_model``, others are passed to
                the base model, for instance ``api_key``.

        Raises:
            FolderError: The folder is missing, damaged, changed, foreign or too new, or the base
                model cannot be built.
            BaseModelMismatchError: The model is not the one of the training.
        """
        path = Path(folder)
        described, fingerprint, arguments = cls._load(path)
        own, base = cls._told(kwargs, base_embed_model, described)
        if verify:
            saving.verify(fingerprint, base, where=path)
        return cls(base, **{**arguments, **own})

    @classmethod
    def _told(
        cls, kwargs: dict[str, Any], base: BaseEmbedding | str | None, described: object
    ) -> tuple[dict[str, Any], BaseEmbedding]:
        """Return the arguments that are ours, and the model given or else the one described."""
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in cls._OPTIONS}
        if base is None:
            return own, rebuild_base(described, **kwargs)
        if kwargs:
            raise OptionError(f"Unknown arguments: {', '.join(sorted(kwargs))}.")
        return own, check_base(base, "base_embed_model")

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Give what :meth:`from_dict` needs, as JSON knows it, without the base model's secrets."""
        names = ("model_name", "embed_batch_size", "num_workers")
        settings = {name: getattr(self, name) for name in names}
        return {"class_name": self.class_name(), **settings, **self._described()}

    @classmethod
    def from_dict(
        cls,
        data: dict[str, Any],
        base_embed_model: BaseEmbedding | str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Rebuild what :meth:`to_dict` gave; arguments and errors as of :meth:`from_pretrained`."""
        arguments = cls._restore(data)
        saved = {key: data[key] for key in cls._OPTIONS if data.get(key) is not None}
        own, base = cls._told(kwargs, base_embed_model, data.get("base_model"))
        return cls(base, **arguments, **{**saved, **own})

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the model; what does not change is shared: the base model, its limits, weights."""
        return type(self)(**{**self.__getstate__(), **self._shared()})
