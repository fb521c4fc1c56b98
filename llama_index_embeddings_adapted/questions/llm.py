"""How we speak to an LLM: any of LlamaIndex's, several calls at a time, patient but not blind.

What an error of a client means: wait, skip, or give up. Clients differ; signs decide.

Answers that were paid for: in SQLite the moment they arrive, found again by what was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core.llms import LLM, ChatMessage, CustomLLM
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from ..core.files import read_bytes
from ..encoding.serialize import looks_secret, names_secret, without_url_secrets
from ..errors import GenerationError, OptionError, check_whole, status_of, truncate
from .answers import MOST_READ
from .local_llama import LocalLlama, one_line
from .prompts import Request

#: Pauses before another attempt double from the first to the longest, unless the server names one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_REFUSED = {
    401: "refused the key",
    402: "wants to be paid",
    403: "forbids this",
    404: "was not found",
}
_PERMANENT = (400, 413, 422)
_DROPPED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # reached, then lost


def fatal_reason(error: Exception, *, reached: bool) -> str | None:
    """Say why no call can succeed, and what to do; None where another one may.

    A server that was ``reached`` before may be away for a moment only.
    """
    status = _status(error)
    if status in _REFUSED or getattr(error, "code", None) == "insufficient_quota":
        what = _REFUSED.get(status or 0, "has no quota left")
        return f"{what}: {without_secrets(error)} Check key, model name and address."
    if _is_unreachable(error) and not reached:
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


def _is_unreachable(error: Exception) -> bool:
    return any(
        (isinstance(cause, ConnectionError) and not isinstance(cause, _DROPPED))
        or type(cause).__name__ == "ConnectError"  # httpx, httpcore: never connected
        for cause in _chain(error)
    )


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


_HEAD_START_S = 0.02  # of the first call: a refused key is then seen before others are sent

#: Settings of LlamaIndex's LLMs that change what they write.
_DECIDING = (
    "system_prompt", "temperature", "top_p", "top_k", "seed", "max_tokens", "num_ctx", "stop",
    "stop_sequences", "repeat_penalty", "reasoning_effort", "thinking", "additional_kwargs",
    "generate_kwargs", "model_kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class RetryPolicy:
    """How hard to try.

    Args:
        attempts: Per call, ``>= 1``.
        concurrency: Calls under way at once, ``>= 1``.
        requests_per_minute: None for as many as the server takes.
        timeout_s: After which a call counts as failed; None for never.

    Raises:
        OptionError: A value out of range.
    """

    attempts: int = 3
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float | None = 300.0

    def __post_init__(self) -> None:
        check_whole("retry_limit", self.attempts)
        check_whole("concurrency", self.concurrency)
        for name in ("requests_per_minute", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}: expected a number > 0 or None, got {value!r}.")


class LLMCalls:
    """Asks one LLM, through its public methods, so that its events and rate limiter apply.

    Chat models get turns, others one text. An LLM without an asynchronous path of its own is asked
    one call at a time, in a thread.
    """

    def __init__(self, llm: LLM, policy: RetryPolicy) -> None:
        if not isinstance(llm, LLM):
            raise OptionError(f"llm: expected a LlamaIndex LLM, got {type(llm).__name__}.")
        self._llm = llm
        self._policy = policy
        self._chat = llm.metadata.is_chat_model
        self._synchronous = _is_synchronous(llm, self._chat)
        self._heard = False
        self._attempts = AsyncRetrying(
            stop=stop_after_attempt(policy.attempts),
            wait=backoff_s,
            retry=retry_if_exception(self._may_repeat),
            reraise=True,
        )
        self._next_start = 0.0
        self.calls = 0

    @property
    def name(self) -> str:
        """Class and model, for messages."""
        return f"{type(self._llm).__name__}({without_url_secrets(self._llm.metadata.model_name)})"

    @property
    def workers(self) -> int:
        """Calls under way at once."""
        return 1 if self._synchronous else self._policy.concurrency

    async def ask_all(
        self,
        requests: Sequence[Request],
        keep: Callable[[int, CachedAnswer], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        """Ask everything, a bounded number of calls at a time, or raise why no call can succeed."""
        rows = iter(range(len(requests)))
        workers = min(self.workers, len(requests))
        tasks: list[asyncio.Task[None]] = []
        try:
            for number in range(workers):
                tasks.append(asyncio.create_task(self._work(rows, requests, keep, fail)))
                if number == 0:
                    await asyncio.wait(tasks, timeout=_HEAD_START_S)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(
        self,
        rows: Iterator[int],
        requests: Sequence[Request],
        keep: Callable[[int, CachedAnswer], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        for row in rows:
            try:
                answer = await self._patiently(requests[row])
            except GenerationError:
                raise
            except Exception as error:
                fail(row, error)
            else:
                keep(row, answer)

    async def _patiently(self, request: Request) -> CachedAnswer:
        try:
            return await self._attempts.copy()(self._once, request)
        except Exception as error:
            self._give_up_if_fatal(error)
            raise

    def _may_repeat(self, error: BaseException) -> bool:
        return (
            isinstance(error, Exception)
            and _status(error) not in _PERMANENT
            and fatal_reason(error, reached=self._heard) is None
        )

    async def _once(self, request: Request) -> CachedAnswer:
        await self._turn()
        began = time.perf_counter()
        self.calls += 1
        response = await self._in_time(self._send(request))
        self._heard = True
        text = str(self._text(response, request) or "")[:MOST_READ]
        prompt, completion = _usage(response)
        return CachedAnswer(text, prompt, completion, time.perf_counter() - began)

    async def _in_time(self, call: Coroutine[Any, Any, Any]) -> Any:
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
        task = asyncio.ensure_future(call)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._policy.timeout_s)
        finally:
            task.cancel()
        if not done:
            raise TimeoutError(f"no answer within {self._policy.timeout_s:g} s")
        return task.result()

    async def _send(self, request: Request) -> Any:
        if isinstance(self._llm, LocalLlama) and request.piece is not None:
            settings = {"formatted": True, **one_line(request.piece, request.others)}
            return await asyncio.to_thread(self._llm.complete, request.text, **settings)
        if not self._synchronous:
            try:
                return await self._asynchronous(request)
            except NotImplementedError:
                self._synchronous = True
        return await asyncio.to_thread(self._in_thread, request)

    def _asynchronous(self, request: Request) -> Awaitable[Any]:
        if self._chat and request.piece is None:
            return self._llm.achat(_messages(request))
        return self._llm.acomplete(request.text, formatted=True)

    def _in_thread(self, request: Request) -> Any:
        if self._chat and request.piece is None:
            return self._llm.chat(_messages(request))
        return self._llm.complete(request.text, formatted=True)

    def _text(self, response: Any, request: Request) -> str | None:
        if request.piece is not None:  # others than ours may write on
            return str(response.text).strip().split("\n", 1)[0]
        if self._chat:
            return response.message.content  # type: ignore[no-any-return]
        # A model that completes goes on with an example of its own.
        return str(response.text).split("\nPassage:", 1)[0]

    async def _turn(self) -> None:
        """Wait for our turn where the calls per minute are limited."""
        if self._policy.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60.0 / self._policy.requests_per_minute
        await asyncio.sleep(start - now)

    def _give_up_if_fatal(self, error: Exception) -> None:
        reason = fatal_reason(error, reached=False)  # this was the last attempt
        if reason is not None:
            raise GenerationError(
                f"{self.name} {reason} What is finished is kept; the same call continues there."
            ) from error


def identity(llm: LLM) -> dict[str, Any]:
    """Return what an answer of this LLM depends on, without keys and addresses."""
    settings = {name: getattr(llm, name, None) for name in _DECIDING}
    for name, value in settings.items():
        if isinstance(value, dict):
            settings[name] = {k: repr(v) for k, v in value.items() if not names_secret(str(k))}
    return {
        "class": llm.class_name(),
        "model": llm.metadata.model_name,
        **{name: repr(value) for name, value in settings.items() if value is not None},
    }


def _messages(request: Request) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=text) for role, text in request.turns]


def _is_synchronous(llm: LLM, chat: bool) -> bool:
    """Return whether the asynchronous method is that of CustomLLM, which blocks the loop."""
    name = "achat" if chat else "acomplete"
    # LlamaIndex wraps the methods of every class anew.
    return inspect.unwrap(getattr(type(llm), name)) is inspect.unwrap(getattr(CustomLLM, name))


def _usage(response: Any) -> tuple[int | None, ...]:
    """Return the tokens billed for prompt and completion, where the provider says so."""
    raw = getattr(response, "raw", None)
    usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    get = usage.get if isinstance(usage, dict) else partial(getattr, usage)
    found = (get(name, None) for name in ("prompt_tokens", "completion_tokens"))
    return tuple(value if isinstance(value, int) else None for value in found)


# --- answers that are kept ------------------------------------------------------------------------

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
    are taken over. Without a folder they are kept in memory only.
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

    def __exit__(self, *_: object) -> None:
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
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()
