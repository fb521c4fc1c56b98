"""How we speak to an LLM: any of LlamaIndex's, several calls at a time, patient but not blind.

What an error of a client means: wait, skip, or give up. Clients differ; signs decide. Answers are
in SQLite the moment they arrive, found again by what was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llama_index.core.llms import LLM, ChatMessage, CustomLLM
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from ..core.files import database, read_bytes
from ..encoding.serialize import looks_secret, names_secret, without_url_secrets
from ..errors import (
    AdaptedError,
    GenerationError,
    MissingExtraError,
    OptionError,
    check_kind,
    check_whole,
    status_of,
    truncate,
)
from .answers import MOST_READ
from .local_llama import LocalLlama, one_line
from .options import GenerationOptions
from .prompts import Request

#: Pauses before another attempt double from the first to the longest, unless the server names one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_REFUSED = {
    401: "refused the key",
    402: "wants to be paid",
    403: "forbids this",
    404: "was not found",
}
_NO_KEY = re.compile(r"missing credentials|\bapi[_ -]?key\b", re.IGNORECASE)
_PERMANENT = (400, 413, 422)
_DROPPED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # reached, then lost
_HEAD_START_S = 0.02  # of the first call: a refused key is then seen before others are sent

#: Settings of LlamaIndex's LLMs that change what they write.
_DECIDING = (
    "system_prompt", "temperature", "top_p", "top_k", "seed", "max_tokens", "num_ctx", "stop",
    "stop_sequences", "repeat_penalty", "reasoning_effort", "thinking", "additional_kwargs",
    "generate_kwargs", "model_kwargs",
)  # fmt: skip
_SAYING_NOTHING = ("", "custom", "unknown")  # the names of models by default, and in guides
FILE = "answers.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
    seconds REAL NOT NULL) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)"
_KINDS: Any = (str, str, (int, type(None)), (int, type(None)), (int, float))


def fatal_reason(error: Exception, *, reached: bool) -> str | None:
    """Say why no call can succeed; None where one may, as where a server was ``reached``."""
    status = _status(error)
    if status in _REFUSED or getattr(error, "code", None) == "insufficient_quota":
        what = _REFUSED.get(status or 0, "has no quota left")
        return f"{what}: {without_secrets(error)} Check key, model name and address."
    if status is None and not reached and _NO_KEY.search(str(error)):
        return f"has no key: {without_secrets(error)} Give it one, or set its variable."
    away = any(
        (isinstance(cause, ConnectionError) and not isinstance(cause, _DROPPED))
        or type(cause).__name__ == "ConnectError"  # httpx, httpcore: never connected
        for cause in _chain(error)
    )
    if away and not reached:
        why = without_secrets(error)
        return f"cannot be reached: {why} Is the server running, and the address right?"
    return None


def without_secrets(error: BaseException) -> str:
    """Return what an error says, on one line, unless it shows a key."""
    text = " ".join(f"{type(error).__name__}: {without_url_secrets(str(error))}".split())
    return f"{type(error).__name__}." if looks_secret(text) else truncate(text, 300)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error, or what caused it, stands for."""
    return next(filter(None, map(status_of, _chain(error))), None)


def backoff_s(state: RetryCallState) -> float:
    """Return how long to wait: as the server asks, or longer each time, with some chance in it."""
    for cause in _chain(state.outcome.exception() if state.outcome else None):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        try:
            asked = float(headers.get("retry-after", ""))
        except (TypeError, ValueError, AttributeError):
            continue
        if asked >= 0:  # a server may say anything, NaN included
            return min(asked, LONGEST_PAUSE_S)
    pause = min(FIRST_PAUSE_S * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)


Told = Callable[[int, Any], None]  # is told the row of a request, and its answer or error


