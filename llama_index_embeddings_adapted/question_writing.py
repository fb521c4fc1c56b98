"""The paid part: which requests a run consists of, which are answered, and asking the rest."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode
from tqdm import tqdm

from llama_index_embeddings_adapted.candidates import Candidate, words
from llama_index_embeddings_adapted.encode import cache_folder
from llama_index_embeddings_adapted.journal import Answer, Journal
from llama_index_embeddings_adapted.llm_calls import LLMCalls, Patience, identity
from llama_index_embeddings_adapted.llm_errors import without_secrets
from llama_index_embeddings_adapted.parsing import read_questions
from llama_index_embeddings_adapted.passages import Passage, corpus_of, fitted, passages_of, sample
from llama_index_embeddings_adapted.prompts import Prompting, Request
from llama_index_embeddings_adapted.question_actors import RayLLMCalls
from llama_index_embeddings_adapted.question_options import GenerationOptions
from llama_index_embeddings_adapted.tokens import count_tokens, embedded_tokens, passage_budget

_KEYWORDS_KEPT = 8  # small models do not stop
_DANGLING = frozenset(
    word
    for language in (
        "a an and as at by for from if in is it its of on or our that the their there to we with",
        "y o de del la el los las en por para con que et ou le les des du au un une dans pour avec",
        "und oder der die das den dem des im in am von mit für zu ein eine",
    )
    for word in language.split()
)


@dataclass(frozen=True)
class Call:
    """One request about one passage, and where its answer is kept."""

    passage: Passage
    sent: str
    request: Request
    key: str


class Writing:
    """The requests of one run and the answers so far.

    Args:
        nodes: What to ask about.
        llm: Who is asked; ``Settings.llm`` when None.
        prompting: What is asked about each passage.
        patience: How hard to try.
        options: Sampling, limits and places.
    """

    def __init__(
        self,
        nodes: Sequence[BaseNode],
        llm: LLM | None,
        prompting: Prompting,
        patience: Patience,
        options: GenerationOptions,
    ) -> None:
        nodes = list(nodes)
        self.llm = _default_llm() if llm is None else llm
        self._calls = _calls(self.llm, patience, options)
        self._show_progress = options.show_progress
        self.corpus = corpus_of(nodes)
        everything = passages_of(nodes, self.corpus)
        self.passages = sample(everything, options.max_chunks, seed=options.seed)
        self.cut = 0
        self.failed: dict[str, str] = {}
        self.billed = (0, 0)
        sent = self._texts_sent(prompting, options)
        self._journal = Journal(
            _journal_folder(options), {**identity(self.llm), **prompting.to_dict()}
        )
        self.plan = [
            Call(passage, text, request, self._journal.key(request.turns))
            for passage, text in zip(self.passages, sent, strict=True)
            for request in prompting.requests(text, _turn_of(text))
        ]
        self.missing = [call for call in self.plan if self._journal.get(call.key) is None]
        self.calls_saved = len(self.plan) - len(self.missing)

    @property
    def calls(self) -> int:
        """Calls made so far, repeated ones included."""
        return self._calls.calls

    async def write(self, calls: Sequence[Call] | None = None) -> None:
        """Ask what is not answered yet, or some of it.

        Raises:
            GenerationError: No call can succeed.
        """
        missing = self.missing if calls is None else list(calls)
        bar = tqdm(
            desc="Writing questions",
            total=len(self.plan),
            initial=self.calls_saved,
            unit="call",
            disable=not self._show_progress or not missing,
        )

        def keep(row: int, answer: Answer) -> None:
            self._journal.put(missing[row].key, answer)
            self._count(answer)
            bar.update()

        def fail(row: int, error: Exception) -> None:
            self.failed.setdefault(missing[row].passage.nodes[0], without_secrets(error))
            bar.update()

        with bar:
            if missing:
                await self._calls.ask_all([call.request for call in missing], keep, fail)

    def answer(self, call: Call) -> Answer | None:
        """Return the answer to a request, None if there is none."""
        return self._journal.get(call.key)

    def candidates(self) -> list[Candidate]:
        """Return the questions in all answers, in the order of the nodes.

        Remarks around the questions are among them, so that filters can count them.
        """
        answers = ((call, self._journal.get(call.key)) for call in self.plan)
        return [c for call, answer in answers if answer is not None for c in _read(call, answer)]

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def _texts_sent(self, prompting: Prompting, options: GenerationOptions) -> list[str]:
        context = passage_budget(self.llm.metadata, prompting)
        wanted = (options.max_passage_tokens, embedded_tokens(options.embed_model))
        limit = min([context, *(tokens for tokens in wanted if tokens is not None)])
        sent = [fitted(p.text, tokens=limit, count=count_tokens) for p in self.passages]
        whole = [len(words(p.text)) for p in self.passages]
        shorter = [len(words(text)) < all_ for text, all_ in zip(sent, whole, strict=True)]
        self.cut = sum(shorter)
        if self.cut and limit == context:
            warnings.warn(
                f"{self.cut} of {len(sent)} passages are longer than the LLM's context of "
                f"{self.llm.metadata.context_window} tokens leaves room for, and are sent up to "
                f"about {limit} tokens.",
                stacklevel=5,
            )
        return sent

    def _count(self, answer: Answer) -> None:
        prompt, completion = self.billed
        self.billed = (
            prompt + (answer.prompt_tokens or 0),
            completion + (answer.completion_tokens or 0),
        )


def _read(call: Call, answer: Answer) -> list[Candidate]:
    styles = call.request.styles
    found: list[Candidate] = []
    for row, line in enumerate(read_questions(answer.text, limit=2 * len(styles) + 2)):
        style = styles[min(row, len(styles) - 1)]
        text = _first_keywords(line) if style == "keywords" else line
        document, frame = call.passage.nodes[0], call.request.frame
        found.append(Candidate(text, document, call.sent, style, frame))
    return found


def _first_keywords(line: str) -> str:
    """Return the beginning of a line that was to be a few keywords."""
    first = line.replace(".", ";").split(";")[0].strip()
    line = first if len(words(first)) > 1 else line
    kept = line.split()[:_KEYWORDS_KEPT]
    while len(kept) > 2 and kept[-1].casefold() in _DANGLING:
        kept.pop()
    return " ".join(kept)


def _turn_of(text: str) -> int:
    """Return a number that depends on the passage only, whatever else is in the run."""
    return int(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8], 16)


def _journal_folder(options: GenerationOptions) -> Path | None:
    folder = cache_folder(options.cache_dir)
    return None if folder is None else folder / "questions"


def _calls(llm: LLM, patience: Patience, options: GenerationOptions) -> LLMCalls | RayLLMCalls:
    if options.executor == "local":
        return LLMCalls(llm, patience)
    return RayLLMCalls(llm, patience, options.actors)


def _default_llm() -> LLM:
    from llama_index.core import Settings

    return Settings.llm
