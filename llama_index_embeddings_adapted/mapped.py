"""Room for vectors: in memory, or in a file without a name that the system pages in and out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from llama_index_embeddings_adapted.errors import CacheError
from llama_index_embeddings_adapted.vectors import Vectors

MOST_IN_MEMORY = 256 * 2**20  # bytes


def _reserve(file: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)  # a disk that is full is an error here, not a crash later
    else:
        os.truncate(file, size)


def empty_vectors(shape: tuple[int, int], folder: Path | None) -> Vectors:
    """Return a float32 matrix to be filled.

    Args:
        shape: Of the matrix.
        folder: Where the file of a matrix of more than 256 MiB goes; None for memory in any case.
            The file has no name, so that nothing is left of it, also after a kill.

    Raises:
        CacheError: No room in the folder.
    """
    size = 4 * shape[0] * shape[1]
    if folder is None or size <= MOST_IN_MEMORY:
        return np.empty(shape, dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            _reserve(stream.fileno(), size)
            return np.memmap(stream, dtype=np.float32, mode="r+", shape=shape)
    except OSError as cause:
        raise CacheError(
            f"{folder}: expected room for {size / 2**20:,.0f} MiB of vectors ({cause.strerror}). "
            "Free some space, or pass another cache_dir."
        ) from cause
