"""What a run is given: how to write and judge, passages to ask about, examples to be like.

Every option is checked before anything is paid for. A passage is the text of a node as it will be
embedded. Tokens are counted roughly, because every model has its own.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import count_tokens

from ..core import files
from ..core.arrays import l2_normalize
from ..data import contents
from ..data.dataset import EmbeddingQAFinetuneDataset as Dataset
from ..data.reading import read_lines
from ..data.records import queries_of
from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import DatasetError, OptionError, check_kind, check_known, check_number, check_whole
from .answers import is_question
from .filters import TEXT_FILTERS, Filter, near_duplicates
from .local_llama import LocalLlama
from .prompts import STYLES, Example, PromptConfig

_WITH_EXAMPLES = {"round_trip_k": 50, "generic_matches": 100}
_IDLE = (("labels", "completion"), ("styles", "questions_per_call"))  # without, and with, examples

#: Reserved for the answer, per question.
TOKENS_PER_QUESTION = 80
FEWEST_EXAMPLES, DRAWN_EXAMPLES, MOST_EXAMPLES = 3, 8, 30
_OF_CODE, _SHARE_OF_CODE = "{}()[]=;|\\$<>_/*-", 0.05
_MARGIN = 0.8  # our tokens are not the model's
_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\s*\n\s*\n\s*\n")


@dataclass(frozen=True)
class GenerationOptions:
    """How to write and judge questions; a value outside its range is an OptionError.

    Args:
        max_chunks: Ask about this many passages only, drawn evenly from the source documents; None
            for all.
        seed: Of that choice.
        examples: Queries as your users ask them, 3 to 30, and the passages that answer them:
            questions are written and judged in their likeness, and they replace the styles. A
            dataset (of a larger one, eight are drawn), the path of a file, records, or queries
            alone, a list or a text file of lines: then the base model's nearest passage stands in.
        labels: What stands before the passage and the query of an example, such as ``("Abstract",
            "Claim")``; None guesses.
        completion: Show examples as a text to go on with instead of chat turns; None: where the
            model does not chat, or is a :class:`LocalLlama` of a few hundred million weights.
        styles: Kinds of questions, names from :data:`STYLES`, mixed over passages. A custom prompt
            decides for itself.
        questions_per_call: How many questions to ask for at once; None for all of a passage's.
            Small models (a few hundred million weights) need 1.
        max_passage_tokens: Send at most this much of a passage, about. The LLM's context and the
            ``max_length`` of ``embed_model``, where it has one, limit it anyway: what is not
            embedded should not be asked about.
        embed_model: The base model, for the filters ``generic`` and ``round_trip``, which are left
            out without it.
        filters: Judge the text of each question. One that objects to an example is left out.
        near_duplicate: Questions that share this share of their words, in (0, 1], are one.
        generic_matches: Drop questions for which more than this many other passages reach 90 % of
            the cosine of their own, 100 with examples, or what one of those has; None to keep them.
        round_trip_k: Drop questions whose passage is not among the first so many of the base
            model, 50 with examples, or where one of those is; None to keep them. Keep it loose: a
            strict one leaves only what the base model already finds.
        concurrency: Calls under way at once.
        requests_per_minute: None for as many as the server takes. A ``rate_limiter`` of the LLM
            applies besides.
        timeout_s: After which a call counts as failed; None for never.
        cache_dir: Where answers and vectors are kept; ``None`` is LlamaIndex's cache folder,
            ``False`` keeps them in memory only, and an interrupted run starts again.
        show_progress: Show bars with an estimate.
    """

    max_chunks: int | None = None
    seed: int = 0
    examples: Any = None
    labels: tuple[str, str] | None = None
    completion: bool | None = None
    styles: Sequence[str] = tuple(STYLES)
    questions_per_call: int | None = None
    max_passage_tokens: int | None = None
    embed_model: BaseEmbedding | None = None
    filters: Sequence[Filter] = TEXT_FILTERS
    near_duplicate: float = 0.8
    generic_matches: int | None = 20
    round_trip_k: int | None = 20
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float | None = 300.0
    cache_dir: CacheDir = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        check_whole("concurrency", self.concurrency)
        for name in ("max_chunks", "max_passage_tokens", "generic_matches", "round_trip_k"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        for name in ("requests_per_minute", "timeout_s"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0.0)
        check_number("near_duplicate", self.near_duplicate, above=0.0, most=1.0)
        check_whole("seed", self.seed, least=0)
        if self.completion is not None:
            check_kind("completion", self.completion, bool, "True, False or None")
        if isinstance(self.styles, str) or not isinstance(self.styles, Iterable):
            raise OptionError(f"styles: expected a list of names, got {self.styles!r}.")
        pair = ("", "") if self.labels is None else self.labels
        if not isinstance(pair, (tuple, list)) or [type(each) for each in pair] != [str, str]:
            raise OptionError(f'labels: expected two, as ("Text", "Query"), got {self.labels!r}.')
        if self.embed_model is not None:
            object.__setattr__(self, "embed_model", check_base(self.embed_model, "embed_model"))
        check_kind("filters", self.filters, Iterable, "a list of functions")
        odd = [each for each in self.filters if not callable(each)]
        if odd:
            raise OptionError(f"filters: expected functions of a Candidate, got {odd[0]!r}.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Build from keyword arguments, or raise an OptionError."""
        if {"executor", "actors"} & set(options):
            warnings.warn(
                "executor and actors have no effect any more: an LLM is bound by the network, and "
                "one process asks as fast as many. Raise concurrency instead.",
                DeprecationWarning,
                stacklevel=4,
            )
            options = {k: v for k, v in options.items() if k not in ("executor", "actors")}
        check_known(options, (field.name for field in fields(cls)), what="Generation")
        shown = options.get("examples") is not None
        loose = _WITH_EXAMPLES if shown else {}
        found = cls(**{**loose, **options})
        if idle := [name for name in _IDLE[shown] if getattr(found, name) != getattr(cls, name)]:
            beside = "beside examples, which decide" if shown else "without examples"
            warnings.warn(f"{', '.join(idle)}: no effect {beside}.", stacklevel=4)
        return found

    def shown(self, corpus: Mapping[str, str]) -> tuple[Example, ...]:
        """Return the examples, 8 of over 30; the nearest passage stands in for an unknown one."""
        pairs = [] if self.examples is None else read_examples(self.examples)
        random.Random(self.seed).shuffle(pairs)
        first = {pair.passage or pair.query: pair for pair in reversed(pairs)}
        pairs.sort(key=lambda pair: first[pair.passage or pair.query] is not pair)
        pairs = pairs[: DRAWN_EXAMPLES if len(pairs) > MOST_EXAMPLES else None]
        if all(pair.passage for pair in pairs):
            return tuple(pairs)
        if self.embed_model is None:
            raise OptionError(
                "examples: queries without passages need embed_model=…, whose nearest passage "
                "stands in for the right one. Or give the passages."
            )
        texts = list(dict.fromkeys(corpus.values()))
        settings: Any = {"cache_dir": self.cache_dir, "show_progress": self.show_progress}
        with Encoder(self.embed_model, **settings) as encoder:
            documents = l2_normalize(encoder.encode(texts, "document"))
            queries = l2_normalize(encoder.encode([pair.query for pair in pairs], "query"))
        return tuple(
            pair if pair.passage else Example(texts[row], pair.query, judged=False)
            for pair, row in zip(pairs, (queries @ documents.T).argmax(axis=1), strict=True)
        )

    def prompts(
        self, questions: int, template: Any | None, examples: tuple[Example, ...], llm: LLM
    ) -> PromptConfig:
        """Return what is asked about each passage; examples that do not fit are left out."""
        completes = self.completion
        if completes is None and examples:
            small = isinstance(llm, LocalLlama) and llm.is_small
            completes = small or not llm.metadata.is_chat_model
        asked = (questions, tuple(self.styles), self.questions_per_call, template, examples)
        prompts = PromptConfig(*asked, self.labels or labels_of(examples), bool(completes))
        most = llm.metadata.context_window / 2
        while len(prompts.examples) > FEWEST_EXAMPLES and frame_tokens(prompts) > most:
            prompts = replace(prompts, examples=prompts.examples[:-1])
        return prompts


