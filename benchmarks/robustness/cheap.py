"""A base model and an LLM that cost nothing, never change, and note what they are asked."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from benchmarks.robustness.scripted_server import two_questions
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS

DIM = 32


@functools.lru_cache(maxsize=100_000)
def word(text: str) -> Any:
    """Return the vector of one word, ``(DIM,)``."""
    seed = list(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
    return np.random.default_rng(seed).standard_normal(DIM)


def vector(text: str, role: str) -> list[float]:
    """Return a unit vector: texts that share words are near, a query is turned a little."""
    total = np.sum([word(each) for each in text.lower().split()], axis=0) + np.full(DIM, 1e-3)
    total = total + 0.3 * np.roll(total, 1) if role == "query" else total
    return list(map(float, total / np.linalg.norm(total)))


class WordsEmbedding(BaseEmbedding):
    """The sum of the vectors of the words.

    Args:
        log: A file that every text asked about is noted in before it is answered, one JSON list
            per call; empty for none.
        pause_s: How long a call takes.
    """

    log: str = ""
    pause_s: float = 0.0

    def _answer(self, texts: list[str], role: str) -> list[list[float]]:
        if self.log:
            note(self.log, texts)
        if self.pause_s:
            time.sleep(self.pause_s)
        return [vector(text, role) for text in texts]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._answer([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(0)
        return self._answer([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._answer([text], "document")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._answer(texts, "document")


class WritingLLM(CustomLLM):
    """Writes two questions made of words of the passage; what it is about to answer is noted."""

    log: str = ""
    pause_s: float = 0.0

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=4096, model_name="writing")

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        text = two_questions(str(messages[-1].content))[1]
        note(self.log, [text])
        await asyncio.sleep(self.pause_s)
        return ChatResponse(message=ChatMessage(role="assistant", content=text))

    @llm_completion_callback()
    def complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @llm_completion_callback()
    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def note(log: str, texts: Sequence[str]) -> None:
    """Append a line in a single write, so that a kill loses none and tears none."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, json.dumps(list(texts)).encode() + b"\n")
    os.close(handle)


def noted(log: Path) -> list[str]:
    """Return the texts in a log, without the probes that identify a base model."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [text for line in lines for text in json.loads(line) if text not in PROBE_TEXTS]
