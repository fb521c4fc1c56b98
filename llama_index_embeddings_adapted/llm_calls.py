"""How we speak to an LLM: any of LlamaIndex's, several calls at a time, patient but not blind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.llms import LLM, ChatMessage, CustomLLM

from llama_index_embeddings_adapted.errors import GenerationError, OptionError
from llama_index_embeddings_adapted.journal import Answer
from llama_index_embeddings_adapted.llm_errors import hopeless, pause_s, useless_to_repeat
from llama_index_embeddings_adapted.parsing import MOST_READ
from llama_index_embeddings_adapted.prompts import Request
from llama_index_embeddings_adapted.redaction import names_secret, without_url_secrets

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
