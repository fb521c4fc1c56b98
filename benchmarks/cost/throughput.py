"""Passages per second against the function of llama-index-finetuning, on one local server."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llama_index.core import llms
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from benchmarks.processes import timed
from benchmarks.robustness import scripted_server
from llama_index_embeddings_adapted import generate_qa_embedding_pairs

ROUNDS = 3


class LeanLLM(llms.CustomLLM):
    """A client that adds next to nothing to a call, so that only the generation is measured."""

    api_base: str

    @property
    def metadata(self) -> llms.LLMMetadata:
        return llms.LLMMetadata(is_chat_model=True, model_name="scripted", context_window=4096)

    @llm_completion_callback()
    def complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> llms.CompletionResponse:
        """Answer in the synchronous way, which the old function takes."""
        url = urlsplit(self.api_base)
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        connection.request("POST", "/v1/chat/completions", _body([("user", prompt)]))
        raw = json.loads(connection.getresponse().read())
        connection.close()
        return llms.CompletionResponse(text=raw["choices"][0]["message"]["content"], raw=raw)

    @llm_completion_callback()
    def stream_complete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @llm_chat_callback()
    async def achat(self, messages: Sequence[llms.ChatMessage], **kwargs: Any) -> llms.ChatResponse:
        """Answer in the asynchronous way, which ours takes."""
        url = urlsplit(self.api_base)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        body = _body([(m.role.value, m.content or "") for m in messages])
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        raw = json.loads(await scripted_server.body_of(reader))
        writer.close()
        text = raw["choices"][0]["message"]["content"]
        return llms.ChatResponse(message=llms.ChatMessage(role="assistant", content=text), raw=raw)


def run(*, passages: int = 200, latency_s: float = 0.2, concurrency: int = 32) -> dict[str, Any]:
    """Time both functions with both clients in one run."""
    ideal = latency_s * passages / concurrency
    clients: dict[str, Callable[[str], Any]] = {
        "OpenAILike": scripted_server.client,
        "a client without overhead": lambda address: LeanLLM(api_base=address),
    }
    found: dict[str, Any] = {"passages": passages, "latency_s": latency_s}
    found |= {"concurrency": concurrency, "ideal_seconds": ideal}
    found |= {"load_average_before": os.getloadavg()[0], "clients": {}}
    with scripted_server.in_a_process(latency_s) as address:
        for name, client in clients.items():
            ours = [_ours(client(address), passages, concurrency) for _ in range(ROUNDS)]
            old = _old(client(address), passages)
            best, middle = min(ours), statistics.median(ours)
            seconds = {"old_seconds": old, "ours_seconds": ours, "times_as_fast": old / middle}
            over = {"over_ideal": middle / ideal, "best_over_ideal": best / ideal}
            found["clients"][name] = {**seconds, **over}
    return found


def _ours(llm: Any, passages: int, concurrency: int) -> float:
    nodes = scripted_server.nodes(passages)
    with tempfile.TemporaryDirectory() as cache:
        generate_qa_embedding_pairs(nodes[:1], llm, cache_dir=False, show_progress=False)  # warm
        given: Any = {"concurrency": concurrency, "cache_dir": cache, "show_progress": False}
        data, seconds = timed(lambda: generate_qa_embedding_pairs(nodes, llm, **given))
    assert len(data.report.kept) == 2 * passages
    return seconds


def _old(llm: Any, passages: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is deprecated
        from llama_index.finetuning import generate_qa_embedding_pairs as old

    nodes = scripted_server.nodes(passages)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "qa.json")
        return timed(lambda: old(nodes, llm, output_path=path, verbose=False))[1]


def _body(turns: Sequence[tuple[str, str]]) -> bytes:
    messages = [{"role": role, "content": content} for role, content in turns]
    return json.dumps({"model": "scripted", "messages": messages}).encode()