class LLMCalls:
    """Asks one LLM through its public methods; if not asynchronous, in turn, in a thread."""

    def __init__(self, llm: LLM, options: GenerationOptions, attempts: int) -> None:
        check_whole("retry_limit", attempts)
        check_kind("llm", llm, LLM, "a LlamaIndex LLM")
        self._llm, self._options = llm, options
        try:
            self._chat = llm.metadata.is_chat_model
        except Exception as error:  # some ask their server
            self._give_up_if_fatal(error)
            raise
        method = "achat" if self._chat else "acomplete"
        # That of CustomLLM blocks the loop. LlamaIndex wraps the methods of every class anew.
        own, blocking = (inspect.unwrap(getattr(each, method)) for each in (type(llm), CustomLLM))
        self._synchronous = own is blocking
        self._heard = False
        stop, retry = stop_after_attempt(attempts), retry_if_exception(self._may_repeat)
        self._attempts = AsyncRetrying(stop=stop, wait=backoff_s, retry=retry, reraise=True)
        self._next_start = 0.0
        self.calls = 0

    @property
    def workers(self) -> int:
        """Calls under way at once."""
        return 1 if self._synchronous else self._options.concurrency

    async def ask_all(self, requests: Sequence[Request], keep: Told, fail: Told) -> None:
        """Ask everything, a bounded number of calls at a time, or raise why no call can succeed."""
        rows = iter(range(len(requests)))

        async def work() -> None:
            for row in rows:
                try:
                    answer: CachedAnswer = await self._attempts.copy()(self._once, requests[row])
                except Exception as error:
                    self._give_up_if_fatal(error)
                    fail(row, error)
                else:
                    keep(row, answer)

        tasks: list[asyncio.Task[None]] = []
        try:
            for number in range(min(self.workers, len(requests))):
                tasks.append(asyncio.create_task(work()))
                if number == 0:
                    await asyncio.wait(tasks, timeout=_HEAD_START_S)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up_if_fatal(self, error: Exception) -> None:
        reason = fatal_reason(error, reached=False)  # this was the last attempt
        if reason is not None:
            named = getattr(self._llm, "model", getattr(self._llm, "model_name", ""))
            model = without_url_secrets(str(named))  # metadata may need the server
            raise GenerationError(
                f"{type(self._llm).__name__}({model}) {reason} What is finished is kept; the same "
                "call continues there."
            ) from error
        if isinstance(error, AdaptedError):
            raise error

    def _may_repeat(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or _status(error) in _PERMANENT:
            return False
        if isinstance(error, (OptionError, MissingExtraError)):
            return False
        return fatal_reason(error, reached=self._heard) is None

    async def _once(self, request: Request) -> CachedAnswer:
        if self._options.requests_per_minute is not None:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60.0 / self._options.requests_per_minute
            await asyncio.sleep(start - now)
        began = time.perf_counter()
        self.calls += 1
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
        task = asyncio.ensure_future(self._send(request))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._options.timeout_s)
        finally:
            task.cancel()
        if not done:
            raise TimeoutError(f"no answer within {self._options.timeout_s:g} s")
        response = task.result()
        self._heard = True
        text = str(self._text(response, request) or "")[:MOST_READ]
        return CachedAnswer(text, *_usage(response), time.perf_counter() - began)

    async def _send(self, request: Request) -> Any:
        given: Any = request.text
        name, settings = "complete", dict[str, Any](formatted=True)
        if isinstance(self._llm, LocalLlama) and request.piece is not None:
            settings |= one_line(request.piece, request.others)
            return await asyncio.to_thread(self._llm.complete, given, **settings)
        if self._chat and request.piece is None:
            turns = [ChatMessage(role=role, content=text) for role, text in request.turns]
            name, given, settings = "chat", turns, {}
        if not self._synchronous:
            try:
                return await getattr(self._llm, f"a{name}")(given, **settings)
            except NotImplementedError:
                self._synchronous = True
        return await asyncio.to_thread(getattr(self._llm, name), given, **settings)

    def _text(self, response: Any, request: Request) -> str | None:
        if request.piece is not None:  # others than ours may write on
            return str(response.text).strip().split("\n", 1)[0]
        if self._chat:
            return response.message.content  # type: ignore[no-any-return]
        # A model that completes goes on with an example of its own.
        return str(response.text).split("\nPassage:", 1)[0]


def identity(llm: LLM) -> dict[str, Any]:
    """Return what an answer of this LLM depends on, without keys and addresses."""
    settings = {name: getattr(llm, name, None) for name in _DECIDING}
    for name, value in settings.items():
        if isinstance(value, dict):
            settings[name] = {k: repr(v) for k, v in value.items() if not names_secret(str(k))}
    own = {"type": type(llm).__qualname__} if llm.metadata.model_name in _SAYING_NOTHING else {}
    if isinstance(llm, LocalLlama) and llm.path:  # names of files repeat
        own["bytes"] = str(Path(llm.path).stat().st_size) if Path(llm.path).is_file() else ""
    return {
        "class": llm.class_name(),
        **own,
        "model": llm.metadata.model_name,
        **{name: repr(value) for name, value in settings.items() if value is not None},
    }


def _usage(response: Any) -> tuple[int | None, int | None]:
    """Return the tokens billed for prompt and completion, where the provider says so."""
    raw = getattr(response, "raw", None)
    usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    get = usage.get if isinstance(usage, dict) else partial(getattr, usage)
    prompt, completion = get("prompt_tokens", None), get("completion_tokens", None)
    billed = prompt if isinstance(prompt, int) else None
    return billed, completion if isinstance(completion, int) else None


class CachedAnswer(NamedTuple):
    """What came back from one call."""

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0


class AnswerCache:
    """The answers of one model to one way of asking; a context manager.

    Processes may share a folder; without one, answers are in memory. After a kill nothing that
    :meth:`put` returned from is lost. Those of version 0.1, in a ``.jsonl`` file, are taken over.
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
            self._db = database(self.path or ":memory:", "NORMAL")
            self._db.executescript(_SCHEMA)
            if self.path is not None:
                self._import(self.path.with_name(f"questions-1-{self._settings[:16]}.jsonl"))
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def key(self, request: object) -> str:
        """Return the key of a request: a hash of all that was sent and of the settings."""
        return _digest([self._settings, request])

    def get(self, key: str) -> CachedAnswer | None:
        """Return the answer to a request, None if there is none yet."""
        with self._explained():
            row = self._db.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else CachedAnswer(*row[1:])

    def put(self, key: str, answer: CachedAnswer) -> None:
        """Keep an answer, unless it is empty; when this returns it survives a kill."""
        if not answer.text.strip():  # as during an outage
            return
        with self._explained():
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
        """Let one thread in, and turn errors of the file system and of SQLite into ours."""
        try:
            with self._lock:
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
        row = _row(entry.pop("key"), CachedAnswer(**entry))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return row if all(map(isinstance, row, _KINDS)) else None


def _row(key: str, answer: CachedAnswer) -> tuple[Any, ...]:
    # Half a surrogate is no text for SQLite, and nothing to anybody.
    return (key, answer.text.encode("utf-8", "ignore").decode("utf-8"), *answer[1:])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()
