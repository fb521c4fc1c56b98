"""The small model beside a black box; loading it runs no code of its folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llama_index_embeddings_adapted.errors import EncodeError, FolderError, OptionError, need
from llama_index_embeddings_adapted.files import read_json, read_json_object
from llama_index_embeddings_adapted.vectors import Role, Vectors

_MODULES = "modules.json"
_CONFIGS = ("config.json", "tokenizer_config.json")
_OURS = "sentence_transformers."
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class SmallModel:
    """Embeds texts with a sentence-transformers model, loaded when first needed.

    Args:
        model: A loaded model, or the name or folder of one.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
    """

    def __init__(self, model: Any, *, device: str | None = None) -> None:
        self.source = model if isinstance(model, (str, Path)) else None
        self._model = None if self.source is not None else model
        self._device = device
        self._lock = threading.Lock()  # tokenizers and modules are not safe in threads

    @property
    def model(self) -> Any:
        """The ``SentenceTransformer``.

        Raises:
            OptionError: It gives no vector per text.
            FolderError: Its folder asks for code or pickles to be loaded.
        """
        with self._lock:
            if self._model is None:
                self._model = load_sentence_transformer(self.source, device=self._device)
            return self._model

    @property
    def dim(self) -> int:
        """The dimension of its vectors."""
        return int(self.model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int = 32) -> Vectors:
        """Embed texts with the prompt of their role, ``(len(texts), dim)``, of any length.

        Raises:
            EncodeError: A vector with NaN or infinity.
        """
        model = self.model
        encode = model.encode_query if role == "query" else model.encode_document
        with self._lock:
            found = encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        vectors: Vectors = np.asarray(found, dtype=np.float32).reshape(len(texts), -1)
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodeError(
                "The small model gave a vector with NaN or infinity.",
                text=texts[int(bad.argmax())],
            )
        return vectors


def load_sentence_transformer(source: Any, *, device: str | None = None) -> Any:
    """Load a model by name or folder, without executing anything that a folder holds.

    Raises:
        OptionError: It cannot be loaded, or gives no vector per text.
        FolderError: Its folder asks for code or pickles to be loaded.
    """
    library = need("sentence_transformers", extra="composed")
    path = Path(source)
    local = path.is_dir()
    if local:
        refuse_code(path)
    try:
        with no_bars():
            model = library.SentenceTransformer(
                str(source), device=device, trust_remote_code=False, local_files_only=local
            )
    except Exception as cause:  # the library and the hub raise what they like
        raise OptionError(
            f"augment_model: no sentence-transformers model could be loaded from {source!s} "
            f"({type(cause).__name__}: {cause})."
        ) from cause
    return check_pooled(model)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for the files of a small model, which take no time."""
    logging = need("transformers", extra="composed").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_pooled(model: Any) -> Any:
    """Return a model that gives one vector per text.

    Raises:
        OptionError: It has no pooling layer, or is no sentence-transformers model.
    """
    try:
        found = np.asarray(model.encode(["one text"], show_progress_bar=False), dtype=np.float32)
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise OptionError(
            "augment_model: expected a sentence-transformers model that gives one vector per text, "
            f"got {type(model).__name__} that gives none ({type(cause).__name__}: {cause}). Has it "
            "a pooling layer?"
        ) from cause
    if found.ndim != 2 or found.shape[0] != 1:
        raise OptionError(
            f"augment_model: expected one vector per text, got shape {found.shape}. Has it a "
            "pooling layer?"
        )
    return model


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that names code of its own, paths outside itself, or pickles.

    Raises:
        FolderError: The first such thing found.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not _inside(path, folder):
            raise FolderError(f"{path}: points outside its folder, or nowhere.")
        if path.suffix == ".json":
            _refuse_code_in(path)
        if path.suffix in _PICKLES and not _safe_weights_beside(path):
            raise FolderError(
                f"{path}: weights that may run code when loaded. Save the model as safetensors."
            )


def _inside(link: Path, folder: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def _refuse_code_in(path: Path) -> None:
    if path.name == _MODULES:
        for module in _modules(path):
            kind, place = str(module.get("type")), Path(str(module.get("path", "")))
            if not kind.startswith(_OURS):
                raise FolderError(f"{path}: asks for the code of {kind}, which is not loaded.")
            if place.is_absolute() or ".." in place.parts:
                raise FolderError(f"{path}: points outside its folder ({place}).")
    elif path.name in _CONFIGS and "auto_map" in read_json_object(path, error=FolderError):
        raise FolderError(f"{path}: asks for code of its own (auto_map), which is not loaded.")


def _modules(path: Path) -> list[dict[str, Any]]:
    found = read_json(path, error=FolderError)
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise FolderError(f"{path}: expected a list of modules.")
    return found


def _safe_weights_beside(path: Path) -> bool:
    return path.name == "training_args.bin" or (path.parent / "model.safetensors").is_file()