def frame_tokens(prompts: PromptConfig) -> int:
    """Return about how many tokens are sent besides a passage."""
    return max(count_tokens(request.text) for request in prompts.requests("", 0))


def labels_of(examples: Sequence[Example]) -> tuple[str, str]:
    """Guess what to call the passages and the queries of examples."""
    code = "".join(example.passage for example in examples)
    is_code = sum(map(code.count, _OF_CODE)) > _SHARE_OF_CODE * len(code)
    asks = all(is_question(example.query) for example in examples)
    return "Code" if is_code else "Passage", "Question" if asks else "Query"


def asked_in(
    given: Any,
    read: Callable[[Any], Dataset] | None = None,
    columns: Mapping[str, Any] | None = None,
) -> list[str] | Dataset:
    """Return the queries of a text file, or of rows without passages; others are a dataset.

    Rows may be in the file at a :class:`~pathlib.Path`.
    """
    if isinstance(given, Path) and given.suffix.lower() == ".txt":
        return read_lines(given)
    with suppress(DatasetError):  # whoever reads a dataset says what is wrong
        queries, judged = queries_of(given, columns or {})
        if not judged:
            return queries
    read = read or (Dataset.from_file if isinstance(given, Path) else Dataset.from_records)
    return read(given)


def read_examples(given: Any) -> list[Example]:
    """Read queries of users, with the passage that answers each best, empty where none is known.

    ``given`` is a dataset, records, a list of queries, or the path of a file of either. Fewer than
    three are an OptionError, what cannot be read is a DatasetError.
    """
    if isinstance(given, (str, Path)):
        given = Path(given)
    elif isinstance(given, Iterator):
        given = list(given)
    data = given if isinstance(given, Dataset) else asked_in(given)
    if isinstance(data, Dataset):
        best = (
            max(data.relevant_docs.get(query, ()), key=partial(data.grade, query), default="")
            for query in data.queries
        )
        passages = [data.corpus.get(document, "") for document in best]
        texts = list(data.queries.values())
    else:
        texts = [text for text in data if text.strip()]
        passages = [""] * len(texts)
    queries = (" ".join(text.split()) for text in texts)
    found = [Example(*each) for each in zip(passages, queries, strict=True)]
    repeats = near_duplicates([example.query for example in found])
    found = [example for row, example in enumerate(found) if row not in repeats]
    if len(found) < FEWEST_EXAMPLES:
        raise OptionError(
            f"examples: expected {FEWEST_EXAMPLES} to {MOST_EXAMPLES} different queries, with the "
            f"passages that answer them if known, got {len(found)}."
        )
    return found


