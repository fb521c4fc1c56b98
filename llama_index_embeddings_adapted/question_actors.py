"""The LLM is asked by actors of Ray, each with the same loop; answers come back to be kept here."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from llama_index.core.llms import LLM

from llama_index_embeddings_adapted import event_loop
from llama_index_embeddings_adapted.errors import GenerationError, need
from llama_index_embeddings_adapted.journal import Answer
from llama_index_embeddings_adapted.llm_calls import LLMCalls, Patience
from llama_index_embeddings_adapted.llm_errors import without_secrets
from llama_index_embeddings_adapted.prompts import Request
from llama_index_embeddings_adapted.scaling import Batch, packed, results, unpacked

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
        need("ray.data", extra="ray")
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
        arrow = need("pyarrow", extra="ray")
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
            event_loop.run(self._calls.ask_all(requests, keep, fail))
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
