"""AdaptedEmbedding: a base model and an adapter, used wherever LlamaIndex takes an embed_model.

What LlamaIndex calls on an adapted model: queries and texts in, adapted vectors out.

Adapter versions of one serving model: which came before, and what may follow.

``resolve_embed_model`` that also knows ``"adapted:<folder>"``.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]
    DISPATCHER_SPAN_DECORATED_ATTR,
)
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.adapters.base import Adapter, describe, restore
from llama_index_embeddings_adapted.adapters.composites import StackedAdapter
from llama_index_embeddings_adapted.adapters.maps import UnitAdapter
from llama_index_embeddings_adapted.adapters.sketch import QuerySketch
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.core.arrays import Keys, Role, Vectors, content_hashes
from llama_index_embeddings_adapted.encoding.base_model import (
    Embedding,
    base_name,
    check_base,
    forget_events,
)
from llama_index_embeddings_adapted.encoding.cache import CacheDir
from llama_index_embeddings_adapted.encoding.serialize import (
    base_or_rebuilt,
    describe_base,
    taken,
    without_url_secrets,
)
from llama_index_embeddings_adapted.errors import FolderError, OptionError, ShapeError
from llama_index_embeddings_adapted.serving.base_vectors import BaseVectors, DocumentEmbedding

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
        adapted: list[Embedding] = adapter.apply(array, "document", content_hashes(texts)).tolist()
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


#: How many earlier versions can be rolled back to.
DEPTH = 8


@dataclass(frozen=True, eq=False)
class Version:
    """An adapter and what is known of it; immutable, so that a reference to it is a snapshot.

    Args:
        adapter: The adapter.
        training: Data, scores and settings of its training.
        sketch: What its training queries looked like.
    """

    adapter: Adapter
    training: dict[str, Any] = field(default_factory=dict)
    sketch: QuerySketch | None = None


class Versions:
    """The earlier versions of a model, latest last; at most :data:`DEPTH`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._past: list[Version] = []

    def keep(self, version: Version) -> None:
        """Remember a version that is about to be replaced; the oldest is forgotten."""
        self._past = [*self._past, version][-DEPTH:]

    def take_back(self) -> Version:
        """Return the version before, and forget it.

        Raises:
            OptionError: There is none.
        """
        if not self._past:
            raise OptionError(
                f"There is no earlier adapter to roll back to; the last {DEPTH} swaps are kept."
            )
        *self._past, latest = self._past
        return latest


def check_successor(current: Adapter, new: Adapter, *, index_rebuilt: bool) -> None:
    """Check that an adapter can take the place of another over the same index.

    Args:
        current: The adapter in service.
        new: Its successor.
        index_rebuilt: The caller's word that the index holds the successor's document vectors.

    Raises:
        ShapeError: Other dimensions.
        OptionError: It treats documents otherwise, so that the index no longer fits.
    """
    if (new.input_dim, new.output_dim) != (current.input_dim, current.output_dim):
        raise ShapeError(
            "The adapter to swap in",
            expected=f"{current.input_dim} → {current.output_dim}, as the one in service",
            actual=f"{new.input_dim} → {new.output_dim}",
            hint="Was it trained on another base model?",
        )
    moves = new.adapts_documents or current.adapts_documents
    if moves and not index_rebuilt and new != current:
        raise OptionError(
            "One of the two adapters moves documents, so the index in service does not fit the "
            "other. Rebuild it with adapt_index, then swap with index_rebuilt=True."
        )


