"""AdaptedEmbedding: a base model and an adapter, used wherever LlamaIndex takes an embed_model."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr, model_serializer
from llama_index.core.callbacks import CallbackManager

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted import store
from llama_index_embeddings_adapted.adapted_calls import (
    AdaptedCalls,
    base_vectors,
    check_adapter,
)
from llama_index_embeddings_adapted.adapters import Adapter, describe, restore
from llama_index_embeddings_adapted.base_model import check_base
from llama_index_embeddings_adapted.document_side import DocumentEmbedding
from llama_index_embeddings_adapted.encode import CacheDir
from llama_index_embeddings_adapted.errors import FolderError
from llama_index_embeddings_adapted.maps import UnitAdapter
from llama_index_embeddings_adapted.redaction import without_url_secrets
from llama_index_embeddings_adapted.serialize import base_or_rebuilt, describe_base, taken
from llama_index_embeddings_adapted.sketch import QuerySketch
from llama_index_embeddings_adapted.stack import StackedAdapter
from llama_index_embeddings_adapted.vectors import Keys, Role, Vectors
from llama_index_embeddings_adapted.versions import Version, Versions, check_successor


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
            :func:`~llama_index_embeddings_adapted.watching.inspect_queries`.

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
            adapter = store.load(Path(adapter)).adapter
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
            saved = store.load(Path(adapter))
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
                :class:`~llama_index_embeddings_adapted.encode.Encoder`.
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
        from llama_index_embeddings_adapted.card import model_card

        with self._versions.lock:
            adapter, training, sketch = self.adapter, self._training, self._sketch
        store.save(
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
        saved = store.load(path)
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
