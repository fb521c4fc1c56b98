"""Base-model vectors on disk, keyed by (base model, role, text).

Vectors lie in one file of raw float32 rows per base model; SQLite holds which text is which row. A
vector is written and synced before its key is committed, so a kill at any moment loses at most the
vectors that no key points to yet, and the next writer overwrites those. SQLite's write lock makes
writers of several processes take turns; readers never wait. Texts themselves are not stored, only
their SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Literal

import numpy as np
from llama_index.core.utils import iter_batch

from ..core.arrays import Rows, Vectors, as_vectors
from ..core.files import database, llama_cache
from ..errors import AdaptedError, CacheError, ShapeError, check_kind
from .base_model import Fingerprint

CacheDir = str | Path | None | Literal[False]
FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS bases (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, dim INTEGER NOT NULL, probes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS vectors (
    base INTEGER NOT NULL, key BLOB NOT NULL, row INTEGER NOT NULL, PRIMARY KEY (base, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows ON vectors (base, row);
"""
_KEYS_PER_QUERY = 500
#: Of a damaged index: a dimension of 0, a row below 0, probes of another length.
_OF_DAMAGE = (ArithmeticError, IndexError, TypeError, ValueError)


def cache_folder(cache_dir: CacheDir) -> Path | None:
    """Return the folder that a ``cache_dir`` stands for, created; None for memory only."""
    if cache_dir is False:
        return None
    check_kind("cache_dir", cache_dir, (str, os.PathLike, NoneType), "a folder, None or False")
    folder = llama_cache() / "embeddings_adapted" if cache_dir is None else Path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise CacheError(
            f"The cache folder {folder} cannot be created ({cause.strerror}). Pass another "
            "cache_dir, or cache_dir=False to keep vectors in memory."
        ) from cause
    return folder


