"""ComposedEmbedding: a frozen black box and a small model beside it, as one embed_model.

The saved folder of a composed model: a sentence-transformers folder, and what it belongs to.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
from llama_index.core.callbacks import CallbackManager
from safetensors import SafetensorError

from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.adapters.saving import scores_table
from llama_index_embeddings_adapted.composed.small_model import (
    SmallModel,
    check_pooled,
    check_weight,
    compose,
    load_sentence_transformer,
    no_bars,
    refuse_code,
)
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.core.arrays import Role, Vectors
from llama_index_embeddings_adapted.core.files import atomic_folder
from llama_index_embeddings_adapted.encoding.base_model import (
    Embedding,
    Fingerprint,
    base_name,
    check_base,
    fingerprint_of,
    forget_events,
)
from llama_index_embeddings_adapted.encoding.serialize import (
    base_or_rebuilt,
    describe_base,
    taken,
    without_url_secrets,
)
from llama_index_embeddings_adapted.errors import DiskError, FolderError, OptionError, quote_some
from llama_index_embeddings_adapted.serving.base_vectors import BaseVectors
from llama_index_embeddings_adapted.serving.embedding import savable

SMALL = "augment_model"
PROBES = "fingerprint.safetensors"
_OURS = frozenset((folders.CONFIG, folders.CARD, PROBES, SMALL))


@dataclass(frozen=True, eq=False)
class SavedComposition:
    """What a folder holds.

    Args:
        augment_model: The folder of the small model.
        weight: λ.
        base: How to build the black box.
        fingerprint: Of the black box.
        training: Data, scores and settings of the training, as far as known.
    """

    augment_model: Path
    weight: float
    base: dict[str, Any]
    fingerprint: Fingerprint
    training: dict[str, Any] = field(default_factory=dict)

    def verify(self, model: BaseEmbedding, *, where: object) -> None:
        """Check that a model is the black box trained beside. Asks it for probe vectors.

        Raises:
            BaseModelMismatchError: It is not.
        """
        saving.verify(self.fingerprint, model, where=where)


def check_target(folder: Path) -> None:
    """Check that a folder can be written, before the work whose result it is to hold.

    Raises:
        FolderError: It exists and holds something else.
    """
    folders.check_target_folder(folder, _OURS)


def check_small_target(folder: Path) -> None:
    """Check that a folder may be replaced by a small model.

    Raises:
        FolderError: It exists and holds something else than a sentence-transformers model.
    """
    model = folder.is_dir() and (folder / "modules.json").is_file()
    ours = frozenset(path.name for path in folder.iterdir()) if model else frozenset()
    folders.check_target_folder(folder, ours)


def is_composed(folder: Path) -> bool:
    """Return whether a folder says that it holds a composed model."""
    return folder.is_dir() and "composed" in folders.read_config(folder)


def save(
    folder: Path,
    model: Any,
    weight: float,
    base: BaseEmbedding,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that is complete or absent; see :func:`load`.

    Raises:
        FolderError: It exists and holds something else.
    """
    check_target(folder)
    fingerprint = fingerprint_of(base)
    with atomic_folder(folder) as temporary:
        save_small(model, temporary / SMALL)
        probes = folders.to_bytes({folders.PROBES: fingerprint.probes})
        (temporary / PROBES).write_bytes(probes)
        config = {
            "format_version": folders.FORMAT_VERSION,
            "library": "llama-index-embeddings-adapted",
            "library_version": saving.library_version(),
            "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "composed": {"weight": weight, "files": _digests(temporary / SMALL)},
            "base_model": saving.identity_of(base, fingerprint),
            "training": dict(training or {}),
        }
        text = json.dumps(config, indent=2) + "\n"
        (temporary / folders.CONFIG).write_text(text, encoding="utf-8")
        card = _card(base, weight, training or {}, folder.name)
        (temporary / folders.CARD).write_text(card, encoding="utf-8")


def load(folder: Path) -> SavedComposition:
    """Read a folder; the small model stays on disk until it is needed.

    Raises:
        FolderError: Missing, damaged, foreign, changed since it was saved, newer than this library,
            or with code in it.
    """
    config = folders.read_config(folder)
    folders.check_version(config, folder)
    composed, base = config.get("composed"), config.get("base_model")
    if not isinstance(composed, dict) or not isinstance(base, dict):
        raise FolderError(f"{folder}: holds no composed model. Is it an adapter's folder?")
    weight = composed.get("weight")
    try:
        check_weight(weight)
    except OptionError as cause:
        raise FolderError(f"{folder / folders.CONFIG}: {cause}") from cause
    _check_small(folder / SMALL, composed.get("files"))
    if not (folder / PROBES).is_file():
        raise FolderError(f"{folder}: no {PROBES}.")
    arrays = folders.read_arrays(folder / PROBES)
    training = config.get("training")
    return SavedComposition(
        folder / SMALL,
        float(weight),  # type: ignore[arg-type]
        base,
        saving.read_fingerprint(base, arrays.get(folders.PROBES), where=folder),
        training if isinstance(training, dict) else {},
    )


def save_small(model: Any, folder: Path) -> None:
    """Write a small model as a standard sentence-transformers folder, safetensors only."""
    with no_bars():
        try:
            model.save_pretrained(str(folder), create_model_card=False)
        except SafetensorError as cause:  # how it says that the disk is full
            raise DiskError(folder, OSError(errno.EIO, str(cause))) from cause


def as_files(model: Any) -> dict[str, bytes]:
    """Return the files that a small model would be saved as, by relative path."""
    with tempfile.TemporaryDirectory() as name:
        save_small(model, Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


def from_files(files: Mapping[str, bytes], *, device: str | None = None) -> Any:
    """Load a small model from what :func:`as_files` returned."""
    with tempfile.TemporaryDirectory() as name:
        for relative, content in files.items():
            path = Path(name) / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return load_sentence_transformer(name, device=device)


def _check_small(folder: Path, expected: object) -> None:
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder; the small model is missing.")
    refuse_code(folder)
    if not isinstance(expected, dict):
        raise FolderError(f"{folder.parent / folders.CONFIG}: no list of the small model's files.")
    actual = _digests(folder)
    odd = sorted(name for name in {*actual, *expected} if actual.get(name) != expected.get(name))
    if odd:
        raise FolderError(
            f"{folder}: {len(odd)} files are missing, new or not what was saved (first: "
            f"{quote_some(odd)}). Copy the folder again, or train again."
        )


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _card(base: BaseEmbedding, weight: float, training: Mapping[str, Any], folder: str) -> str:
    report = training.get("report") or {}
    sections = [
        f"# A small model beside {base_name(base)}",
        f"`normalise([black box ; {weight:.4g} · small model])`, for queries and documents. The "
        f"small model is the sentence-transformers folder `{SMALL}/`.",
        scores_table(report) if report else "",
        "## Use\n\n```python\n"
        "from llama_index_embeddings_adapted import ComposedEmbedding\n\n"
        f'embed_model = ComposedEmbedding.from_pretrained("{folder}", base_embed_model)\n```\n\n'
        "Loading checks that `base_embed_model` is the black box trained beside.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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
        save(Path(folder), self.augment_model, self.weight, self.base_embed_model, self._training)

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether a folder says that it holds a composed model."""
        return is_composed(folder)

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
        saved = load(path)
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
            "augment_model": source or as_files(self._small.model),
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
            small = from_files(small, device=state["device"])
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
