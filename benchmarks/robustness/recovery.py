"""Killed again and again while an LLM writes questions: what is lost, what is paid for twice."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
from llama_index.core.schema import TextNode
from llama_index.llms.openai_like import OpenAILike

from benchmarks.robustness.scripted_server import ScriptedServer, two_questions
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset, generate_qa_embedding_pairs
from llama_index_embeddings_adapted.questions.answer_cache import FILE, AnswerCache

CONCURRENCY = 4


def run(*, kills: int = 20, passages: int = 60, latency_s: float = 0.2) -> dict[str, Any]:
    """Kill a run at random moments, finish it, and compare with one that was left alone."""
    with tempfile.TemporaryDirectory() as name, ScriptedServer(latency_s=latency_s) as server:
        folder = Path(name)
        whole = _uninterrupted(server, folder, passages)
        once = Counter(server.finished)
        server.started.clear()
        server.finished.clear()
        # The whole run, spread over the kills: each lives for its share, more or less.
        share = passages * latency_s / CONCURRENCY / (kills + 1)
        randomness = random.Random(0)
        alive = paid_twice = 0
        for _ in range(kills):
            kept = kept_answers(folder)
            earlier = Counter(server.started)
            alive += _killed(server, folder, passages, 2 * share * randomness.random())
            paid_twice += _asked_again(kept, server.started - earlier)
        kept, earlier = kept_answers(folder), Counter(server.started)
        _start(server, folder, passages).wait()
        paid_twice += _asked_again(kept, server.started - earlier)
        killed = EmbeddingQAFinetuneDataset.from_json(folder / "killed.json")
    return {
        "passages": passages,
        "kills": alive,
        "concurrency": CONCURRENCY,
        "left_after_the_last_kill": passages - len(kept),
        "same_dataset": killed == whole,
        "same_requests": set(server.finished) == set(once),
        "finished_passages_asked_again": paid_twice,
        "requests": sum(server.started.values()),
        "in_flight_when_killed": sum(server.started.values()) - passages,
        "in_flight_at_most": CONCURRENCY * alive,
    }


def kept_answers(folder: Path) -> set[str]:
    """Return the answers on disk."""
    place = folder / "cache" / "questions"
    if not (place / FILE).exists():
        return set()
    with AnswerCache(place, {}), closing(sqlite3.connect(place / FILE)) as database:
        return {text for (text,) in database.execute("SELECT text FROM answers")}


def _asked_again(kept: set[str], started: Counter[str]) -> int:
    return sum(two_questions(message)[1] in kept for message in started.elements())


def _uninterrupted(
    server: ScriptedServer, folder: Path, passages: int
) -> EmbeddingQAFinetuneDataset:
    return generate_qa_embedding_pairs(
        nodes(passages),
        llm(server.api_base),
        concurrency=CONCURRENCY,
        cache_dir=folder / "whole",
        show_progress=False,
    )


def _start(server: ScriptedServer, folder: Path, passages: int) -> subprocess.Popen[bytes]:
    arguments = [server.api_base, str(folder / "cache"), str(folder / "killed.json"), str(passages)]
    return subprocess.Popen([sys.executable, "-W", "ignore", "-m", __name__, *arguments])


def _killed(server: ScriptedServer, folder: Path, passages: int, seconds: float) -> bool:
    """Start the run, wait for its first request, then so long, and kill it; False if it ended."""
    before = sum(server.started.values())
    process = _start(server, folder, passages)
    while process.poll() is None and sum(server.started.values()) == before:
        time.sleep(0.005)
    time.sleep(seconds)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def nodes(passages: int) -> list[TextNode]:
    """Return passages that differ."""
    return [
        TextNode(id_=f"n{i}", text=f"Town{i} has market{i * 7} and river{i * 3} with a bridge.")
        for i in range(passages)
    ]


def llm(api_base: str) -> OpenAILike:
    """Return a client of a scripted server; it leaves no connection open."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return OpenAILike(
        async_http_client=httpx.AsyncClient(limits=limits),
        model="scripted",
        api_base=api_base,
        api_key="none",
        is_chat_model=True,
        context_window=4096,
        max_tokens=100,
        temperature=0.0,
        max_retries=0,
    )


def main() -> None:
    """Write questions; this is the process that is killed."""
    api_base, cache, output, passages = sys.argv[1:]
    generate_qa_embedding_pairs(
        nodes(int(passages)),
        llm(api_base),
        concurrency=CONCURRENCY,
        cache_dir=Path(cache),
        output_path=output,
        show_progress=False,
    )


if __name__ == "__main__":
    main()
