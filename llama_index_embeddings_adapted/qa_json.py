"""The JSON of ``EmbeddingQAFinetuneDataset``: that of the old class, and what ours adds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted import files
from llama_index_embeddings_adapted.errors import DatasetError, examples

_OBJECTS = ("queries", "corpus", "relevant_docs")
_OLD = (*_OBJECTS, "mode")
_ADDED = ("grades", "hard_negatives")


def write(path: Path, dataset: Mapping[str, Any]) -> None:
    """Write the fields of a dataset, atomically; what ours adds only where there is any."""
    added = {key: dataset[key] for key in _ADDED if dataset[key] is not None}
    files.write_json(path, {key: dataset[key] for key in _OLD} | added)


def read(path: Path) -> dict[str, Any]:
    """Read the fields of a dataset.

    Raises:
        DatasetError: Not JSON, or JSON of another shape.
    """
    data = files.read_json_object(path, error=DatasetError)
    missing = [key for key in _OBJECTS if not isinstance(data.get(key), dict)]
    unknown = sorted(set(data) - {*_OLD, *_ADDED})
    if not isinstance(data.get("mode", "text"), str):
        raise DatasetError(f"{path}: mode: expected a string, got {type(data['mode']).__name__}.")
    if missing or unknown:
        raise DatasetError(
            f"{path}: expected an object with the objects {examples(_OBJECTS)}; "
            + (f"missing or not an object: {examples(missing)}. " if missing else "")
            + (f"Unknown keys: {examples(unknown)}." if unknown else "")
        )
    return data
