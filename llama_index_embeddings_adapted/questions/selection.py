"""From everything that was written to what is kept: filters, then the base model; drops counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..core.arrays import Mask, Rows, Vectors, l2_normalize, score_blocks
from ..encoding.encoder import Encoder
from ..errors import quote_some, truncate
from .answers import is_question
from .filters import Candidate, Filter, count_words, near_duplicates
from .options import GenerationOptions
from .prompts import Example

_ABOUT_AS_WELL = 0.9
_REPEATS = ("near_duplicate", "an_example")


class Dropped(NamedTuple):
    """A question that was not kept, and the name of the filter that objected."""

    candidate: Candidate
    reason: str


class BaseCost(NamedTuple):
    """What was sent to a base model; texts whose vectors were kept cost nothing."""

    calls: int = 0
    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True, eq=False)
class QuestionReport:
    """What became of every question; printing it shows a table.

    Args:
        kept: In the order of the dataset.
        dropped: In the order they were dropped.
        passages: How many passages were asked about.
        shown: The examples that the questions were to be like; judge on none of them.
        failed: Passage id → why there is no answer about it.
        cut: How many passages were too long and sent only up to a limit.
        calls: Calls made to the LLM in this run; answers found in the journal cost none.
        calls_saved: Answers found in the journal.
        prompt_tokens: Billed for this run's calls, as far as the provider said.
        completion_tokens: Likewise.
        seconds: Wall time.
        base: What the filters asked of the base model in this run.
    """

    kept: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]
    passages: int
    shown: tuple[Example, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    calls: int = 0
    calls_saved: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    base: BaseCost = field(default_factory=BaseCost)

    def plus(self, other: QuestionReport) -> QuestionReport:
        """Return the questions of both, and the costs of this run and of judging the other's."""
        cost = BaseCost(*map(sum, zip(self.base, other.base, strict=True)))
        kept, dropped = self.kept + other.kept, self.dropped + other.dropped
        return replace(self, kept=kept, dropped=dropped, base=cost)

    @property
    def written(self) -> int:
        """How many questions there were before filtering."""
        return len(self.kept) + len(self.dropped)

    @property
    def kept_fraction(self) -> float:
        """Kept of written, in [0, 1]; 0 where nothing was written."""
        return len(self.kept) / self.written if self.written else 0.0

    @property
    def reasons(self) -> dict[str, int]:
        """Reason → how many questions were dropped for it, most frequent first."""
        return dict(Counter(drop.reason for drop in self.dropped).most_common())

    def examples(self, reason: str, limit: int = 3) -> list[str]:
        """Return the first few questions that were dropped for a reason."""
        return [d.candidate.text for d in self.dropped if d.reason == reason][:limit]

    def not_shown(self, queries: Mapping[str, str]) -> list[str]:
        """Return the ids of those, id → text, that are like none the writer was shown."""
        shown = [example.query for example in self.shown]
        twins = near_duplicates([*shown, *queries.values()])
        rows = enumerate(queries, start=len(shown))
        return [query for row, query in rows if twins.get(row, row) >= len(shown)]

    def to_dict(self) -> dict[str, Any]:
        """Return counts and examples as JSON knows them."""
        counts = ("cut", "calls", "calls_saved", "prompt_tokens", "completion_tokens", "seconds")
        return {
            "written": self.written,
            "kept": len(self.kept),
            "dropped": self.reasons,
            "examples": {reason: self.examples(reason) for reason in self.reasons},
            "passages": self.passages,
            "shown": [example.query for example in self.shown],
            "failed": dict(self.failed),
            **{name: getattr(self, name) for name in counts},
            **{f"base_{name}": number for name, number in self.base._asdict().items()},
        }

    def to_markdown(self) -> str:
        """Return the table: what was written, kept and dropped, with an example of each."""
        rows = [
            ("**written**", self.written, ""),
            ("**kept**", len(self.kept), self.kept[0].text if self.kept else ""),
            *((r.replace("_", " "), n, self.examples(r, 1)[0]) for r, n in self.reasons.items()),
        ]
        lines = ["| questions | number | share | for example |", "|---|---:|---:|---|"]
        for name, number, example in rows:
            share = number / self.written if self.written else 0.0
            shown = truncate(example, 70).replace("|", "\\|")
            lines.append(f"| {name} | {number:,} | {share:.0%} | {shown} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        stand_ins = sum(not example.judged for example in self.shown)
        told = f", {stand_ins} beside the base model's nearest passage" if stand_ins else ""
        facts = {
            f"{self.passages:,} passages, {self.seconds:.1f} s": True,
            f"like {len(self.shown)} examples{told}": self.shown,
            f"{self.calls:,} calls made, {self.calls_saved:,} answers found on disk": (
                self.calls or self.calls_saved
            ),
            f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens": (
                self.prompt_tokens or self.completion_tokens
            ),
            f"{self.base.texts:,} texts embedded in {self.base.calls:,} calls": self.base.texts,
            f"{self.cut:,} passages sent only in part": self.cut,
        }
        text = f"{self.to_markdown()}\n{'; '.join(fact for fact, told in facts.items() if told)}"
        if self.kept:
            text += f"\nKept: {quote_some([candidate.text for candidate in self.kept], limit=5)}"
        if self.failed:
            text += f"\nNo answer about {len(self.failed):,} passages: {_grouped(self.failed)}"
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.kept)} of {self.written} questions kept)"


