"""Answers that were paid for: in SQLite the moment they arrive, found again by what was sent."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.files import read_bytes
from ..errors import GenerationError

FILE = "answers.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
    seconds REAL NOT NULL) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class CachedAnswer:
    """What came back from one call."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0


class AnswerCache:
    """The answers of one model to one way of asking; a context manager.

    Processes may share a folder. After a kill nothing that :meth:`put` returned from is lost; after
    a power cut, at most the last few answers. Answers that version 0.1 kept in a ``.jsonl`` file
    are taken over.

    Args:
        folder: Where answers are kept; None for memory only.
        settings: What, besides the text sent, an answer depends on.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / FILE
        self._settings = _digest(settings)
        self._lock = threading.Lock()  # answers arrive in one thread and are read in another

    def __enter__(self) -> AnswerCache:
        """Open the file, or raise a GenerationError."""
        with self._explained():
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(
                self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            if self.path is not None:
                self._import(self.path.with_name(f"questions-1-{self._settings[:16]}.jsonl"))
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __len__(self) -> int:
        """Return the number of answers in the file, whatever the settings."""
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def key(self, request: object) -> str:
        """Return the key of a request: a hash of all that was sent and of the settings."""
        return _digest([self._settings, request])

    def get(self, key: str) -> CachedAnswer | None:
        """Return the answer to a request, None if there is none yet."""
        with self._lock, self._explained():
            row = self._db.execute(
                "SELECT text, prompt_tokens, completion_tokens, seconds FROM answers WHERE key = ?",
                (key,),
            ).fetchone()
        return None if row is None else CachedAnswer(*row)

    def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer; when this returns it survives a kill."""
        with self._lock, self._explained():
            self._db.execute(_INSERT, _row(key, answer))

    def _import(self, old: Path) -> None:
        """Take over the answers of version 0.1: a JSON object per line, the last one maybe torn."""
        lines = read_bytes(old, error=GenerationError).split(b"\n") if old.is_file() else []
        rows = [entry for entry in map(_parse, lines) if entry is not None]
        if rows:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(_INSERT, rows)
            self._db.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of the file system and of SQLite into ours."""
        try:
            yield
        except (OSError, sqlite3.Error) as cause:
            reason = getattr(cause, "strerror", None) or cause
            raise GenerationError(
                f"The answers in {self.path} cannot be used ({reason}). Pass another cache_dir, or "
                "cache_dir=False to keep answers in memory only."
            ) from cause


def _parse(line: bytes) -> tuple[Any, ...] | None:
    """Return a row of the table; None for a line that a kill has torn."""
    try:
        entry = json.loads(line)
        key = entry.pop("key")
        answer = CachedAnswer(**entry)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    billed = (answer.prompt_tokens, answer.completion_tokens)
    sound = (
        isinstance(key, str)
        and isinstance(answer.text, str)
        and isinstance(answer.seconds, (int, float))
        and all(tokens is None or isinstance(tokens, int) for tokens in billed)
    )
    return _row(key, answer) if sound else None


def _row(key: str, answer: CachedAnswer) -> tuple[Any, ...]:
    # Half a surrogate is no text for SQLite, and nothing to anybody.
    text = answer.text.encode("utf-8", "ignore").decode("utf-8")
    return (key, *astuple(replace(answer, text=text)))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
