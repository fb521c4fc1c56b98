"""The saved folder of a composed model: a sentence-transformers folder, and what it belongs to."""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from safetensors import SafetensorError

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted import store
from llama_index_embeddings_adapted.base_model import base_name, fingerprint_of
from llama_index_embeddings_adapted.card import scores_table
from llama_index_embeddings_adapted.composition import check_weight
from llama_index_embeddings_adapted.errors import DiskError, FolderError, OptionError, examples
from llama_index_embeddings_adapted.files import atomic_folder
from llama_index_embeddings_adapted.fingerprint import Fingerprint
from llama_index_embeddings_adapted.small_model import (
    load_sentence_transformer,
    no_bars,
    refuse_code,
)

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
        store.verify(self.fingerprint, model, where=where)


def check_target(folder: Path) -> None:
    """Check that a folder can be written, before the work whose result it is to hold.

    Raises:
        FolderError: It exists and holds something else.
    """
    folders.check_target(folder, _OURS)


def check_small_target(folder: Path) -> None:
    """Check that a folder may be replaced by a small model.

    Raises:
        FolderError: It exists and holds something else than a sentence-transformers model.
    """
    model = folder.is_dir() and (folder / "modules.json").is_file()
    ours = frozenset(path.name for path in folder.iterdir()) if model else frozenset()
    folders.check_target(folder, ours)


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
            "library_version": store.library_version(),
            "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "composed": {"weight": weight, "files": _digests(temporary / SMALL)},
            "base_model": store.identity_of(base, fingerprint),
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
        store.read_fingerprint(base, arrays.get(folders.PROBES), where=folder),
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
            f"{examples(odd)}). Copy the folder again, or train again."
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