class VectorCache:
    """Vectors of one base model, in memory or in a folder shared by many models and processes.

    ``folder`` is None for memory only. A ``base`` whose name and probe vectors (within float noise)
    are those of a model already in the folder shares its vectors; any other, also a changed model
    behind the same name, has its own. A CacheError where the folder belongs to another version, is
    damaged, or cannot be written.
    """

    def __init__(self, folder: Path | None, base: Fingerprint) -> None:
        self._base, self._memory = base, io.BytesIO()
        self._file: Path | None = None
        folder = cache_folder(False if folder is None else folder)
        self._where = ":memory:" if folder is None else str(folder / "vectors.sqlite")
        # Callers may encode from worker threads; each call holds the connection alone.
        self._lock = threading.RLock()
        with self._guard():
            self._db = database(self._where, "FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, FORMAT):
                raise CacheError(
                    f"{self._where}: cache format {version}, this version reads {FORMAT}. "
                    "Pass another cache_dir, or delete the folder."
                )
            with self._write():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={FORMAT}")
                self._id = self._register()
            if folder is not None:
                self._file = folder / f"{self._id}.f32"
                size, needed = self._file_size(), self._rows_in_index() * base.dim * 4
                if size < needed:
                    raise CacheError(
                        f"{self._file}: expected at least {needed} bytes for the texts in the "
                        f"index, found {size}. The file was cut; delete the folder {folder} and "
                        "encode again."
                    )

    def get(self, role: str, texts: Sequence[str]) -> tuple[Rows, Vectors]:
        """Return the rows of texts that are known, ascending, ``(k,)``, and their vectors."""
        keys = [_key(role, text) for text in texts]
        with self._guard():
            rows = self._rows(keys)
            positions = np.array([i for i, key in enumerate(keys) if key in rows], dtype=np.int64)
            vectors = self._read(np.array([rows[keys[i]] for i in positions], dtype=np.int64))
            if not np.isfinite(vectors).all():
                raise CacheError(
                    f"{self._file}: holds NaN or infinity, which was never written there: the file "
                    "is damaged. Delete the folder and encode again."
                )
            return positions, vectors

    def missing(self, role: str, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts that are not known, in their order."""
        keys = {text: _key(role, text) for text in texts}
        with self._guard():
            rows = self._rows([*keys.values()])
        return [text for text, key in keys.items() if key not in rows]

    def put(self, role: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep a finite vector per text that has none; when this returns they survive a kill."""
        if not texts:
            return
        vectors = as_vectors(vectors, what="Vectors to keep", dim=self._base.dim)
        if len(vectors) != len(texts):
            raise ShapeError("Vectors to keep", expected=f"{len(texts)}", actual=len(vectors))
        with self._guard(), self._write():
            first = self._rows_in_index()
            self._append(first, vectors)
            rows = [(self._id, _key(role, text), first + i) for i, text in enumerate(texts)]
            self._db.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)

    def forget(self, role: str, texts: Sequence[str]) -> None:
        """Drop the vectors of texts, known or not; their space is not reclaimed."""
        keys = [(self._id, _key(role, text)) for text in texts]
        with self._guard(), self._write():
            self._db.executemany("DELETE FROM vectors WHERE base = ? AND key = ?", keys)

    def close(self) -> None:
        """Release the files."""
        self._db.close()

    def _rows(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        rows: dict[bytes, int] = {}
        for part in iter_batch(keys, _KEYS_PER_QUERY):
            marks = ",".join("?" * len(part))
            query = f"SELECT key, row FROM vectors WHERE base = ? AND key IN ({marks})"
            rows.update(self._db.execute(query, (self._id, *part)))
        return rows

    def _rows_in_index(self) -> int:
        query = "SELECT max(row) FROM vectors WHERE base = ?"
        last = self._db.execute(query, (self._id,)).fetchone()[0]
        return 0 if last is None else int(last) + 1

    def _append(self, first: int, vectors: Vectors) -> None:
        content = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        if self._file is None:
            self._memory.seek(first * self._base.dim * 4)
            self._memory.write(content)
            return
        with self._file.open("r+b" if self._file.exists() else "w+b") as stream:
            stream.seek(first * self._base.dim * 4)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self, rows: Rows) -> Vectors:
        if not len(rows):
            return np.empty((0, self._base.dim), dtype=np.float32)
        if rows.min() < 0:  # which would be counted from the end
            raise IndexError("the index names a row below 0")
        if self._file is None:
            stored = np.frombuffer(self._memory.getbuffer(), dtype="<f4")
        else:
            stored = np.memmap(self._file, dtype="<f4", mode="r", shape=self._file_size() // 4)
        whole = len(stored) // self._base.dim * self._base.dim  # a torn last row is nobody's
        return np.asarray(stored[:whole].reshape(-1, self._base.dim)[rows], dtype=np.float32)

    def _register(self) -> int:
        known = self._db.execute("SELECT id, name, dim, probes FROM bases ORDER BY id")
        for number, name, dim, probes in known.fetchall():
            stored = np.frombuffer(probes, dtype="<f4").reshape(-1, dim)
            if name == self._base.name and self._base.agrees_with(Fingerprint(name, stored)):
                return int(number)
        cursor = self._db.execute(
            "INSERT INTO bases (name, dim, probes) VALUES (?, ?, ?)",
            (self._base.name, self._base.dim, self._base.probes.astype("<f4").tobytes()),
        )
        return int(cursor.lastrowid or 0)

    def _file_size(self) -> int:
        return self._file.stat().st_size if self._file is not None and self._file.exists() else 0

    @contextmanager
    def _write(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:  # commits, or rolls back
            yield

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError, *_OF_DAMAGE) as cause:
            if isinstance(cause, AdaptedError):
                raise
            raise CacheError(
                f"The vector cache {self._where} cannot be used ({cause}). Free some space, pass "
                "another cache_dir, or cache_dir=False to keep vectors in memory."
            ) from cause


def _key(role: str, text: str) -> bytes:
    return hashlib.sha256(f"{role}\0{text}".encode("utf-8", "surrogatepass")).digest()
