"""Answers that were paid for: appended to a file the moment they arrive, found again by content.

One JSON object per line. A line is written by a single call, so a kill leaves at most a torn last
line, which is skipped on reading and closed before anything is appended. Nothing is ever rewritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.errors import GenerationError
from llama_index_embeddings_adapted.files import read_bytes

FORMAT = 1
_SYNC_EVERY_S = 1.0


@dataclass(frozen=True)
class Answer:
    """What came back from one call.

    Args:
        text: As the LLM wrote it, at most what is read of it.
        prompt_tokens: As the provider billed them, None where it did not say.
        completion_tokens: Likewise.
        seconds: How long it took.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0


class Journal:
    """The answers of one model to one way of asking.

    After a kill nothing that :meth:`put` returned from is lost; after a power cut, at most the last
    second.

    Args:
        folder: Where journals live; None keeps answers in memory only.
        settings: What, besides the text sent, an answer depends on; each has a file of its own.

    Raises:
        GenerationError: The file cannot be read or written.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._answers: dict[str, Answer] = {}
        self._handle: int | None = None
        self._synced = time.monotonic()
        self._settings = _digest(settings)
        self.path: Path | None = None
        if folder is not None:
            self.path = folder / f"questions-{FORMAT}-{self._settings[:16]}.jsonl"
            self._open(self.path)

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._answers)

    def key(self, request: object) -> str:
        """Return the key of a request: a hash of all that was sent and of the settings."""
        return _digest([self._settings, request])

    def get(self, key: str) -> Answer | None:
        """Return the answer to a request, None if there is none yet."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; when this returns it survives a kill."""
        self._answers[key] = answer
        if self._handle is None:
            return
        line = json.dumps({"key": key, **vars(answer)}) + "\n"
        with _explained(self.path):
            _write(self._handle, line.encode("ascii"))
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._handle)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Release the file."""
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None

    def _open(self, path: Path) -> None:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._handle = os.open(path, flags, 0o600)
            data = read_bytes(path, error=GenerationError)
            if data and not data.endswith(b"\n"):
                _write(self._handle, b"\n")
        for line in data.split(b"\n"):
            entry = _parse(line)
            if entry is not None:
                self._answers.setdefault(*entry)


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    """Turn errors of the file system into ours."""
    try:
        yield
    except OSError as error:
        raise GenerationError(
            f"The journal {path} cannot be used ({error.strerror}). Pass another cache_dir, or "
            "cache_dir=False to keep answers in memory only."
        ) from error


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _parse(line: bytes) -> tuple[str, Answer] | None:
    """Read a line; None for one that a kill has torn."""
    try:
        entry = json.loads(line)
        key = entry.pop("key")
        answer = Answer(**entry)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    sound = isinstance(key, str) and isinstance(answer.text, str) and _counts(answer)
    return (key, answer) if sound else None


def _counts(answer: Answer) -> bool:
    billed = (answer.prompt_tokens, answer.completion_tokens)
    return isinstance(answer.seconds, (int, float)) and all(
        tokens is None or isinstance(tokens, int) for tokens in billed
    )


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
