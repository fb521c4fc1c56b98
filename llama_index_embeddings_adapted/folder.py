"""The saved folder: ``config.json`` and ``adapter.safetensors``; no code, no pickle.

Beside them, where it is known, ``queries.safetensors``: a sketch of the training queries, in a file
of its own because serving does not need it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from llama_index_embeddings_adapted.errors import FolderError, shorten
from llama_index_embeddings_adapted.files import atomic_folder, read_bytes, read_json_object

FORMAT_VERSION = 1
#: More is no adapter: a file that claims to be larger is not read into memory.
MOST_BYTES, MOST_CONFIG_BYTES = 4 << 30, 256 << 20
CONFIG, WEIGHTS, CARD = "config.json", "adapter.safetensors", "README.md"
QUERIES = "queries.safetensors"
#: The array beside the adapter's own: vectors that identify its base model.
PROBES = "fingerprint.probes"

# Files of llama-index-finetuning are ours to replace: its default output path is ours too.
_OURS = frozenset((CONFIG, WEIGHTS, QUERIES, CARD, "pytorch_model.bin"))

Array = NDArray[Any]
Arrays = dict[str, Array]


def write(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, Array],
    *,
    queries: Mapping[str, Array] | None = None,
    card: str = "",
) -> None:
    """Write a folder that is complete or absent; one of the same name is replaced.

    Args:
        folder: Where. A folder that holds anything but a saved adapter is not replaced.
        config: JSON-able; the format version is added.
        arrays: Weights by name.
        queries: Of the sketch of training queries, if there is one.
        card: Text of ``README.md``.

    Raises:
        FolderError: ``folder`` exists and is not a saved adapter.
    """
    check_target(folder)
    with atomic_folder(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(to_bytes(arrays))
        if queries is not None:
            (temporary / QUERIES).write_bytes(to_bytes(queries))
        text = json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Read config and weights.

    Raises:
        FolderError: A file is missing or damaged, the format is newer than this library, or a
            weight is not finite.
    """
    config = read_config(folder)
    check_version(config, folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FolderError(
            f"{folder}: no {WEIGHTS}."
            + (" It holds a ComposedEmbedding: load it with that." if "composed" in config else "")
        )
    return config, read_arrays(path)


def read_arrays(path: Path) -> Arrays:
    """Read a file in the safetensors format.

    Raises:
        FolderError: Missing, damaged, too large to be ours, or with values that are not finite.
    """
    return from_bytes(read_bytes(path, error=FolderError, most=MOST_BYTES), where=str(path))


def check_version(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config that is not ours, or of a format to come.

    Raises:
        FolderError: No format version, or one newer than this library.
    """
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FolderError(f"{folder / CONFIG}: no format_version. Is this a saved adapter?")
    if version > FORMAT_VERSION:
        raise FolderError(
            f"{folder}: saved in format {version}; this version reads up to {FORMAT_VERSION}. "
            'pip install --upgrade "llama-index-embeddings-adapted"'
        )


def read_queries(folder: Path) -> Arrays | None:
    """Read the sketch of the training queries; None where there is none.

    Raises:
        FolderError: The file is damaged.
    """
    path = folder / QUERIES
    return read_arrays(path) if path.is_file() else None


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``, of any version.

    Raises:
        FolderError: No such folder, or no JSON object in it.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder.")
    return read_json_object(folder / CONFIG, error=FolderError, most=MOST_CONFIG_BYTES)


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return arrays in the safetensors format."""
    return dump_safetensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def from_bytes(data: bytes, *, where: str) -> Arrays:
    """Parse the safetensors format.

    Raises:
        FolderError: Not safetensors, or values that are not finite.
    """
    try:
        arrays: Arrays = parse_safetensors(data)
    # Of types that numpy lacks the library says so with errors of several kinds.
    except (SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as cause:
        reason = shorten(str(cause), 300)
        raise FolderError(f"{where}: damaged or not safetensors ({reason}).") from cause
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FolderError(f'{where}: "{shorten(name)}" has NaN or infinity.')
    return arrays


def check_target(folder: Path, ours: frozenset[str] = _OURS) -> None:
    """Check that a folder can be written, before the work whose result it is to hold.

    Args:
        folder: Where.
        ours: Names that may be replaced.

    Raises:
        FolderError: It exists and holds anything else, or its place cannot be written to.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
        writable = os.access(folder.parent, os.W_OK)
    except OSError as cause:
        raise FolderError(f"{folder}: cannot be written ({cause.strerror}).") from cause
    if not writable:
        raise FolderError(f"{folder}: cannot be written (no permission for {folder.parent}).")
    strangers = sorted(found - ours)
    if strangers:
        raise FolderError(
            f"{folder}: holds other files ({', '.join(strangers[:3])}), and saving would replace "
            "them. Choose an empty or new folder."
        )
