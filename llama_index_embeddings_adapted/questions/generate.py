"""Questions from documents: an LLM writes, filters judge, every answer is on disk at once.

Passages become requests, requests answers, answers candidates, candidates a dataset: each step
takes the former's list. What a run will cost is said before it is paid for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llama_index.core import Settings
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode
from llama_index.core.utils import count_tokens
from tqdm import tqdm

from ..core import files
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding import base_model
from ..encoding.cache import cache_folder
from ..errors import GenerationError, OptionError, check_choice
from . import options as given
from .answers import first_keywords, read_questions
from .filters import Candidate, refusal, words
from .llm import AnswerCache, CachedAnswer, LLMCalls, identity, without_secrets
from .options import TOKENS_PER_QUESTION, GenerationOptions, Passage
from .prompts import PromptConfig, Request
from .selection import QuestionReport, select
from .structure import with_structure

_FEWEST_TOKENS = 32  # of a passage


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
        options: Fields of :class:`GenerationOptions`: ``max_chunks``, ``embed_model``, ``styles``,
            ``concurrency``, …; ``structure=True`` adds what titles and headings of the nodes ask,
            see :func:`pairs_from_structure`.

    Returns:
        The dataset. Its ``report`` says how many questions were written and kept, and why the
        others were dropped. Query ids depend on text and node id only.

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
        DatasetError: Nodes without text, or with one id, or no nodes.
        GenerationError: The LLM refuses the key, does not exist or cannot be reached; or not one
            question was kept.
    """
    first = (nodes, llm, qa_generate_prompt_tmpl, num_questions_per_chunk, retry_limit)
    with GenerationRun(*first, on_failure, save_every, output_path, verbose, **options) as run:
        base_model.run(run.ask(run.missing))
        return run.dataset()


@functools.wraps(generate_qa_embedding_pairs, assigned=(), updated=())
async def agenerate_qa_embedding_pairs(
    *arguments: Any, **options: Any
) -> EmbeddingQAFinetuneDataset:
    """Do what :func:`generate_qa_embedding_pairs` does, with its arguments, in the running loop."""
    with GenerationRun(*arguments, **options) as run:
        await run.ask(run.missing)
        return await asyncio.to_thread(run.dataset)


