"""How we speak to an LLM: any of LlamaIndex's, several calls at a time, patient but not blind.

What an error of an LLM client means: wait, skip, or give up. Clients differ; signs decide.

Answers that were paid for: appended to a file the moment they arrive, found again by content.

One JSON object per line. A line is written by a single call, so a kill leaves at most a torn last
line, which is skipped on reading and closed before anything is appended. Nothing is ever rewritten.

The LLM is asked by actors of Ray, each with the same loop; answers come back to be kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.llms import LLM, ChatMessage, CustomLLM

from llama_index_embeddings_adapted.core.files import read_bytes
from llama_index_embeddings_adapted.encoding import base_model
from llama_index_embeddings_adapted.encoding.corpus import Batch, packed, results, unpacked
from llama_index_embeddings_adapted.encoding.serialize import (
    looks_secret,
    names_secret,
    without_url_secrets,
)
from llama_index_embeddings_adapted.errors import (
    GenerationError,
    OptionError,
    require_extra,
    truncate,
)
from llama_index_embeddings_adapted.questions.prompts import MOST_READ, Request

#: Pauses before another attempt double from the first to the longest, unless the server names one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_REFUSED = {
    401: "refused the key",
    402: "wants to be paid",
    403: "forbids this",
    404: "was not found",
}
_USELESS_TO_REPEAT = (400, 413, 422)
_DROPPED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # reached, then lost


def hopeless(error: Exception, *, reached: bool) -> str | None:
    """Say why no call can succeed, and what to do; None where another one may.

    Args:
        error: What a call raised.
        reached: Whether the server answered before, so that it may be away for a moment only.
    """
    status = _status(error)
    if status in _REFUSED or getattr(error, "code", None) == "insufficient_quota":
        what = _REFUSED.get(status or 0, "has no quota left")
        return f"{what}: {without_secrets(error)} Check key, model name and address."
    if _is_unreachable(error) and not reached:
        why = without_secrets(error)
        return f"cannot be reached: {why} Is the server running, and the address right?"
    return None


def useless_to_repeat(error: Exception) -> bool:
    """Return whether the server will refuse the same request again, whatever it is."""
    return _status(error) in _USELESS_TO_REPEAT


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
    """Return the HTTP status that an error stands for, as the usual clients name it."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        for holder, name in ((cause, "status_code"), (response, "status_code"), (cause, "status")):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _is_unreachable(error: Exception) -> bool:
    return any(
        (isinstance(cause, ConnectionError) and not isinstance(cause, _DROPPED))
        or type(cause).__name__ == "ConnectError"  # httpx, httpcore: never connected
        for cause in _chain(error)
    )


def pause_s(error: Exception, attempt: int) -> float:
    """Return how long to wait: as the server asks, or longer each time, with some chance in it."""
    for cause in _chain(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        try:
            asked = float(headers.get("retry-after", ""))
        except (TypeError, ValueError, AttributeError):
            continue
        if asked >= 0:  # a server may say anything, NaN included
            return min(asked, LONGEST_PAUSE_S)
    pause = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)


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


_HEAD_START_S = 0.02  # of the first call: a refused key is then seen before others are sent