class AdaptedEmbedding(AdaptedCalls):
    """A base model whose query vectors (or all vectors) pass through a trained adapter.

    Documents keep the vectors of the base model unless the adapter says otherwise
    (``adapter.adapts_documents``), so an index built with the base model keeps working.

    LlamaIndex's events and callbacks fire once per call, with this model's ``callback_manager``.
    The base model's rate limiter, retries and ``embeddings_cache`` apply. An ``embeddings_cache``
    given to this model holds base vectors, by base model, role and text, so that no adapter is
    ever skipped by it.

    Args:
        base_embed_model: Any LlamaIndex embedding model.
        adapter: An adapter, or a folder with one. It has to fit the model: see
            :meth:`from_pretrained`, which checks that it does.
        transform_query: Apply the adapter to queries. False shows the base model as it is.
        embed_batch_size: Documents per call to the base model; its own value by default.
        callback_manager: That of the base model by default.
        embeddings_cache: A LlamaIndex key-value store.
        rate_limiter: Applies besides that of the base model.
        num_workers: Of LlamaIndex's asynchronous batches; that of the base model by default.
        model_name: For logs; made from the base model's name by default.
        training: What is known of the training, to be saved along.
        sketch: What the training queries looked like, to be saved along, for
            :func:`inspect_queries`.

    Raises:
        ShapeError: The adapter changes the dimension of queries but leaves documents alone.
        OptionError: ``base_embed_model`` or ``adapter`` is something else.
    """

    _training: dict[str, Any] = PrivateAttr(default_factory=dict)
    _sketch: QuerySketch | None = PrivateAttr(default=None)
    _versions: Versions = PrivateAttr(default_factory=Versions)

    def __init__(
        self,
        base_embed_model: BaseEmbedding,
        adapter: Adapter | str | Path,
        *,
        transform_query: bool = True,
        embed_batch_size: int | None = None,
        callback_manager: CallbackManager | None = None,
        embeddings_cache: Any | None = None,
        rate_limiter: Any | None = None,
        num_workers: int | None = None,
        model_name: str | None = None,
        training: Mapping[str, Any] | None = None,
        sketch: QuerySketch | None = None,
    ) -> None:
        check_base(base_embed_model, "base_embed_model")
        if isinstance(adapter, (str, Path)):
            adapter = saving.load(Path(adapter)).adapter
        check_adapter(adapter)
        super().__init__(
            model_name=model_name or f"adapted:{without_url_secrets(base_embed_model.model_name)}",
            embed_batch_size=embed_batch_size or base_embed_model.embed_batch_size,
            callback_manager=callback_manager or base_embed_model.callback_manager,
            rate_limiter=rate_limiter,
            num_workers=num_workers or base_embed_model.num_workers,
            transform_query=transform_query,
            base_embed_model=base_embed_model,
            adapter=adapter,
        )
        self._training, self._sketch = dict(training or {}), sketch
        self._vectors = base_vectors(base_embed_model, embeddings_cache)

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return "AdaptedEmbedding"

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the training: data, scores, settings."""
        return self._training

    @property
    def sketch(self) -> QuerySketch | None:
        """What the training queries looked like, if that was kept."""
        return self._sketch

    def swap(
        self, adapter: Adapter | str | Path, *, verify: bool = True, index_rebuilt: bool = False
    ) -> Adapter:
        """Serve another adapter from the next call on; :meth:`roll_back` undoes it.

        Safe while any number of threads and coroutines ask: every vector comes from one version,
        the one in service when its base vector arrived. No call waits, none fails.

        Args:
            adapter: Its successor, or a folder with one.
            verify: Refuse a folder whose adapter was trained on another base model.
            index_rebuilt: Needed where either adapter moves documents; see :func:`adapt_index`.

        Returns:
            The adapter that was in service.

        Raises:
            ShapeError: Other dimensions than the adapter in service.
            OptionError: It treats documents otherwise than the adapter in service.
            BaseModelMismatchError: It was trained on another base model.
        """
        if isinstance(adapter, (str, Path)):
            saved = saving.load(Path(adapter))
            if verify:
                saved.verify(self.base_embed_model, where=adapter)
            new = Version(saved.adapter, saved.training, saved.sketch)
        else:
            new = Version(adapter)
        check_adapter(new.adapter)
        with self._versions.lock:
            before = Version(self.adapter, self._training, self._sketch)
            check_successor(before.adapter, new.adapter, index_rebuilt=index_rebuilt)
            self._versions.keep(before)
            self._serve(new)
        return before.adapter

    def roll_back(self) -> Adapter:
        """Undo the last :meth:`swap`; return the adapter now in service.

        Raises:
            OptionError: Nothing was swapped, or all of it is undone.
        """
        with self._versions.lock:
            self._serve(self._versions.take_back())
            return self.adapter

    def _serve(self, version: Version) -> None:
        self.adapter = version.adapter
        self._training, self._sketch = version.training, version.sketch

    def for_documents(self, *, cache_dir: CacheDir = None) -> DocumentEmbedding:
        """Return what embeds documents for this model, for ``IngestionPipeline``.

        Where the adapter leaves documents alone, its dict and vectors are those of the base model,
        so no new adapter makes a pipeline embed anything again. Two base models that share a dict
        but not their vectors are told apart. Asks the base model for its probe vectors, once.

        Args:
            cache_dir: Where the base model's vectors are kept and looked up, see
                :class:`Encoder`.
        """
        if self.adapter.adapts_documents:
            return DocumentEmbedding(
                self.base_embed_model, self.adapter, self.to_dict(), cache_dir=cache_dir
            )
        description = self.base_embed_model.to_dict()
        return DocumentEmbedding(self.base_embed_model, None, description, cache_dir=cache_dir)

    def normalized(self) -> AdaptedEmbedding:
        """Return this model with queries and documents of length 1.

        For base models whose vectors are not, in stores that rank by inner product or Euclidean
        distance; the index has to be rebuilt once, see :func:`adapt_index`.
        """
        length = UnitAdapter(self.adapter.output_dim)
        state = {**self.__getstate__(), "adapter": StackedAdapter(self.adapter, length)}
        return type(self)(**state)

    def adapt(self, vectors: Vectors, role: Role = "query", keys: Keys | None = None) -> Vectors:
        """Map vectors of the base model, ``(dim,)`` or ``(n, dim)``, as this model would.

        Args:
            vectors: Of the base model.
            role: ``"query"`` or ``"document"``.
            keys: ``(n,)``, content keys of documents; see :meth:`Adapter.apply`.

        Raises:
            ShapeError: Vectors of another dimension than the adapter was trained on.
        """
        if role == "query" and not self.transform_query:
            return vectors
        return self.adapter.apply(vectors, role, keys)

    # --- saving, copying, sending -------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter, identity of the base model and model card; atomic, without secrets.

        Raises:
            FolderError: The folder exists and holds something else.
        """
        from llama_index_embeddings_adapted.adapters.saving import model_card

        with self._versions.lock:
            adapter, training, sketch = self.adapter, self._training, self._sketch
        saving.save(
            Path(folder),
            adapter,
            self.base_embed_model,
            transform_query=self.transform_query,
            training=training,
            sketch=sketch,
            card=model_card(adapter, self.base_embed_model, training, Path(folder).name),
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_embed_model: BaseEmbedding | None = None,
        *,
        verify: bool = True,
        **kwargs: Any,
    ) -> AdaptedEmbedding:
        """Load a saved adapter, also one of ``llama-index-finetuning``.

        Args:
            folder: A folder of :meth:`save_pretrained`.
            base_embed_model: The model to adapt; None builds it from what the folder says.
            verify: Ask the model for a few probe vectors, and refuse it if they are not those of
                the model the adapter was trained on. Folders of the old package know no model.
            kwargs: Passed to the constructor; without ``base_embed_model``, others are passed to
                the base model, for instance ``api_key``.

        Raises:
            FolderError: The folder is missing, damaged, foreign or too new, or the base model
                cannot be built.
            BaseModelMismatchError: The model is not the one the adapter was trained on.
        """
        path = Path(folder)
        saved = saving.load(path)
        own = taken(kwargs, _CONSTRUCTOR)
        base_embed_model = base_or_rebuilt(base_embed_model, saved.base, kwargs)
        if verify:
            saved.verify(base_embed_model, where=path)
        known = {"training": saved.training, "sketch": saved.sketch}
        options = {"transform_query": saved.transform_query, **known, **own}
        return cls(base_embed_model, saved.adapter, **options)

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Give what :meth:`from_dict` needs, as JSON knows it, without the base model's secrets."""
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            "transform_query": self.transform_query,
            "base_model": describe_base(self.base_embed_model),
            "adapter": describe(self.adapter),
            "weights": base64.b64encode(folders.to_bytes(self.adapter.arrays())).decode("ascii"),
            "training": self._training,
        }

    @classmethod
    def from_dict(
        cls,
        data: dict[str, Any],
        base_embed_model: BaseEmbedding | None = None,
        **kwargs: Any,
    ) -> AdaptedEmbedding:
        """Rebuild what :meth:`to_dict` gave.

        Args:
            data: The dict.
            base_embed_model: Use this model instead of building the one described.
            kwargs: As for :meth:`from_pretrained`.

        Raises:
            FolderError: The dict is damaged, or the base model cannot be built.
            OptionError: Settings of a base model besides the base model itself.
        """
        try:
            weights = base64.b64decode(data["weights"], validate=True)
        except (KeyError, TypeError, ValueError) as cause:
            raise FolderError(f"Not the dict of an AdaptedEmbedding ({cause!r}).") from cause
        arrays = folders.from_bytes(weights, where="weights")
        own = {key: data[key] for key in _CONSTRUCTOR if data.get(key) is not None}
        own |= taken(kwargs, _CONSTRUCTOR)
        return cls(
            base_or_rebuilt(base_embed_model, data.get("base_model"), kwargs),
            restore(data.get("adapter"), arrays, where="adapter"),
            **own,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Caches, limiters and callbacks hold locks and connections: they stay behind.
        return {
            "base_embed_model": self.base_embed_model,
            "adapter": self.adapter,
            "training": self._training,
            "sketch": self._sketch,
            "transform_query": self.transform_query,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            "model_name": self.model_name,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> AdaptedEmbedding:
        """Copy the model; the adapter cannot change, the base model and its limits are shared."""
        return type(self)(
            **self.__getstate__(),
            callback_manager=self.callback_manager,
            rate_limiter=self.rate_limiter,
            embeddings_cache=self._vectors.cache,
        )


_CONSTRUCTOR = (
    "transform_query",
    "embed_batch_size",
    "num_workers",
    "model_name",
    "callback_manager",
    "embeddings_cache",
    "rate_limiter",
    "training",
    "sketch",
)


PREFIX = "adapted:"


class SavedModel(Protocol):
    """A kind of model that a folder can hold."""

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether the folder says that it holds a model of this kind."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Any:
        """Load a folder."""
        ...


_Kind = TypeVar("_Kind", bound=type[SavedModel])
_KINDS: list[type[SavedModel]] = []


def savable(kind: _Kind) -> _Kind:
    """Have :func:`resolve_embed_model` load folders that hold this kind of model."""
    _KINDS.append(kind)
    return kind


def resolve_embed_model(
    embed_model: Any = None, callback_manager: CallbackManager | None = None
) -> BaseEmbedding:
    """Resolve an embedding model as LlamaIndex does, and saved adapters besides.

    Args:
        embed_model: ``"adapted:<folder>"`` loads that folder with
            :meth:`AdaptedEmbedding.from_pretrained`, or :meth:`ComposedEmbedding.from_pretrained`
            where it holds a composed model. Anything else goes to LlamaIndex unchanged.
        callback_manager: As in LlamaIndex.
    """
    if isinstance(embed_model, str) and embed_model.startswith(PREFIX):
        folder = Path(embed_model.removeprefix(PREFIX))
        kind = next((kind for kind in _KINDS if kind.holds(folder)), AdaptedEmbedding)
        embed_model = kind.from_pretrained(folder)
    return core_resolve(embed_model, callback_manager)