def _grouped(failed: Mapping[str, str]) -> str:
    """Name the commonest failures with the first passages concerned."""
    first = {reason: passage for passage, reason in reversed([*failed.items()])}
    common = Counter(failed.values()).most_common(3)
    return "; ".join(f"{n} × {reason} (first: {first[reason]})" for reason, n in common)


class RoundTrip(NamedTuple):
    """How each of ``n`` questions ranks its passage among all."""

    ranks: Rows  #: ``(n,)``, how many other passages score higher; 0 is first
    rivals: Rows  #: ``(n,)``, how many other passages reach 90 % of its passage's cosine
    strange: Mask  #: ``(n,)``, whether it is farther from the examples than they are
    usual: tuple[int, int]  #: the largest rank, and number of rivals, of an example; else 0
    cost: BaseCost


def round_trip(
    candidates: Sequence[Candidate],
    corpus: Mapping[str, str],
    embed_model: BaseEmbedding,
    *,
    examples: Sequence[Example] = (),
    **settings: Any,
) -> RoundTrip:
    """Search the distinct texts of a corpus for each question, or raise an EncodeError."""
    judged = {example.query: example.passage for example in examples if example.judged}
    texts = list(dict.fromkeys([*corpus.values(), *judged.values()]))
    row_of = {text: row for row, text in enumerate(texts)}
    asked = [candidate.text for candidate in candidates]
    shown = [*judged, *(example.query for example in examples if not example.judged)]
    with Encoder(embed_model, **settings) as encoder:
        documents = l2_normalize(encoder.encode(texts, "document"))
        vectors = l2_normalize(encoder.encode(asked + shown, "query"))
    count, known = len(asked), len(asked) + len(judged)
    passages = [*(corpus[c.document] for c in candidates), *judged.values()]
    own = np.array([row_of[text] for text in passages], dtype=np.int64)
    ranks, rivals = _ranked(vectors[:known], documents, own)
    usual = (int(ranks[count:].max(initial=0)), int(rivals[count:].max(initial=0)))
    cost = BaseCost(*encoder.spent.values())
    strange = _strange(vectors[:count], vectors[count:])
    return RoundTrip(ranks[:count], rivals[:count], strange, usual, cost)


def _strange(queries: Vectors, examples: Vectors) -> Mask:
    """Tell which queries are farther from the examples' mean than chance lets an example be.

    That is three standard deviations below what each example has with the mean of the others, and
    more where few examples say little of their spread.
    """
    if not len(examples):
        return np.zeros(len(queries), dtype=bool)
    others = l2_normalize(examples.sum(axis=0) - examples)
    usual = (others * examples).sum(axis=1)
    near = queries @ l2_normalize(examples.sum(axis=0, keepdims=True))[0]
    tolerance = 3 + 12 / len(examples)  # about 99 % of the like, as of a normal sample
    return np.asarray(near < usual.mean() - tolerance * usual.std(ddof=1))


