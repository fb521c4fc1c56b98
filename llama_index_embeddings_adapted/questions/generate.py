"""Questions from documents: an LLM writes, filters judge, every answer is on disk at once.

What a run will cost, before it is paid for.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode

from llama_index_embeddings_adapted.data.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encoding import base_model
from llama_index_embeddings_adapted.errors import GenerationError, OptionError
from llama_index_embeddings_adapted.questions.filters import Candidate
from llama_index_embeddings_adapted.questions.llm import Answer
from llama_index_embeddings_adapted.questions.options import GenerationOptions
from llama_index_embeddings_adapted.questions.prompts import Request
from llama_index_embeddings_adapted.questions.selection import QuestionReport, select
from llama_index_embeddings_adapted.questions.writing import (
    TOKENS_PER_QUESTION,
    Call,
    Writing,
    count_tokens,
)


def generate_qa_embedding_pairs(
    nodes: Sequence[BaseNode],
    llm: LLM | None = None,
    qa_generate_prompt_tmpl: Any | None = None,
    num_questions_per_chunk: int = 2,
    retry_limit: int = 3,
    on_failure: str = "continue",
    save_every: int = 500,
    output_path: str | Path | None = None,
    verbose: bool = False,
    **options: Any,
) -> EmbeddingQAFinetuneDataset:
    """Have an LLM write questions that the nodes answer, and keep the good ones.

    The successor of the function of the same name in ``llama-index-finetuning``, with its
    arguments. Calls run several at a time. Every answer is on disk the moment it arrives, keyed by
    what was sent and by the model: the same call after a kill continues where it ended and pays
    for nothing twice, and a file of other documents or settings is never taken for this one's.

    Args:
        nodes: What to ask about. The text sent is the text that an index embeds
            (``MetadataMode.EMBED``); nodes of the same text are asked about once. All of them are
            the corpus of the dataset, also those that ``max_chunks`` leaves out.
        llm: Any LlamaIndex LLM; ``Settings.llm`` when None.
        qa_generate_prompt_tmpl: A prompt of your own with ``{context_str}`` and
            ``{num_questions_per_chunk}``; one question per line, a list or JSON come back. By
            default chat turns with examples, in several styles.
        num_questions_per_chunk: Questions per passage.
        retry_limit: Attempts per call.
        on_failure: ``"continue"`` reports a passage that fails and goes on; ``"fail"`` raises.
        save_every: Accepted for old scripts; every answer is saved.
        output_path: Where to save the dataset as JSON, if anywhere. It is written, never read.
        verbose: Print the report.
        options: Fields of
            :class:`GenerationOptions`:
            ``max_chunks``, ``embed_model``, ``styles``, ``concurrency``, ….

    Returns:
        The dataset. Its ``report`` says how many questions were written and kept, and why the
        others were dropped. Query ids depend on text and node id only.

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
        DatasetError: Nodes without text, or with one id.
        GenerationError: The LLM refuses the key, does not exist or cannot be reached; or not one
            question was kept.
    """
    job = _Job(
        nodes, llm, qa_generate_prompt_tmpl, num_questions_per_chunk, retry_limit, on_failure,
        output_path, verbose, options,
    )  # fmt: skip
    try:
        base_model.run(job.writing.write())
        return job.finish()
    finally:
        job.writing.close()


async def agenerate_qa_embedding_pairs(
    nodes: Sequence[BaseNode],
    llm: LLM | None = None,
    qa_generate_prompt_tmpl: Any | None = None,
    num_questions_per_chunk: int = 2,
    retry_limit: int = 3,
    on_failure: str = "continue",
    save_every: int = 500,
    output_path: str | Path | None = None,
    verbose: bool = False,
    **options: Any,
) -> EmbeddingQAFinetuneDataset:
    """Do what :func:`generate_qa_embedding_pairs` does in the running event loop."""
    job = _Job(
        nodes, llm, qa_generate_prompt_tmpl, num_questions_per_chunk, retry_limit, on_failure,
        output_path, verbose, options,
    )  # fmt: skip
    try:
        await job.writing.write()
        return await asyncio.to_thread(job.finish)
    finally:
        job.writing.close()


class _Job:
    """One call of ``generate_qa_embedding_pairs``."""

    def __init__(
        self,
        nodes: Sequence[BaseNode],
        llm: LLM | None,
        template: Any | None,
        questions: int,
        attempts: int,
        on_failure: str,
        output_path: str | Path | None,
        verbose: bool,
        options: dict[str, Any],
    ) -> None:
        if on_failure not in ("continue", "fail"):
            raise OptionError(f'on_failure: expected "continue" or "fail", got {on_failure!r}.')
        self._began = time.perf_counter()
        self._questions = questions
        self._options = GenerationOptions.of(options)
        self._fail = on_failure == "fail"
        self._output = None if output_path is None else Path(output_path)
        self._verbose = verbose
        self.writing = Writing(
            nodes,
            llm,
            self._options.prompting(questions, template),
            self._options.patience(attempts=attempts),
            self._options,
        )

    def finish(self) -> EmbeddingQAFinetuneDataset:
        """Judge what was written and make the dataset."""
        writing = self.writing
        if writing.failed and self._fail:
            node, reason = next(iter(writing.failed.items()))
            raise GenerationError(
                f"{len(writing.failed)} of {len(writing.passages)} passages failed (first: "
                f'"{node}", {reason}). What is finished is kept; call again, or pass '
                'on_failure="continue" to go on without them.'
            )
        kept, dropped, cost = select(
            writing.candidates(), writing.corpus, self._options, most=self._questions
        )
        report = QuestionReport(
            tuple(kept),
            tuple(dropped),
            passages=len(writing.passages),
            failed=writing.failed,
            cut=writing.cut,
            calls=writing.calls,
            calls_saved=writing.calls_saved,
            prompt_tokens=writing.billed[0],
            completion_tokens=writing.billed[1],
            seconds=time.perf_counter() - self._began,
            base=cost,
        )
        if not kept:
            raise GenerationError(
                f"Not one question was kept of {report.written} written.\n{report}\n"
                "Read the examples; try another model or prompt, or looser filters."
            )
        dataset = self._dataset(kept).reported(report, synthetic=True)
        if self._output is not None:
            dataset.save_json(self._output)
        if self._verbose:
            print(report)
        return dataset

    def _dataset(self, kept: Sequence[Candidate]) -> EmbeddingQAFinetuneDataset:
        twins = {passage.nodes[0]: passage.nodes for passage in self.writing.passages}
        ids = [query_id(candidate) for candidate in kept]
        return EmbeddingQAFinetuneDataset(
            {query: candidate.text for query, candidate in zip(ids, kept, strict=True)},
            self.writing.corpus,
            {q: list(twins[c.document]) for q, c in zip(ids, kept, strict=True)},
        )


def query_id(candidate: Candidate) -> str:
    """Return the id of a question: the same for the same text about the same document."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{candidate.document}\0{candidate.text}"))


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
        nodes: See :func:`generate_qa_embedding_pairs`;
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
    base_model.run(writing.write([call]))
    answer = writing.answer(call)
    if answer is None:
        raise GenerationError(f"The probe failed: {next(iter(writing.failed.values()))}")
    return answer


def _prompt_tokens(request: Request) -> int:
    return sum(count_tokens(text) + 4 for _, text in request.turns)  # 4 mark a turn
