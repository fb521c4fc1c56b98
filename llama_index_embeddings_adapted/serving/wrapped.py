"""Models around a base model: how LlamaIndex asks them, how they are saved, copied and sent."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
from llama_index.core.instrumentation.dispatcher import DISPATCHER_SPAN_DECORATED_ATTR  # type: ignore[attr-defined]
from llama_index.core.storage.kvstore.types import BaseKVStore
from typing_extensions import Self

from ..adapters import saving
from ..adapters.base import Adapter
from ..core.arrays import Role, as_vectors, content_hashes
from ..core.files import from_bytes, to_bytes
from ..encoding.base_model import Embedding, Fingerprint, check_base, fingerprint_of
from ..encoding.cache import CacheDir, VectorCache, cache_folder
from ..encoding.serialize import base_name, rebuild_base, without_url_secrets
from ..errors import OptionError, check_kind
from .base_vectors import Steps, arun_steps, base_vectors, run_steps

Method = TypeVar("Method", bound=Callable[..., Any])


def without_span(method: Method) -> Method:
    """Keep LlamaIndex from opening a second span inside that of the public method.

    It would trace nothing new, and cost more than the adapter.
    """
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
        """Yield the calls that embed texts."""
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

    @without_span
    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await self._aembed(texts, "document")


#: What a folder holds: how to build the base model, its fingerprint, and arguments.
Loaded = tuple[dict[str, Any] | None, Fingerprint | None, dict[str, Any]]


class ServedEmbedding(WrappedEmbedding):
    """A base model and something trained beside it, which can be saved, copied and sent.

    Abstract: a subclass says how vectors are made of those of the base model, what its folders and
    dicts hold, and names the arguments of its constructor. ``training`` is saved along; ``cache``
    is a LlamaIndex key-value store for base vectors.
    """

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
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            **self._described(),
        }

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


class DocumentEmbedding(WrappedEmbedding):
    """The document side of an adapted model, for ``IngestionPipeline`` and for building indexes.

    A pipeline keeps nodes by the dict of the transformation that made them. This one's,
    ``description``, names only what document vectors depend on. Vectors of the base model are kept
    on disk, by model and text. Made by :meth:`AdaptedEmbedding.for_documents`.
    """

    _NAME: ClassVar[str] = "DocumentEmbedding"
    _base: BaseEmbedding = PrivateAttr()
    _adapter: Adapter | None = PrivateAttr()
    _cache: VectorCache = PrivateAttr()
    _description: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        base: BaseEmbedding,
        adapter: Adapter | None,
        description: dict[str, Any],
        *,
        cache_dir: CacheDir = None,
    ) -> None:
        super().__init__(base, "", model_name=base.model_name)
        fingerprint, folder = fingerprint_of(base), cache_folder(cache_dir)
        self._base, self._adapter = base, adapter
        self._cache = VectorCache(folder, fingerprint)
        self._description = dict(description)
        if adapter is not None or not _is_first(description, fingerprint, folder):
            self._description["fingerprint"] = fingerprint.digest

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the dict of the base model, where the adapter leaves documents alone.

        A second base model with the dict of the first but with other vectors has its fingerprint in
        it, too; so has every adapter that moves documents.
        """
        return dict(self._description)

    def close(self) -> None:
        """Release the files of the vector cache."""
        self._cache.close()

    def _steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        if role == "query":
            raise OptionError(
                "This model embeds documents only; ask the adapted model for queries."
            )
        if not texts:
            return []
        distinct = list(dict.fromkeys(texts))
        rows, found = self._cache.get(role, distinct)
        vectors = dict(zip([distinct[row] for row in rows], found, strict=True))
        if missing := [text for text in distinct if text not in vectors]:
            asked = self._base, missing, role, self.embed_batch_size, self.callback_manager
            answers = yield from base_vectors(*asked)
            new = as_vectors(np.array(answers), what="document vectors of the base model")
            self._cache.put(role, missing, new)
            vectors.update(zip(missing, new, strict=True))
        moved = np.stack([vectors[text] for text in texts])
        if self._adapter is not None:
            moved = self._adapter.apply(moved, role, content_hashes(texts))
        embedded: list[Embedding] = moved.tolist()
        return embedded


_first_seen: dict[str, Fingerprint] = {}


def _is_first(description: dict[str, Any], model: Fingerprint, folder: Path | None) -> bool:
    """Return whether a model is the first with this dict, or has the vectors of the first."""
    key = hashlib.sha256(str(description).encode(errors="surrogatepass")).hexdigest()
    if folder is None:
        return model.agrees_with(_first_seen.setdefault(key, model))
    path = folder / "ingestion" / f"{key}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder_of_ours, suppress(FileExistsError):
            written = Path(folder_of_ours) / path.name
            written.write_bytes(to_bytes({"probes": model.probes}))
            os.link(written, path)  # whole, unless somebody else was first
    probes: Any = from_bytes(path.read_bytes(), where=str(path))["probes"]
    return model.agrees_with(Fingerprint(model.name, probes))
