"""ComposedEmbedding: a frozen black box and a small model beside it, as one embed_model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
from llama_index.core.callbacks import CallbackManager

from llama_index_embeddings_adapted import composed_store
from llama_index_embeddings_adapted.base_model import (
    Embedding,
    base_name,
    check_base,
    forget_events,
)
from llama_index_embeddings_adapted.base_vectors import BaseVectors
from llama_index_embeddings_adapted.composition import check_weight, compose
from llama_index_embeddings_adapted.errors import FolderError
from llama_index_embeddings_adapted.redaction import without_url_secrets
from llama_index_embeddings_adapted.resolve import savable
from llama_index_embeddings_adapted.serialize import base_or_rebuilt, describe_base, taken
from llama_index_embeddings_adapted.small_model import SmallModel, check_pooled
from llama_index_embeddings_adapted.vectors import Role, Vectors


@savable
class ComposedEmbedding(BaseEmbedding):
    """Vectors of two models in one: ``e(x) = normalise([b(x) ; λ·a(x)])``.

    Documents have to be embedded with it too: an index built with the black box alone has other
    dimensions. At λ = 0 it is the black box, at its dimensions, and the small model is not asked.

    LlamaIndex's events fire once per call, with this model's ``callback_manager``. The black box's
    rate limiter, retries and ``embeddings_cache`` apply. Asynchronous calls await the black box
    while the small model computes.

    Args:
        base_embed_model: The black box: any LlamaIndex embedding model.
        augment_model: The small model: a ``SentenceTransformer``, or the name or folder of one. It
            is loaded when first needed.
        weight: λ, ``>= 0``.
        embed_batch_size: Texts per call to either model; that of the black box by default.
        callback_manager: That of the black box by default.
        num_workers: Of LlamaIndex's asynchronous batches; that of the black box by default.
        model_name: For logs.
        device: Of the small model.
        training: What is known of the training, to be saved along.

    Raises:
        OptionError: An argument of another kind, or a small model without a vector per text.

    Source:
        Zhang et al. 2024, arXiv:2402.12177.
    """

    weight: float = Field(default=0.5, description="λ, the say of the small model.")
    base_embed_model: BaseEmbedding = Field(exclude=True, description="The black box.")

    _small: SmallModel = PrivateAttr()
    _vectors: BaseVectors = PrivateAttr()
    _training: dict[str, Any] = PrivateAttr(default_factory=dict)
    _device: str | None = PrivateAttr(default=None)

    def __init__(
        self,
        base_embed_model: BaseEmbedding,
        augment_model: Any,
        weight: float = 0.5,
        *,
        embed_batch_size: int | None = None,
        callback_manager: CallbackManager | None = None,
        num_workers: int | None = None,
        model_name: str | None = None,
        device: str | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        check_base(base_embed_model, "base_embed_model")
        check_weight(weight)
        if not isinstance(augment_model, (str, Path)):
            check_pooled(augment_model)
        super().__init__(
            model_name=model_name or f"composed:{without_url_secrets(base_embed_model.model_name)}",
            embed_batch_size=embed_batch_size or base_embed_model.embed_batch_size,
            callback_manager=callback_manager or base_embed_model.callback_manager,
            num_workers=num_workers or base_embed_model.num_workers,
            weight=float(weight),  # type: ignore[call-arg]
            base_embed_model=base_embed_model,
        )
        self._small = SmallModel(augment_model, device=device)
        self._vectors = BaseVectors(base_embed_model)
        self._training = dict(training or {})
        self._device = device

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return "ComposedEmbedding"

    @property
    def augment_model(self) -> Any:
        """The small model, a ``SentenceTransformer``; loaded on first use."""
        return self._small.model

    @property
    def training(self) -> dict[str, Any]:
        """What is known of the training: data, scores, settings."""
        return self._training

    # --- what LlamaIndex calls ----------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._composed([self._vectors.query(query)], [query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        small, answer = await asyncio.gather(
            asyncio.to_thread(self._encoded, [query], "query"), self._vectors.aquery(query)
        )
        return self._joined([answer], small)[0]

    def _get_query_embeddings(self, queries: list[str]) -> list[Embedding]:
        answers = self._vectors.queries(queries, self.embed_batch_size)
        return self._composed(answers, queries, "query")

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        answers = self._vectors.documents(texts, self.embed_batch_size)
        return self._composed(answers, texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        # The small model computes in a thread while the black box is awaited.
        small, answers = await asyncio.gather(
            asyncio.to_thread(self._encoded, texts, "document"),
            self._vectors.adocuments(texts, self.embed_batch_size),
        )
        return self._joined(answers, small)

    def _composed(self, answers: list[Embedding], texts: list[str], role: Role) -> list[Embedding]:
        return self._joined(answers, self._encoded(texts, role))

    def _encoded(self, texts: Sequence[str], role: Role) -> Vectors:
        if self.weight == 0:
            return np.empty((len(texts), 0), dtype=np.float32)
        return self._small.encode(texts, role, batch_size=self.embed_batch_size)

    def _joined(self, answers: list[Embedding], small: Vectors) -> list[Embedding]:
        forget_events(self.callback_manager)
        if not answers:
            return answers
        array = np.array(answers, dtype=np.float32)
        joined: list[Embedding] = compose(array, small, self.weight).tolist()
        return joined

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "base_embed_model":
            self._vectors = BaseVectors(value)

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """Show the models and λ, not the black box's settings: keys are among them."""
        return [
            ("base_embed_model", base_name(self.base_embed_model)),
            ("augment_model", str(self._small.source or "in memory")),
            *((name, getattr(self, name)) for name in ("weight", "model_name", "embed_batch_size")),
        ]

    # --- saving, copying, sending -------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write small model, λ, identity of the black box and model card; atomic, without secrets.

        Raises:
            FolderError: The folder exists and holds something else.
        """
        composed_store.save(
            Path(folder), self.augment_model, self.weight, self.base_embed_model, self._training
        )

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether a folder says that it holds a composed model."""
        return composed_store.is_composed(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base_embed_model: BaseEmbedding | None = None,
        *,
        verify: bool = True,
        **kwargs: Any,
    ) -> ComposedEmbedding:
        """Load a saved model. Nothing in the folder is executed.

        Args:
            folder: A folder of :meth:`save_pretrained`.
            base_embed_model: The black box; None builds it from what the folder says.
            verify: Ask the black box for a few probe vectors, and refuse it if they are not those
                of the one trained beside.
            kwargs: Passed to the constructor; without ``base_embed_model``, others are passed to
                the black box, for instance ``api_key``.

        Raises:
            FolderError: The folder is missing, damaged, changed, foreign or too new, or the black
                box cannot be built.
            BaseModelMismatchError: The black box is another one.
        """
        path = Path(folder)
        saved = composed_store.load(path)
        own = taken(kwargs, _CONSTRUCTOR)
        base = base_or_rebuilt(base_embed_model, saved.base, kwargs)
        if verify:
            saved.verify(base, where=path)
        options = {"weight": saved.weight, "training": saved.training, **own}
        return cls(base, saved.augment_model, **options)

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Give what :meth:`from_dict` needs, as JSON knows it, without the black box's secrets.

        The small model is named by its folder; one that was never saved is not in the dict.
        """
        source = self._small.source
        return {
            "class_name": self.class_name(),
            "model_name": self.model_name,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            "weight": self.weight,
            "base_model": describe_base(self.base_embed_model),
            "augment_model": None if source is None else str(source),
        }

    @classmethod
    def from_dict(
        cls,
        data: dict[str, Any],
        base_embed_model: BaseEmbedding | None = None,
        **kwargs: Any,
    ) -> ComposedEmbedding:
        """Rebuild what :meth:`to_dict` gave.

        Args:
            data: The dict.
            base_embed_model: Use this black box instead of building the one described.
            kwargs: As for :meth:`from_pretrained`.

        Raises:
            FolderError: The dict has no small model, or the black box cannot be built.
        """
        own = {key: data[key] for key in _CONSTRUCTOR if data.get(key) is not None}
        own |= taken(kwargs, _CONSTRUCTOR)
        kwargs |= {key: data[key] for key in data if key not in (*own, *_DUMPED)}
        small = data.get("augment_model")
        if not isinstance(small, str):
            raise FolderError(
                "This dict of a ComposedEmbedding names no small model: it was not saved. Use "
                "save_pretrained and from_pretrained."
            )
        base = base_or_rebuilt(base_embed_model, data.get("base_model"), kwargs)
        return cls(base, small, **own)

    def __getstate__(self) -> dict[str, Any]:
        # Limiters, callbacks and torch modules stay behind; a small model that has no folder
        # travels as the files it would be saved as.
        source = self._small.source
        return {
            "base_embed_model": self.base_embed_model,
            "augment_model": source or composed_store.as_files(self._small.model),
            "weight": self.weight,
            "embed_batch_size": self.embed_batch_size,
            "num_workers": self.num_workers,
            "model_name": self.model_name,
            "device": self._device,
            "training": self._training,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        small = state["augment_model"]
        if isinstance(small, dict):
            small = composed_store.from_files(small, device=state["device"])
        self.__init__(**{**state, "augment_model": small})  # type: ignore[misc]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> ComposedEmbedding:
        """Copy the model; both models, which do not change, are shared."""
        copy = type(self)(
            self.base_embed_model,
            self._small.source or self._small.model,
            self.weight,
            embed_batch_size=self.embed_batch_size,
            callback_manager=self.callback_manager,
            num_workers=self.num_workers,
            model_name=self.model_name,
            device=self._device,
            training=self._training,
        )
        copy._small = self._small
        return copy


_CONSTRUCTOR = (
    "weight",
    "embed_batch_size",
    "num_workers",
    "model_name",
    "callback_manager",
    "device",
    "training",
)
_DUMPED = ("class_name", "base_model", "augment_model", *_CONSTRUCTOR)
