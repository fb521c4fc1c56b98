"""Saving an adapter with what it belongs to, and finding out on loading whether it still does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted import legacy
from llama_index_embeddings_adapted.adapters import Adapter, describe, restore
from llama_index_embeddings_adapted.base_model import base_name, fingerprint_of
from llama_index_embeddings_adapted.errors import (
    BaseModelMismatchError,
    FolderError,
    ShapeError,
)
from llama_index_embeddings_adapted.fingerprint import MIN_COSINE, PROBE_TEXTS, Fingerprint
from llama_index_embeddings_adapted.serialize import describe_base
from llama_index_embeddings_adapted.sketch import QuerySketch
from llama_index_embeddings_adapted.vectors import as_vectors


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds.

    Args:
        adapter: The adapter.
        base: How to build its base model, see :mod:`~llama_index_embeddings_adapted.serialize`;
            None where the folder does not say.
        fingerprint: Of that model; None likewise.
        transform_query: Whether the adapter is applied to queries.
        training: Data, scores and settings of the training, as far as known.
        sketch: What its training queries looked like; None where that was not kept.
    """

    adapter: Adapter
    base: dict[str, Any] | None = None
    fingerprint: Fingerprint | None = None
    transform_query: bool = True
    training: dict[str, Any] = field(default_factory=dict)
    sketch: QuerySketch | None = None

    def verify(self, model: BaseEmbedding, *, where: object) -> None:
        """Check that a model is the one the adapter was trained on. Asks it for probe vectors.

        Raises:
            BaseModelMismatchError: It is not.
        """
        if self.fingerprint is None:
            return
        actual = fingerprint_of(model)
        if actual.agrees_with(self.fingerprint):
            return
        if actual.dim != self.fingerprint.dim:
            found = f"gives {actual.dim} dimensions, expected {self.fingerprint.dim}"
        else:
            found = (
                f"gives other vectors for the probe texts (least cosine "
                f"{actual.cosine(self.fingerprint):.4f}, expected at least {MIN_COSINE})"
            )
        raise BaseModelMismatchError(
            f"{where} was trained on {self.fingerprint.name}; the model at hand, "
            f"{base_name(model)}, {found}. Load the original model, train again, or pass "
            "verify=False if you know better."
        )


def save(
    folder: Path,
    adapter: Adapter,
    base: BaseEmbedding,
    *,
    transform_query: bool = True,
    training: Mapping[str, Any] | None = None,
    sketch: QuerySketch | None = None,
    card: str = "",
) -> None:
    """Write a folder, atomically; see :func:`load`."""
    fingerprint = fingerprint_of(base)
    config = {
        "library": "llama-index-embeddings-adapted",
        "library_version": library_version(),
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "adapter": describe(adapter),
        "roles": ["query", "document"] if adapter.adapts_documents else ["query"],
        "transform_query": transform_query,
        "base_model": {
            **describe_base(base),
            "name": fingerprint.name,
            "dim": fingerprint.dim,
            "fingerprint": fingerprint.digest,
        },
        "training": dict(training or {}),
    }
    folders.write(
        folder,
        config,
        {**adapter.arrays(), folders.PROBES: fingerprint.probes},
        queries=None if sketch is None else sketch.arrays(),
        card=card,
    )


def load(folder: Path) -> Saved:
    """Read a folder of ours, or one of ``llama-index-finetuning``.

    Raises:
        FolderError: Missing, damaged, foreign, or newer than this library.
    """
    if legacy.is_old_folder(folder):
        return Saved(legacy.read_old_folder(folder))
    config, arrays = folders.read(folder)
    probes = arrays.pop(folders.PROBES, None)
    base = config.get("base_model")
    if base is not None and not isinstance(base, dict):
        raise FolderError(f"{folder}: base_model is not an object.")
    training = config.get("training")
    queries = folders.read_queries(folder)
    return Saved(
        restore(config.get("adapter"), arrays, where=str(folder)),
        base,
        None if base is None else _fingerprint(base, probes, where=folder),
        bool(config.get("transform_query", True)),
        training if isinstance(training, dict) else {},
        None if queries is None else QuerySketch.restore(queries, where=str(folder)),
    )


def _fingerprint(base: dict[str, Any], probes: Any, *, where: Path) -> Fingerprint:
    try:
        found = as_vectors(probes, what="probe vectors", dim=base.get("dim"))
        if len(found) != 2 * len(PROBE_TEXTS):
            raise ShapeError("probe vectors", expected=2 * len(PROBE_TEXTS), actual=len(found))
    except (TypeError, ValueError) as cause:
        raise FolderError(
            f"{where}: the vectors that identify its base model are damaged ({cause})."
        ) from cause
    return Fingerprint(str(base.get("name", "unknown")), found)


def library_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("llama-index-embeddings-adapted")
    except PackageNotFoundError:  # run from a bare checkout
        return "unknown"