@dataclass(frozen=True)
class Estimate:
    """What is left to pay of a run.

    Args:
        passages: Asked about, those with an answer on disk included.
        calls: Still to be made.
        prompt_tokens: Of those calls.
        completion_tokens: Of those calls.
        seconds: Of those calls, at the concurrency asked for; None where no answer is known yet.
        probed: Whether calls were made to find out; their answers are kept, not paid for again.
        cut: Passages that are sent only up to ``sent_tokens``.
        sent_tokens: Of a passage, at most: what the LLM's context and the embedding model allow.
        known: Passages there are, those included that ``max_chunks`` leaves out.
    """

    passages: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    probed: bool
    cut: int = 0
    sent_tokens: int | None = None
    known: int = 0

    def price(self, prompt: float, completion: float) -> float:
        """Return what the calls cost, at prices per million prompt and completion tokens."""
        return (self.prompt_tokens * prompt + self.completion_tokens * completion) / 1e6

    def __str__(self) -> str:
        of = f" of {self.known:,}" if self.known > self.passages else ""
        text = (
            f"{self.passages:,}{of} passages, {self.calls:,} calls to make: about "
            f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens"
        )
        if self.seconds is not None:
            text += f", about {self.seconds:,.0f} s"
        if self.cut:
            text += (
                f". {self.cut:,} of {self.passages:,} passages are longer than what is read: chunk "
                f"at {self.sent_tokens:,} tokens"
            )
        return text


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

    One call is made to warm up, then as many as are under way at once: how long they take, how many
    tokens come back, and by how much the provider's count of tokens differs from ours. The answers
    are kept like any others.

    Args:
        nodes, llm, qa_generate_prompt_tmpl, num_questions_per_chunk, options: See
            :func:`generate_qa_embedding_pairs`.
        probe: Make those calls; without them nothing is paid, and time is known from answers on
            disk only. That they fail is a GenerationError.
    """
    first = (nodes, llm, qa_generate_prompt_tmpl, num_questions_per_chunk)
    with GenerationRun(*first, **options) as run:
        return run.probe() if probe and run.missing else run.estimate()


class PendingCall(NamedTuple):
    """One request about one passage, and where its answer is kept."""

    passage: Passage
    sent: str
    request: Request
    key: str

    def candidates(self, answer: CachedAnswer) -> Iterator[Candidate]:
        """Yield the questions of an answer, remarks around them included: filters count those."""
        styles = self.request.styles
        # A problem is told in several sentences on one line: that line is not taken apart.
        wanted = 0 if "problem" in styles else len(styles)
        row = 0
        for line in read_questions(answer.text, limit=2 * len(styles) + 2, wanted=wanted):
            style = styles[min(row, len(styles) - 1)]
            row += not refusal(Candidate(line, "", ""))
            text = first_keywords(line) if style == "keywords" else line
            yield Candidate(text, self.passage.nodes[0], self.sent, style, self.request.frame)


class GenerationRun(ExitStack):
    """A run, a context manager, settled at once: passages, calls about them, known answers."""

    def __init__(
        self,
        nodes: Sequence[BaseNode],
        llm: LLM | None = None,
        qa_generate_prompt_tmpl: Any | None = None,
        num_questions_per_chunk: int = 2,
        retry_limit: int = 3,
        on_failure: str = "continue",
        save_every: int = 500,
        output_path: str | Path | None = None,
        verbose: bool = False,
        *,
        structure: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self._began = time.perf_counter()
        self.options = GenerationOptions.of(options)
        check_choice("on_failure", on_failure, ("continue", "fail"))
        self._most, self._on_failure = num_questions_per_chunk, on_failure
        self._output, self._verbose, self._structure = output_path, verbose, structure
        if output_path is not None:
            files.check_target(Path(output_path), error=OptionError)
        llm = Settings.llm if llm is None else llm
        self._calls = LLMCalls(llm, self.options, retry_limit)
        self._nodes = given.nodes_of(nodes)
        self.corpus = given.corpus_of(self._nodes)
        shown = self.options.shown(self.corpus)
        if shown and qa_generate_prompt_tmpl is not None:
            said = "your prompt shows no examples; they only judge what comes back"
            warnings.warn(f"qa_generate_prompt_tmpl: {said}.", stacklevel=3)
        prompts = self.options.prompts(self._most, qa_generate_prompt_tmpl, shown, llm)
        self.examples = prompts.examples
        everything = given.passages_of(self._nodes, self.corpus)
        self._known = len(everything)
        self.passages = given.sample(everything, self.options.max_chunks, seed=self.options.seed)
        self.failed: dict[str, str] = {}
        self._billed: list[CachedAnswer] = []
        sent = self._texts_sent(llm.metadata, prompts)
        folder = cache_folder(self.options.cache_dir)
        settings = {**identity(llm), **prompts.to_dict()}
        self._cache = self.enter_context(AnswerCache(folder and folder / "questions", settings))
        self.plan = [
            PendingCall(passage, text, request, self._cache.key(request.turns))
            for passage, text in zip(self.passages, sent, strict=True)
            for request in prompts.requests(text, _turn_of(text))
        ]
        found = ((call.key, self._cache.get(call.key)) for call in self.plan)
        self.answers = {key: answer for key, answer in found if answer is not None}
        self.calls_saved = len(self.plan) - len(self.missing)

    def _texts_sent(self, llm: LLMMetadata, prompts: PromptConfig) -> list[str]:
        frame = given.frame_tokens(prompts)
        context = llm.context_window - frame - TOKENS_PER_QUESTION * prompts.questions - 64
        if context < _FEWEST_TOKENS:
            raise OptionError(
                f"llm: a context of {llm.context_window} tokens has no room for a passage beside "
                f"the prompt of about {frame}. Give the LLM a larger context_window."
            )
        read = (self.options.max_passage_tokens, given.embedded_tokens(self.options.embed_model))
        self.sent_tokens = min([context, *(tokens for tokens in read if tokens is not None)])
        sent = [given.truncate_to_tokens(p.text, self.sent_tokens) for p in self.passages]
        whole = [len(words(passage.text)) for passage in self.passages]
        self.cut = sum(len(words(t)) < all_ for t, all_ in zip(sent, whole, strict=True))
        if self.cut and self.sent_tokens == context:
            warnings.warn(
                f"{self.cut} of {len(sent)} passages are longer than the LLM's context of "
                f"{llm.context_window} tokens leaves room for, and are sent up to about {context} "
                "tokens.",
                stacklevel=4,
            )
        return sent

    @property
    def missing(self) -> list[PendingCall]:
        """The calls that have no answer yet."""
        return [call for call in self.plan if call.key not in self.answers]

    async def ask(self, calls: Sequence[PendingCall]) -> None:
        """Ask; every answer is kept the moment it arrives. A GenerationError if none can be had."""
        quiet = not (self.options.show_progress and calls)
        if not quiet:
            tqdm.write(str(self.estimate()), file=sys.stderr)
        all_, done = len(self.plan), len(self.plan) - len(self.missing)
        bar = tqdm(desc="Writing questions", total=all_, initial=done, unit="call", disable=quiet)

        def keep(row: int, answer: CachedAnswer) -> None:
            self._cache.put(calls[row].key, answer)
            self.answers[calls[row].key] = answer
            self._billed.append(answer)
            bar.update()
            told = len(self._billed) == self._calls.workers + 1  # the first is no measure
            if told and not quiet:
                tqdm.write(str(self.estimate()), file=sys.stderr)

        def fail(row: int, error: Exception) -> None:
            self.failed.setdefault(calls[row].passage.nodes[0], without_secrets(error))
            bar.update()

        with bar:
            await self._calls.ask_all([call.request for call in calls], keep, fail)

    def estimate(self, basis: Sequence[PendingCall] | None = None) -> Estimate:
        """Say what the missing calls will cost, judging by ``basis``, else by all answers."""
        left = self.missing
        done = [call for call in self.plan if call.key in self.answers] if basis is None else basis
        known = [self.answers[call.key] for call in done]
        counted = sum(_prompt_tokens(call.request) for call in done)
        billed = sum(answer.prompt_tokens or 0 for answer in known)
        ratio = billed / counted if billed else 1.0
        written = sum(a.completion_tokens or count_tokens(a.text) for a in known)
        questions = TOKENS_PER_QUESTION // 2 * len(left[0].request.styles) if left else 0
        seconds = sum(answer.seconds for answer in known) / max(len(known), 1)
        return Estimate(
            passages=len(self.passages),
            calls=len(left),
            prompt_tokens=round(ratio * sum(_prompt_tokens(call.request) for call in left)),
            completion_tokens=round(len(left) * (written / len(known) if known else questions)),
            seconds=seconds * len(left) / self._calls.workers if known or not left else None,
            probed=basis is not None,
            cut=self.cut,
            sent_tokens=self.sent_tokens,
            known=self._known,
        )

    def probe(self) -> Estimate:
        """Estimate from a few of the missing calls, the slow first aside; or GenerationError."""
        missing = self.missing
        step = max(1, len(missing) // (self._calls.workers + 1))
        probes = sorted(missing, key=lambda call: len(call.sent))[step // 2 :: step]
        first, others = probes[:1], probes[1 : self._calls.workers + 1]
        base_model.run(self.ask(first))
        base_model.run(self.ask(others))
        answered = [call for call in others or first if call.key in self.answers]
        if not answered:
            raise GenerationError(f"The probe failed: {next(iter(self.failed.values()))}")
        return self.estimate(answered)

    def dataset(self) -> EmbeddingQAFinetuneDataset:
        """Judge what was written and make the dataset, or raise a GenerationError."""
        if self.failed and self._on_failure == "fail":
            node, reason = next(iter(self.failed.items()))
            raise GenerationError(
                f"{len(self.failed)} of {len(self.passages)} passages failed (first: "
                f'"{node}", {reason}). What is finished is kept; call again, or pass '
                'on_failure="continue" to go on without them.'
            )
        answered = [call for call in self.plan if call.key in self.answers]
        candidates = [c for call in answered for c in call.candidates(self.answers[call.key])]
        judged = (candidates, self.corpus, self.options)
        kept, dropped, cost = select(*judged, most=self._most, examples=self.examples)
        report = QuestionReport(
            tuple(kept),
            tuple(dropped),
            passages=len(self.passages),
            shown=self.examples,
            failed=self.failed,
            cut=self.cut,
            calls=self._calls.calls,
            calls_saved=self.calls_saved,
            prompt_tokens=sum(answer.prompt_tokens or 0 for answer in self._billed),
            completion_tokens=sum(answer.completion_tokens or 0 for answer in self._billed),
            seconds=time.perf_counter() - self._began,
            base=cost,
        )
        if not kept:
            raise GenerationError(
                f"Not one question was kept of {report.written} written.\n{report}\n"
                "Read the examples; try another model or prompt, or looser filters."
            )
        relevant = {passage.nodes[0]: list(passage.nodes) for passage in self.passages}
        dataset = EmbeddingQAFinetuneDataset(
            {candidate.query_id: candidate.text for candidate in kept},
            self.corpus,
            {candidate.query_id: relevant[candidate.document] for candidate in kept},
        ).reported(report, synthetic=True)
        if self._structure:
            nodes = [node for node in self._nodes if node.node_id in self.corpus]
            dataset = with_structure(dataset, nodes, self.options)
        if self._output is not None:
            dataset.save_json(self._output)
        if self._verbose:
            print(report)
        return dataset


def _turn_of(text: str) -> int:
    """Return a number that depends on the passage only, whatever else is in the run."""
    return int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8], 16)


def _prompt_tokens(request: Request) -> int:
    return sum(count_tokens(text) + 4 for _, text in request.turns)  # 4 mark a turn
