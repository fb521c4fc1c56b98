"""The paid part: which requests a run consists of, which are answered, and asking the rest.

What a question is asked about: the text of nodes, as it will be embedded, and which of them.

How much text fits: tokens counted roughly, because every model has its own.
"""

from __future__ import annotations

import hashlib
import random
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import get_tokenizer
from tqdm import tqdm

from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.data import splits
from llama_index_embeddings_adapted.data.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encoding.cache import cache_folder
from llama_index_embeddings_adapted.errors import DatasetError, OptionError
from llama_index_embeddings_adapted.questions.filters import Candidate, words
from llama_index_embeddings_adapted.questions.llm import (
    Answer,
    Journal,
    LLMCalls,
    Patience,
    RayLLMCalls,
    identity,
    without_secrets,
)
from llama_index_embeddings_adapted.questions.options import GenerationOptions
from llama_index_embeddings_adapted.questions.prompts import Prompting, Request, read_questions

#: Reserved for the answer, per question.
TOKENS_PER_QUESTION = 80
_FEWEST = 32


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has, by the tokenizer of LlamaIndex's settings."""
    return len(get_tokenizer()(text))


def passage_budget(metadata: LLMMetadata, prompting: Prompting) -> int:
    """Return how many tokens of a passage an LLM can be sent.

    Args:
        metadata: Of the LLM.
        prompting: What is asked, which takes room itself.

    Raises:
        OptionError: The context is too small for the prompt alone.
    """
    frame = max(count_tokens(request.frame) for request in prompting.requests("", 0))
    left = metadata.context_window - frame - TOKENS_PER_QUESTION * prompting.questions - 64
    if left < _FEWEST:
        raise OptionError(
            f"llm: a context of {metadata.context_window} tokens has no room for a passage beside "
            f"the prompt of about {frame}. Give the LLM a larger context_window."
        )
    return left


def embedded_tokens(embed_model: BaseEmbedding | None) -> int | None:
    """Return how many tokens of a text the model embeds, None where it does not say."""
    length = getattr(embed_model, "max_length", None)
    return length if isinstance(length, int) and length > 0 else None


_MARGIN = 0.8  # our tokens are not the model's
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\s*\n\s*\n\s*\n")


@dataclass(frozen=True)
class Passage:
    """One distinct text and the nodes that have it.

    Args:
        nodes: Ids, at least one.
        text: As it is embedded.
        source: Id of the document that the first node is a part of; its own id if of none.
    """

    nodes: tuple[str, ...]
    text: str
    source: str


def corpus_of(nodes: Iterable[BaseNode]) -> dict[str, str]:
    """Return node id → text as an index embeds it (``MetadataMode.EMBED``), empty ones left out.

    Raises:
        DatasetError: Two nodes with one id, or no node with text.
    """
    pairs = [(node.node_id, node.get_content(MetadataMode.EMBED)) for node in nodes]
    corpus = files.unique(pairs, what="node", error=DatasetError)
    kept = {node: text for node, text in corpus.items() if text.strip()}
    if not kept:
        raise DatasetError(f"nodes: expected at least one with text, got {len(corpus)} without.")
    if len(kept) < len(corpus):
        warnings.warn(
            f"Left out {len(corpus) - len(kept)} of {len(corpus)} nodes: no text.", stacklevel=3
        )
    return kept


def source_of(node: BaseNode) -> str:
    """Return the id of the document that a node is a part of; its own where there is none."""
    return node.ref_doc_id or node.node_id


def passages_of(nodes: Sequence[BaseNode], corpus: Mapping[str, str]) -> list[Passage]:
    """Group the nodes of a corpus by text: what is the same is asked about once."""
    sources = {node.node_id: source_of(node) for node in nodes}
    groups: dict[str, list[str]] = defaultdict(list)
    for node, text in corpus.items():
        groups[text].append(node)
    return [Passage(tuple(ids), text, sources[ids[0]]) for text, ids in groups.items()]


def sample(passages: Sequence[Passage], most: int | None, *, seed: int) -> list[Passage]:
    """Choose passages so that every source document gives about the same number.

    Documents take turns, each giving a random passage of its own until it has none left.

    Args:
        passages: To choose from.
        most: How many, None for all.
        seed: Of the choice. A larger sample contains the smaller one with the same seed.

    Returns:
        At most ``most`` passages, in their given order.

    Raises:
        OptionError: ``most`` is not a whole number ``>= 1``.
    """
    if most is None:
        return list(passages)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise OptionError(f"max_chunks: expected a whole number >= 1 or None, got {most!r}.")
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, passage in enumerate(passages):
        by_source[passage.source].append(row)
    randomness = random.Random(seed)
    order = sorted(by_source)
    randomness.shuffle(order)
    for source in order:
        randomness.shuffle(by_source[source])
    turns = ((depth, turn) for turn, s in enumerate(order) for depth in range(len(by_source[s])))
    chosen = [by_source[order[turn]][depth] for depth, turn in sorted(turns)[:most]]
    return [passages[row] for row in sorted(chosen)]


def fitted(text: str, *, tokens: int, count: Callable[[str], int]) -> str:
    """Return a text with single, plain spaces, cut at a word to at most ``tokens`` tokens.

    Args:
        text: Any.
        tokens: The limit, ``>= 1``.
        count: Counts tokens; only asked where the text could be too long, as no token is shorter
            than a byte.
    """
    plain = _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()
    if len(plain.encode("utf-8", "replace")) <= tokens:
        return plain
    needed = count(plain)
    while needed > _MARGIN * tokens:
        keep = int(len(plain) * min(0.95, _MARGIN * tokens / needed))
        shorter = plain[:keep].rsplit(None, 1)[0] or plain[:keep]
        if not shorter:
            break
        plain, needed = shorter, count(shorter)
    return plain


def hold_out_documents(
    dataset: EmbeddingQAFinetuneDataset,
    nodes: Iterable[BaseNode],
    test_size: float | int = 0.2,
    *,
    seed: int = 0,
) -> tuple[EmbeddingQAFinetuneDataset, EmbeddingQAFinetuneDataset]:
    """Split questions so that no source document is asked about in both parts.

    ``train_test_split(by="document")`` keeps passages apart; here whole documents are kept apart,
    as neighbouring passages of one document often answer each other's questions. Both parts keep
    the whole corpus to search in.

    Args:
        dataset: Questions about nodes.
        nodes: The nodes, which know the documents they are parts of (``node.ref_doc_id``).
        test_size: Share of the questions in (0, 1), or their number, about.
        seed: Same seed and ids, same split.

    Raises:
        OptionError: ``test_size`` out of range.
        DatasetError: A part would be empty, for instance because there is one document only.
    """
    sources = {node.node_id: source_of(node) for node in nodes}
    unknown = [document for document in dataset.corpus if document not in sources]
    if unknown:
        raise DatasetError(
            f"nodes: expected the nodes of all {len(dataset.corpus)} documents, {len(unknown)} are "
            f'missing (first: "{unknown[0]}"). Pass the nodes that the questions were written from.'
        )
    texts = {query: splits.normalise(text) for query, text in dataset.queries.items()}
    relevant = {q: [sources[d] for d in docs] for q, docs in dataset.relevant_docs.items()}
    train, test, dropped = splits.split(
        texts, relevant, test_size=test_size, by="document", seed=seed
    )
    if dropped:
        warnings.warn(
            f"{dropped} of {len(dataset)} queries ask for documents of both parts and were "
            "dropped.",
            stacklevel=2,
        )
    return dataset.subset(train), dataset.subset(test)


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
