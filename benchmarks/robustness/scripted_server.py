"""An OpenAI-compatible chat server on this machine that answers by script, and its client."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.schema import TextNode

#: (status, content): what to answer to the last message of a conversation.
Script = Callable[[str], tuple[int, str]]


def two_questions(message: str) -> tuple[int, str]:
    """Answer with two questions made of words of the passage."""
    words = [word.strip(".,") for word in message.split("Passage:")[-1].split() if word.isalnum()]
    topic = " ".join(words[:3])
    return 200, f"What is known about {topic} these days?\n{' '.join(words[2:6])} facts"


def nodes(passages: int) -> list[TextNode]:
    """Return passages that differ, to ask about."""
    return [
        TextNode(id_=f"n{i}", text=f"Town{i} has market{i * 7} and river{i * 3} with a bridge.")
        for i in range(passages)
    ]


def client(api_base: str, **options: Any) -> Any:
    """Return a client of a scripted server; it leaves no connection open."""
    import httpx
    from llama_index.llms.openai_like import OpenAILike

    http = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
    given = {"model": "scripted", "api_key": "none", "context_window": 4096, "max_tokens": 100}
    given |= {"is_chat_model": True, "temperature": 0.0, "max_retries": 0, **options}
    return OpenAILike(api_base=api_base, async_http_client=http, **given)


class ScriptedServer:
    """Listens on loopback while the ``with`` block runs; every answer takes ``latency_s``.

    ``started`` says by the last message how many requests arrived.
    """

    def __init__(self, script: Script = two_questions, *, latency_s: float = 0.0) -> None:
        self._script = script
        self._latency = latency_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.started: Counter[str] = Counter()
        self.api_base = ""

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=256)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.api_base = "http://{}:{}/v1".format(*self._server.sockets[0].getsockname())
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while body := await body_of(reader):
                await self._answer(json.loads(body), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the block ended
        finally:
            writer.close()

    async def _answer(self, body: Any, writer: asyncio.StreamWriter) -> None:
        message = body["messages"][-1]["content"]
        self.started[message] += 1
        await asyncio.sleep(self._latency)
        status, content = self._script(message)
        writer.write(_response(status, content, body))
        await writer.drain()


async def body_of(reader: asyncio.StreamReader) -> bytes:
    """Return the body of the next request or response, empty where it has none."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
    return await reader.readexactly(length)


def _response(status: int, content: str, body: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    prompt = sum(len(m["content"].split()) for m in body["messages"])
    usage = {"prompt_tokens": prompt, "completion_tokens": len(content.split())}
    answer: dict[str, Any] = {"id": "scripted", "object": "chat.completion", "created": 0}
    answer["model"] = body.get("model", "")
    answer["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
    answer["usage"] = {**usage, "total_tokens": sum(usage.values())}
    if status != 200:
        answer = {"error": {"message": content, "type": "scripted", "code": None}}
    payload = json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nretry-after: 0.01\r\n\r\n"
    )
    return head.encode() + payload


@contextmanager
def in_a_process(latency_s: float) -> Iterator[str]:
    """Run a server in a process of its own, which takes no time from its client; its address."""
    command = [sys.executable, "-m", __name__, str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.kill()


def main() -> None:
    """Serve until killed; print the address."""
    with ScriptedServer(latency_s=float(sys.argv[1])) as server:
        print(server.api_base, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