#: Settings of LlamaIndex's LLMs that change what they write.
_DECIDING = (
    "system_prompt", "temperature", "top_p", "top_k", "seed", "max_tokens", "num_ctx", "stop",
    "stop_sequences", "repeat_penalty", "reasoning_effort", "thinking", "additional_kwargs",
    "generate_kwargs", "model_kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class Patience:
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
        for shown, value in (("retry_limit", self.attempts), ("concurrency", self.concurrency)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{shown}: expected a whole number >= 1, got {value!r}.")
        for name in ("requests_per_minute", "timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"{name}: expected a number > 0 or None, got {value!r}.")


class LLMCalls:
    """Asks one LLM, through its public methods, so that its events and rate limiter apply.

    Chat models get turns, others one text. An LLM without an asynchronous path of its own is asked
    one call at a time, in a thread.

    Args:
        llm: Any LlamaIndex LLM.
        patience: How hard to try.
    """

    def __init__(self, llm: LLM, patience: Patience) -> None:
        if not isinstance(llm, LLM):
            raise OptionError(f"llm: expected a LlamaIndex LLM, got {type(llm).__name__}.")
        self._llm = llm
        self._patience = patience
        self._chat = llm.metadata.is_chat_model
        self._synchronous = _is_synchronous(llm, self._chat)
        self._heard = False
        self._next_start = 0.0
        self.calls = 0

    @property
    def name(self) -> str:
        """Class and model, for messages."""
        return f"{type(self._llm).__name__}({without_url_secrets(self._llm.metadata.model_name)})"

    async def ask_all(
        self,
        requests: Sequence[Request],
        keep: Callable[[int, Answer], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        """Ask everything, a bounded number of calls at a time.

        Args:
            requests: What to ask.
            keep: Called with row and answer as soon as it is there.
            fail: Called with row and error when the attempts for a request are used up.

        Raises:
            GenerationError: No call can succeed: the key is refused, the model does not exist, the
                server cannot be reached.
        """
        rows = iter(range(len(requests)))
        workers = 1 if self._synchronous else min(self._patience.concurrency, len(requests))
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
        keep: Callable[[int, Answer], None],
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

    async def _patiently(self, request: Request) -> Answer:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(request)
            except Exception as error:
                last = attempt >= self._patience.attempts or useless_to_repeat(error)
                self._give_up_if_hopeless(error, last=last)
                if last:
                    raise
                await asyncio.sleep(pause_s(error, attempt))

    async def _once(self, request: Request) -> Answer:
        await self._turn()
        began = time.perf_counter()
        self.calls += 1
        response = await self._in_time(self._send(request))
        self._heard = True
        text = str(self._text(response) or "")[:MOST_READ]
        prompt, completion = _usage(response)
        return Answer(text, prompt, completion, time.perf_counter() - began)

    async def _in_time(self, call: Coroutine[Any, Any, Any]) -> Any:
        # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation.
        task = asyncio.ensure_future(call)
        try:
            done, _ = await asyncio.wait({task}, timeout=self._patience.timeout_s)
        finally:
            task.cancel()
        if not done:
            raise TimeoutError(f"no answer within {self._patience.timeout_s:g} s")
        return task.result()

    async def _send(self, request: Request) -> Any:
        if not self._synchronous:
            try:
                return await self._asynchronous(request)
            except NotImplementedError:
                self._synchronous = True
        return await asyncio.to_thread(self._in_thread, request)

    def _asynchronous(self, request: Request) -> Awaitable[Any]:
        if self._chat:
            return self._llm.achat(_messages(request))
        return self._llm.acomplete(request.text, formatted=True)

    def _in_thread(self, request: Request) -> Any:
        if self._chat:
            return self._llm.chat(_messages(request))
        return self._llm.complete(request.text, formatted=True)

    def _text(self, response: Any) -> str | None:
        if self._chat:
            return response.message.content  # type: ignore[no-any-return]
        # A model that completes goes on with an example of its own.
        return str(response.text).split("\nPassage:", 1)[0]

    async def _turn(self) -> None:
        """Wait for our turn where the calls per minute are limited."""
        if self._patience.requests_per_minute is None:
            return
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60.0 / self._patience.requests_per_minute
        await asyncio.sleep(start - now)

    def _give_up_if_hopeless(self, error: Exception, *, last: bool) -> None:
        told = hopeless(error, reached=self._heard and not last)
        if told is None:
            return
        raise GenerationError(
            f"{self.name} {told} What is finished is kept; the same call continues there."
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
    return getattr(type(llm), name, None) is getattr(CustomLLM, name)


def _usage(response: Any) -> tuple[int | None, int | None]:
    """Return the tokens billed for prompt and completion, where the provider says so."""
    raw = getattr(response, "raw", None)
    usage = raw.get("usage") if isinstance(raw, dict) else getattr(raw, "usage", None)
    found: list[int | None] = []
    for name in ("prompt_tokens", "completion_tokens"):
        value = usage.get(name) if isinstance(usage, dict) else getattr(usage, name, None)
        found.append(value if isinstance(value, int) else None)
    return found[0], found[1]


_ROUNDS = 8  # of calls under way at once that make up a piece


class RayLLMCalls:
    """Asks one LLM through actors; a drop-in for :class:`LLMCalls`.

    Args:
        llm: Any LlamaIndex LLM that can be pickled. Its key goes to the actors with it.
        patience: How hard each actor tries; the calls per minute are shared out among them.
        actors: How many.

    Raises:
        OptionError: The LLM cannot be pickled.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, llm: LLM, patience: Patience, actors: int) -> None:
        LLMCalls(llm, patience)  # refuses what is no LLM
        rate = patience.requests_per_minute
        share = None if rate is None else rate / actors
        require_extra("ray.data", extra="ray")
        self._patience = replace(patience, requests_per_minute=share)
        self._llm, self._actors = packed(llm), actors
        self.calls = 0

    async def ask_all(
        self,
        requests: Sequence[Request],
        keep: Callable[[int, Answer], None],
        fail: Callable[[int, Exception], None],
    ) -> None:
        """Ask everything; see :meth:`LLMCalls.ask_all`.

        Raises:
            GenerationError: No call can succeed, or Ray cannot go on.
        """
        pieces = self._answers(requests)
        try:
            # Waiting for actors blocks: in a thread, so that the caller's event loop lives on.
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                self.calls += int(sum(piece["calls"]))
                sort_out(piece, keep, fail)
        finally:
            with contextlib.suppress(ValueError):  # a wait that was cancelled is still under way
                pieces.close()

    def _answers(self, requests: Sequence[Request]) -> Generator[Batch]:
        arrow = require_extra("pyarrow", extra="ray")
        size = _ROUNDS * self._patience.concurrency
        tables = []
        for start in range(0, len(requests), size):
            piece = [json.dumps(asdict(request)) for request in requests[start : start + size]]
            rows = range(start, start + len(piece))
            tables.append(arrow.table({"row": rows, "request": piece}))
        arguments = {"llm": self._llm, "patience": self._patience}
        yield from results(tables, QuestionActor, arguments, self._actors, error=GenerationError)


class QuestionActor:
    """Lives in a Ray worker with an LLM of its own; arguments are those of the caller."""

    def __init__(self, llm: bytes, patience: Patience) -> None:
        self._calls = LLMCalls(unpacked(llm, LLM), patience)

    def __call__(self, batch: Batch) -> Batch:
        """Ask a piece; an outcome is JSON of an answer, an error, or why no call can succeed."""
        requests = [_request(json.loads(text)) for text in batch["request"]]
        outcomes: list[dict[str, Any]] = [{} for _ in requests]
        before = self._calls.calls

        def keep(row: int, answer: Answer) -> None:
            outcomes[row] = {"answer": asdict(answer)}

        def fail(row: int, error: Exception) -> None:
            outcomes[row] = {"error": without_secrets(error)}

        try:
            base_model.run(self._calls.ask_all(requests, keep, fail))
        except GenerationError as cause:
            outcomes = [outcome or {"hopeless": str(cause)} for outcome in outcomes]
        calls = np.zeros(len(requests), dtype=np.int64)
        calls[0] = self._calls.calls - before
        texts = np.array([json.dumps(outcome) for outcome in outcomes])
        return {"row": batch["row"], "outcome": texts, "calls": calls}


def sort_out(
    piece: Batch, keep: Callable[[int, Answer], None], fail: Callable[[int, Exception], None]
) -> None:
    """Keep the answers of a piece, and report its errors.

    Raises:
        GenerationError: No call can succeed.
    """
    hopeless = ""
    for row, outcome in zip(piece["row"], map(json.loads, piece["outcome"]), strict=True):
        if "answer" in outcome:
            keep(int(row), Answer(**outcome["answer"]))
        elif "error" in outcome:
            fail(int(row), RuntimeError(outcome["error"]))
        else:
            hopeless = outcome["hopeless"]
    if hopeless:
        raise GenerationError(hopeless)


def _request(found: dict[str, Any]) -> Request:
    turns = tuple((role, text) for role, text in found["turns"])
    return Request(turns, tuple(found["styles"]), found["frame"])
