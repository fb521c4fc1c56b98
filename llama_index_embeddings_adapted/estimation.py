"""What a run will cost, before it is paid for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode

from llama_index_embeddings_adapted import event_loop
from llama_index_embeddings_adapted.errors import GenerationError
from llama_index_embeddings_adapted.journal import Answer
from llama_index_embeddings_adapted.prompts import Request
from llama_index_embeddings_adapted.question_options import GenerationOptions
from llama_index_embeddings_adapted.question_writing import Call, Writing
from llama_index_embeddings_adapted.tokens import TOKENS_PER_QUESTION, count_tokens


@dataclass(frozen=True)
class Estimate:
    """What is left to pay of a run.

    Args:
        passages: Asked about, those with an answer on disk included.
        calls: Still to be made.
        prompt_tokens: Of those calls.
        completion_tokens: Of those calls.
        seconds: Of those calls, at the concurrency asked for; None without a probe.
        probed: Whether a call was made to find out; its answer is kept and is not paid for again.
    """

    passages: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    probed: bool

    def price(self, prompt: float, completion: float) -> float:
        """Return what the calls cost.

        Args:
            prompt: Price of a million prompt tokens.
            completion: Price of a million completion tokens.
        """
        return (self.prompt_tokens * prompt + self.completion_tokens * completion) / 1e6

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", about {self.seconds:,.0f} s"
        return (
            f"{self.passages:,} passages, {self.calls:,} calls to make: about "
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens{time}"
        )


def estimate(
    nodes: Sequence[BaseNode],
    llm: LLM | None = None,
    qa_generate_prompt_tmpl: Any | None = None,
    num_questions_per_chunk: int = 2,
    *,
    probe: bool = True,
    **options: Any,
) -> Estimate:
    """Say what ``generate_qa_embedding_pairs`` with these arguments would cost.

    One call is made to see how long it takes, how many tokens come back, and by how much the
    provider's count of tokens differs from ours. Its answer is kept on disk like any other.

    Args:
        nodes: See :func:`~llama_index_embeddings_adapted.generation.generate_qa_embedding_pairs`;
            so for all others.
        llm: Who would be asked.
        qa_generate_prompt_tmpl: Likewise.
        num_questions_per_chunk: Likewise.
        probe: Make that call; without it nothing is paid, and time is not known.
        options: Likewise.

    Raises:
        OptionError: An argument out of range.
        GenerationError: The probe failed.
    """
    chosen = GenerationOptions.of(options)
    writing = Writing(
        nodes,
        llm,
        chosen.prompting(num_questions_per_chunk, qa_generate_prompt_tmpl),
        chosen.patience(attempts=1),
        chosen,
    )
    try:
        return _estimate(writing, chosen.concurrency, probe=probe and bool(writing.missing))
    finally:
        writing.close()


def _estimate(writing: Writing, concurrency: int, *, probe: bool) -> Estimate:
    left = writing.missing
    ratio, completion = 1.0, float(TOKENS_PER_QUESTION // 2)
    seconds: float | None = 0.0 if not left else None
    if probe:
        first, left = _typical(left), [call for call in left if call is not _typical(left)]
        answer = _probed(writing, first)
        counted = _prompt_tokens(first.request)
        ratio = (answer.prompt_tokens or counted) / counted
        completion = float(answer.completion_tokens or count_tokens(answer.text))
        seconds = math.ceil(len(left) / concurrency) * answer.seconds
    else:
        completion *= len(left[0].request.styles) if left else 0
    return Estimate(
        passages=len(writing.passages),
        calls=len(left),
        prompt_tokens=round(ratio * sum(_prompt_tokens(call.request) for call in left)),
        completion_tokens=round(completion * len(left)),
        seconds=seconds,
        probed=probe,
    )


def _typical(calls: Sequence[Call]) -> Call:
    """Return the call of median length."""
    return sorted(calls, key=lambda call: len(call.sent))[len(calls) // 2]


def _probed(writing: Writing, call: Call) -> Answer:
    event_loop.run(writing.write([call]))
    answer = writing.answer(call)
    if answer is None:
        raise GenerationError(f"The probe failed: {next(iter(writing.failed.values()))}")
    return answer


def _prompt_tokens(request: Request) -> int:
    return sum(count_tokens(text) + 4 for _, text in request.turns)  # 4 mark a turn