def _ranked(queries: Vectors, documents: Vectors, own: Rows) -> tuple[Rows, Rows]:
    ranks, rivals = np.empty((2, len(queries)), dtype=np.int64)
    for part, _, scores in score_blocks(queries, documents, width=len(documents)):
        mine = np.take_along_axis(scores, own[part, None], axis=1)
        ranks[part] = (scores > mine).sum(axis=1)
        near = scores >= np.where(mine > 0, _ABOUT_AS_WELL * mine, mine)
        rivals[part] = near.sum(axis=1) - 1
    return ranks, rivals


def select(
    candidates: Sequence[Candidate],
    corpus: Mapping[str, str],
    options: GenerationOptions,
    *,
    most: int,
    examples: Sequence[Example] = (),
) -> tuple[list[Candidate], list[Dropped], BaseCost]:
    """Apply text filters, near-duplicates, base model; return kept, dropped and what it cost."""
    dropped: list[Dropped] = []

    def without(found: Sequence[Candidate], reasons: Iterable[str | None]) -> list[Candidate]:
        judged = list(zip(found, reasons, strict=True))
        dropped.extend(Dropped(candidate, reason) for candidate, reason in judged if reason)
        return [candidate for candidate, reason in judged if not reason]

    filters = _filters(options.filters, examples)
    objecting = (next((_name(f) for f in filters if f(c)), None) for c in candidates)
    kept = without(candidates, objecting)
    count: Counter[str] = Counter()

    def beyond(candidate: Candidate) -> str | None:
        count[candidate.document] += 1
        return "more_than_asked" if count[candidate.document] > most else None

    kept = without(kept, map(beyond, kept))
    texts = [example.query for example in examples]
    repeats = near_duplicates(texts + [c.text for c in kept], threshold=options.near_duplicate)
    twins = [repeats.get(row + len(texts)) for row in range(len(kept))]
    kept = without(kept, (t if t is None else _REPEATS[t < len(texts)] for t in twins))
    if options.embed_model is None or not kept:
        return kept, dropped, BaseCost()
    settings = {"cache_dir": options.cache_dir, "show_progress": options.show_progress}
    found = round_trip(kept, corpus, options.embed_model, examples=examples, **settings)
    rank, rivals = found.usual  # where an example goes, others may
    objections = {"unlike_examples": found.strange}
    if options.generic_matches is not None:
        objections["generic"] = found.rivals > max(rivals, options.generic_matches)
    if options.round_trip_k is not None:
        objections["round_trip"] = found.ranks >= max(rank + 1, options.round_trip_k)
    rows = range(len(kept))
    reasons = [next((name for name, each in objections.items() if each[r]), None) for r in rows]
    return without(kept, reasons), dropped, found.cost


def _filters(filters: Sequence[Filter], examples: Sequence[Example]) -> tuple[Filter, ...]:
    """Leave out filters that object to an example; add what the examples agree on.

    So a filter that objects to a share p of real queries is kept with a chance of (1 - p)^n for n
    examples: it drops under 5 % of them on average, whatever p is, for the usual eight.
    """
    if not examples:
        return tuple(filters)
    shown = [Candidate(example.query, "", example.passage) for example in examples]

    def objects(judge: Filter) -> bool:
        with suppress(LookupError):  # of documents: an example may be about none of them
            return any(map(judge, shown))
        return False

    own = (judge for judge in filters if not objects(judge))
    return (*own, _form([example.query for example in examples]))


def _name(judge: Filter) -> str:
    """Return the name of a function, or of what else is called like one."""
    judge = judge.func if isinstance(judge, partial) else judge
    return getattr(judge, "__name__", type(judge).__name__)


def _form(queries: Sequence[str]) -> Filter:
    lengths = sorted(map(count_words, queries))
    asks = set(map(is_question, queries))

    def unlike_examples(candidate: Candidate) -> bool:
        """Under half the shortest or over twice the longest, or a question where none is one."""
        fits = lengths[0] <= 2 * count_words(candidate.text) <= 4 * lengths[-1]
        return not fits or asks == {not is_question(candidate.text)}

    return unlike_examples
