"""A memory of answers on disk: ``memory.json`` and ``memory.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted.answers import AnswerMemory
from llama_index_embeddings_adapted.base_model import base_name, fingerprint_of
from llama_index_embeddings_adapted.errors import (
    BaseModelMismatchError,
    FolderError,
    examples,
    shorten,
)
from llama_index_embeddings_adapted.files import atomic_folder, read_json_object
from llama_index_embeddings_adapted.fingerprint import Fingerprint
from llama_index_embeddings_adapted.relevance import Relevance
from llama_index_embeddings_adapted.serialize import describe_base
from llama_index_embeddings_adapted.store import library_version
from llama_index_embeddings_adapted.vectors import as_vectors

CONFIG, ARRAYS = "memory.json", "memory.safetensors"
FORMAT_VERSION = 1


def write(
    folder: Path, memory: AnswerMemory, base: BaseEmbedding, settings: Mapping[str, Any]
) -> None:
    """Write memory, settings and the identity of the base model; atomic, without texts.

    Raises:
        FolderError: The folder exists and holds something else.
    """
    _check_folder(folder)
    fingerprint = fingerprint_of(base)
    config = {
        "format_version": FORMAT_VERSION,
        "library": "llama-index-embeddings-adapted",
        "library_version": library_version(),
        "settings": dict(settings),
        "base_model": {
            **describe_base(base),
            "name": fingerprint.name,
            "dim": fingerprint.dim,
            "fingerprint": fingerprint.digest,
        },
        "document_ids": list(memory.document_ids),
    }
    arrays: folders.Arrays = {
        "queries": memory.queries,
        "offsets": memory.answers.offsets,
        "documents": memory.answers.documents,
        "shares": memory.answers.grades,
        folders.PROBES: fingerprint.probes,
    }
    with atomic_folder(folder) as temporary:
        (temporary / ARRAYS).write_bytes(folders.to_bytes(arrays))
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], AnswerMemory, Fingerprint]:
    """Read what :func:`write` wrote.

    Raises:
        FolderError: Missing, damaged, foreign or too new.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder.")
    config = read_json_object(folder / CONFIG, error=FolderError, most=folders.MOST_CONFIG_BYTES)
    version = config.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FolderError(
            f"{folder}: saved in format {version}; this version reads up to {FORMAT_VERSION}. "
            'pip install --upgrade "llama-index-embeddings-adapted"'
        )
    if not (folder / ARRAYS).is_file():
        raise FolderError(f"{folder}: no {ARRAYS}.")
    arrays = folders.read_arrays(folder / ARRAYS)
    try:
        answers = Relevance(
            arrays["offsets"].astype(np.int64, casting="safe"),
            arrays["documents"].astype(np.int64, casting="safe"),
            arrays["shares"].astype(np.float64, casting="safe"),
        )
        ids = tuple(config["document_ids"])
        if not all(isinstance(name, str) for name in ids):
            raise TypeError("document ids that are no strings")
        memory = AnswerMemory(arrays["queries"], answers, ids)
        probes = as_vectors(arrays[folders.PROBES], what="probe vectors", dim=memory.dim)
        fingerprint = Fingerprint(str(config["base_model"]["name"]), probes)
        _ = config["settings"].keys()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as cause:
        reason = shorten(str(cause), 300)
        raise FolderError(f"{folder}: not a saved memory, or damaged ({reason}).") from cause
    return config, memory, fingerprint


def verify(model: BaseEmbedding, expected: Fingerprint, *, where: Path) -> None:
    """Refuse a model whose query vectors are not those that are remembered.

    Raises:
        BaseModelMismatchError: It is another one, or has changed.
    """
    actual = fingerprint_of(model)
    if not actual.agrees_with(expected):
        raise BaseModelMismatchError(
            f"{where} remembers query vectors of {expected.name} ({expected.dim} dimensions); the "
            f"model at hand, {base_name(model)} ({actual.dim} dimensions), gives others for the "
            "probe texts. Load the original model, or make the memory again with from_dataset."
        )


def _check_folder(folder: Path) -> None:
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    strangers = sorted(found - {CONFIG, ARRAYS})
    if strangers or (folder.exists() and not folder.is_dir()):
        raise FolderError(
            f"{folder}: expected an empty or new folder, or a saved memory; it "
            + (f"holds other files ({examples(strangers)})." if strangers else "is a file.")
        )
