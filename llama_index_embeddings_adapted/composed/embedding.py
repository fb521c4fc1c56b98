"""ComposedEmbedding: a frozen black box and a small model beside it, as one embed_model."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from safetensors import SafetensorError

from ..adapters import saving
from ..core import files as folders
from ..core.arrays import Role, Vectors
from ..core.files import atomic_folder
from ..encoding.base_model import Embedding, fingerprint_of
from ..encoding.serialize import base_name, describe_base
from ..errors import DiskError, FolderError, OptionError, check_number, quote_some
from ..lexical.embedding import LexicalEmbedding
from ..serving.wrapped import Loaded, ServedEmbedding, arun_steps
from .small_model import SmallModel, compose, digests, no_bars, refuse_code

SMALL = "augment_model"
PROBES = "fingerprint.safetensors"
OURS = frozenset((folders.CONFIG, folders.CARD, PROBES, SMALL))


def save_small(model: Any, folder: Path) -> None:
    """Write a small model as a standard sentence-transformers folder, safetensors only."""
    if isinstance(model, LexicalEmbedding):
        model.save_pretrained(folder)
        return
    with no_bars():
        try:
            model.save_pretrained(str(folder), create_model_card=False)
        except SafetensorError as cause:  # how it says that the disk is full
            raise DiskError(folder, OSError(errno.EIO, str(cause))) from cause


def _check_small(folder: Path, expected: object) -> None:
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder; the small model is missing.")
    refuse_code(folder)
    if not isinstance(expected, dict):
        raise FolderError(f"{folder.parent / folders.CONFIG}: no list of the small model's files.")
    actual = digests(folder)
    odd = sorted(name for name in {*actual, *expected} if actual.get(name) != expected.get(name))
    if odd:
        raise FolderError(
            f"{folder}: {len(odd)} files are missing, new or not what was saved (first: "
            f"{quote_some(odd)}). Copy the folder again, or train again."
        )


class ComposedEmbedding(ServedEmbedding):
    """Vectors of two models in one: ``e(x) = normalise([b(x) ; λ·a(x)])``.

    Documents have to be embedded with it too: an index built with the black box alone has other
    dimensions. At λ = 0 it is the black box, at its dimensions, and the small model is not asked.

    LlamaIndex's events fire once per call, with this model's ``callback_manager``. The black box's
    rate limiter, retries and ``embeddings_cache`` apply. Asynchronous calls await the black box
    while the small model computes.

    Args:
        base_embed_model: The black box: any LlamaIndex embedding model.
        augment_model: The small model: a ``SentenceTransformer``, or the name or folder of one. It
            is loaded when first needed. Or a :class:`LexicalEmbedding`: one vector has words, too.
        weight: λ, ``>= 0``.
        embed_batch_size: Texts per call to either model. This, ``callback_manager`` and
            ``num_workers`` are those of the black box by default.
        model_name: For logs.
        device: Of the small model.
        training: What is known of the training, to be saved along.

    Raises:
        OptionError: An argument of another kind, or a small model without a vector per text.

    Source: Zhang et al. 2024, arXiv:2402.12177.
    """

    weight: float = Field(default=0.5, description="λ, the say of the small model.")

    _small: SmallModel = PrivateAttr()

    _NAME: ClassVar[str] = "ComposedEmbedding"
    _MARK: ClassVar[str] = "composed"
    _STATE: ClassVar[tuple[str, ...]] = (*ServedEmbedding._STATE, "weight", "device")
    _OPTIONS: ClassVar[tuple[str, ...]] = (*ServedEmbedding._OPTIONS, "weight", "device")
    _SHOWN: ClassVar[tuple[str, ...]] = (*ServedEmbedding._SHOWN, "weight")

    def __init__(
        self,
        base_embed_model: BaseEmbedding | str,
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
        check_number("weight", weight, least=0.0)
        super().__init__(
            base_embed_model,
            "composed:",
            training=training,
            embed_batch_size=embed_batch_size,
            callback_manager=callback_manager,
            num_workers=num_workers,
            model_name=model_name,
            weight=float(weight),
        )
        self._small = SmallModel.of(augment_model, device=device)

    @property
    def augment_model(self) -> Any:
        """The small model, a ``SentenceTransformer``; loaded on first use."""
        return self._small.model

    @property
    def device(self) -> str | None:
        """Where the small model computes, as it was given."""
        return self._small.device

    async def _aembed(self, texts: list[str], role: Role) -> list[Embedding]:
        # The small model computes in a thread while the black box is awaited.
        encoding = asyncio.to_thread(self._encoded, texts, role)
        small, answers = await asyncio.gather(encoding, arun_steps(self._base_steps(texts, role)))
        return self._joined(answers, small)

    def _mapped(self, answers: list[Embedding], texts: list[str], role: Role) -> list[Embedding]:
        return self._joined(answers, self._encoded(texts, role))

    def _encoded(self, texts: list[str], role: Role) -> Vectors:
        if self.weight == 0 or not texts:
            return np.empty((len(texts), 0), dtype=np.float32)
        return self._small.encode(texts, role, batch_size=self.embed_batch_size)

    def _joined(self, answers: list[Embedding], small: Vectors) -> list[Embedding]:
        if not answers:
            return answers
        both: list[Embedding] = compose(np.array(answers, np.float32), small, self.weight).tolist()
        return both

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [*super().__repr_args__(), ("augment_model", str(self._small.source or "in memory"))]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write small model, λ, identity and card, atomically, no secrets; or a FolderError."""
        folder, base = Path(folder), self.base_embed_model
        folders.check_target_folder(folder, OURS)
        fingerprint = fingerprint_of(base)
        with atomic_folder(folder) as temporary:
            save_small(self.augment_model, temporary / SMALL)
            (temporary / PROBES).write_bytes(folders.to_bytes({folders.PROBES: fingerprint.probes}))
            config = {
                **saving.provenance(base, fingerprint),
                "composed": {"weight": self.weight, "files": digests(temporary / SMALL)},
                "training": self._training,
            }
            text = json.dumps(config, indent=2) + "\n"
            (temporary / folders.CONFIG).write_text(text, encoding="utf-8")
            about = (
                f"# A small model beside {base_name(base)}\n\n`normalise([black box ; "
                f"{self.weight:.4g} · small model])`, for queries and documents. The small model "
                f"is the sentence-transformers folder `{SMALL}/`."
            )
            card = saving.card(about, self._training, "ComposedEmbedding", folder.name)
            (temporary / folders.CARD).write_text(card, encoding="utf-8")

    @classmethod
    def _load(cls, folder: Path) -> Loaded:
        """Read a folder; the small model stays on disk until it is needed."""
        config = folders.read_config(folder)
        folders.check_version(config, folder)
        composed, base = config.get("composed"), config.get("base_model")
        if not isinstance(composed, dict) or not isinstance(base, dict):
            raise FolderError(f"{folder}: holds no composed model. Is it an adapter's folder?")
        weight: Any = composed.get("weight")
        try:
            check_number("weight", weight, least=0.0)
        except OptionError as cause:
            raise FolderError(f"{folder / folders.CONFIG}: {cause}") from cause
        _check_small(folder / SMALL, composed.get("files"))
        if not (folder / PROBES).is_file():
            raise FolderError(f"{folder}: no {PROBES}.")
        arrays = folders.read_arrays(folder / PROBES)
        training = config.get("training")
        known = training if isinstance(training, dict) else {}
        arguments = {"augment_model": folder / SMALL, "weight": float(weight), "training": known}
        fingerprint = saving.read_fingerprint(base, arrays.get(folders.PROBES), where=folder)
        return base, fingerprint, arguments

    def _described(self) -> dict[str, Any]:
        # The small model is named by its folder; one that was never saved is not in the dict. By
        # its digest a pipeline tells it from another, as of a later training into the same folder.
        source = self._small.source
        return {
            "weight": self.weight,
            "base_model": describe_base(self.base_embed_model),
            "augment_model": None if source is None else str(source),
            "augment_digest": self._small.identity,
        }

    @classmethod
    def _restore(cls, data: dict[str, Any]) -> dict[str, Any]:
        small = data.get("augment_model")
        if not isinstance(small, str):
            raise FolderError(
                "This dict of a ComposedEmbedding names no small model: it was not saved. Use "
                "save_pretrained and from_pretrained."
            )
        return {"augment_model": small}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "augment_model": self._small.source or self._small.model}

    def _shared(self) -> dict[str, Any]:
        return {**super()._shared(), "augment_model": self._small}


ComposedEmbedding.__module__ = "llama_index_embeddings_adapted"  # as that of AdaptedEmbedding