def embedded_tokens(embed_model: BaseEmbedding | None) -> int | None:
    """Return how many tokens of a text the model embeds, None where it does not say."""
    length = getattr(embed_model, "max_length", None)
    return length if isinstance(length, int) and length > 0 else None


@dataclass(frozen=True)
class Passage:
    """A distinct text as it is embedded, the ids of its nodes, and of its source document."""

    nodes: tuple[str, ...]
    text: str
    source: str


def nodes_of(nodes: Iterable[BaseNode]) -> list[BaseNode]:
    """Return nodes as a list, or raise a DatasetError for what is none."""
    listed = list(nodes) if isinstance(nodes, Iterable) else [nodes]
    if odd := [type(each).__name__ for each in listed if not isinstance(each, BaseNode)]:
        hint = "Of texts they are made by [TextNode(text=text) for text in texts]."
        raise DatasetError(f"nodes: expected a list of LlamaIndex's nodes, got {odd[0]}. {hint}")
    return listed


def corpus_of(nodes: Iterable[BaseNode]) -> dict[str, str]:
    """Return node id → text as it is embedded, if it has any, or raise a DatasetError."""
    pairs = [(node.node_id, node.get_content(MetadataMode.EMBED)) for node in nodes]
    corpus = files.unique(pairs, what="node", error=DatasetError)
    kept = {node: text for node, text in corpus.items() if text.strip()}
    if not kept:
        raise DatasetError(f"nodes: expected at least one with text, got {len(corpus)} without.")
    if len(kept) < len(corpus):
        count = f"{len(corpus) - len(kept)} of {len(corpus)}"
        warnings.warn(f"Left out {count} nodes: no text.", stacklevel=4)
    return kept


def passages_of(nodes: Sequence[BaseNode], corpus: Mapping[str, str]) -> list[Passage]:
    """Group the nodes of a corpus by text: what is the same is asked about once."""
    sources = {node.node_id: node.ref_doc_id or node.node_id for node in nodes}
    groups: dict[str, list[str]] = defaultdict(list)
    for node, text in corpus.items():
        groups[text].append(node)
    return [Passage(tuple(ids), text, sources[ids[0]]) for text, ids in groups.items()]


def sample(passages: Sequence[Passage], most: int | None, *, seed: int) -> list[Passage]:
    """Choose passages so that every source document gives about the same number.

    Documents take turns, each giving a random passage of its own; near repetitions are left out. A
    larger sample contains the smaller one of the same seed; the given order stays.
    """
    if most is None:
        return list(passages)
    by_source: dict[str, list[int]] = defaultdict(list)
    for row, passage in enumerate(passages):
        by_source[passage.source].append(row)
    randomness = random.Random(seed)
    order = sorted(by_source)
    randomness.shuffle(order)
    for source in order:
        randomness.shuffle(by_source[source])
    turns = zip_longest(*(by_source[source] for source in order))
    drawn = [row for turn in turns for row in turn if row is not None]
    repeats = near_duplicates([passages[row].text for row in drawn])
    chosen = [row for place, row in enumerate(drawn) if place not in repeats][:most]
    return [passages[row] for row in sorted(chosen)]


def truncate_to_tokens(text: str, tokens: int) -> str:
    """Return a text of plain spaces, cut at a word to at most about so many tokens."""
    plain = _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()
    if len(plain.encode("utf-8", "replace")) <= tokens:
        return plain
    while (needed := count_tokens(plain)) > _MARGIN * tokens:
        keep = int(len(plain) * min(0.95, _MARGIN * tokens / needed))
        if not (shorter := plain[:keep].rsplit(None, 1)):  # one character is too much already
            break
        plain = shorter[0]
    return plain


def hold_out_documents(
    dataset: Dataset, nodes: Iterable[BaseNode], test_size: float | int = 0.2, *, seed: int = 0
) -> tuple[Dataset, Dataset]:
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
    sources = {node.node_id: node.ref_doc_id or node.node_id for node in nodes_of(nodes)}
    unknown = [document for document in dataset.corpus if document not in sources]
    if unknown:
        raise DatasetError(
            f"nodes: expected the nodes of all {len(dataset.corpus)} documents, {len(unknown)} are "
            f'missing (first: "{unknown[0]}"). Pass the nodes that the questions were written from.'
        )
    relevant = {q: [sources[d] for d in docs] for q, docs in dataset.relevant_docs.items()}
    return contents.split(dataset, relevant, test_size, by="document", seed=seed)
