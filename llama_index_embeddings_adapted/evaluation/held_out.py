"""Held-out queries: which ones, how each epoch fares on them, and how the adapter does in the end.

Known and new documents are scored apart. A query is *known* when one of its relevant documents is
relevant to a training query too, else *new*. Held-out queries about known documents look fine for
adapters that merely learn to prefer those documents; only new ones show the harm that does to the
rest of a corpus.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..adapters.base import Adapter
from ..core.arrays import Mask, Rows, RowSource, l2_normalize, normalized_rows, top_k
from ..core.encoded import EncodedDataset, Qrels
from ..data.contents import hold_out_documents
from ..errors import DatasetError
from .retrieval import PerQuery, RetrievalScores, ScoreShift, joined, search
from .verdict import FEWEST, LOOKS_RANDOM, METRIC, Difference, Verdict, dropping, paired_difference

REPORTED = ("hit_rate@1", "hit_rate@5", "hit_rate@10", "mrr@10", "ndcg@10", "recall@10")
_DEPTH = 10
_MOST_LOST = 0.25  # of the training queries, at most, for holding out documents
HELD_OUT = 0.1  # of the queries, alone, and as many with all their documents
_SCORES_PER_JUDGEMENT = 1_000_000_000  # of each kind: half a minute on one core, every epoch
_FEWEST_JUDGES = 500
_RANDOM_LEVEL = 0.01  # one-sided, for labels that look random
_MOST_LOOKED_AT = 1_000  # queries, for that
_ENOUGH_NEW = 100  # new-document queries in a validation set that make holding out more needless


@dataclass(frozen=True, eq=False)
class PartReport:
    """Base and adapted model on the same held-out queries: means by metric, change in NDCG@10."""

    base: Mapping[str, float]
    adapted: Mapping[str, float]
    difference: Difference

    @property
    def queries(self) -> int:
        """How many were compared."""
        return self.difference.queries

    def __str__(self) -> str:
        interval = f"[{self.difference.low:+.4f}, {self.difference.high:+.4f}]"
        return f"NDCG@10 {self.base[METRIC]:.4f} → {self.adapted[METRIC]:.4f} {interval}"

    def to_dict(self) -> dict[str, Any]:
        """Return the part as JSON knows it."""
        means = {"base": dict(self.base), "adapted": dict(self.adapted)}
        return {"queries": self.queries, **means, "difference": self.difference.to_dict()}


class Parts(NamedTuple):
    """Base and adapted model on all, known and new queries; None of a part without any."""

    overall: PartReport
    known: PartReport | None
    new: PartReport | None

    @property
    def loss(self) -> Verdict | None:
        """The verdict on the part that surely loses, if one does and has enough queries."""
        for documents, part in (("known", self.known), ("new", self.new)):
            if part is not None and part.queries >= FEWEST and part.difference.high < 0:
                return dropping(documents, part.difference)
        return None


def compare_by_part(base: RetrievalScores, adapted: RetrievalScores, known: Mask) -> Parts:
    """Compare two models on all queries, on the known and on the new."""

    def part(keep: Mask) -> PartReport:
        kept = [{name: found.values(name)[keep] for name in REPORTED} for found in (base, adapted)]
        first, second = ({name: float(one[name].mean()) for name in one} for one in kept)
        groups = None if base.groups is None else base.groups[keep]
        difference = paired_difference(*(one[METRIC] for one in kept), groups=groups)
        return PartReport(first, second, difference)

    sides = (part(keep) if keep.any() else None for keep in (known, ~known))
    return Parts(part(np.ones(len(known), dtype=bool)), *sides)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Queries that training does not see, and of each whether it has others for their documents."""

    data: EncodedDataset
    known: Mask

    @cached_property
    def searched(self) -> tuple[RowSource, Qrels]:
        """Documents of length 1, and what counts as relevant."""
        return normalized_rows(self.data.documents), self.data.scored


class Validation:
    """Scores adapters on held-out queries, whose parts may be searched in different corpora.

    ``expect`` is the share of live queries that will ask for known documents, in [0, 1], if it is
    known; candidates are then judged by that mixture. ``base_scores`` is what the base model finds,
    ``base``, ``(n,)``, its NDCG@10.
    """

    def __init__(self, *parts: HeldOut, expect: float | None = None) -> None:
        self.expect = expect
        self.parts = [part for part in parts if len(part.known)]
        self.known: Mask = np.concatenate([part.known for part in self.parts])
        self.base_scores = self.judge(None)
        self.base: PerQuery = self.base_scores.values(METRIC)

    def __len__(self) -> int:
        return len(self.known)

    def score(self, adapter: Adapter) -> PerQuery:
        """Return NDCG@10 of each held-out query, ``(n,)``."""
        values = []
        for part in self.parts:
            documents, truth = part.searched
            queries = l2_normalize(adapter.apply(part.data.queries))
            values.append(truth.ndcg(queries, documents, _DEPTH, part.data.hidden))
        return np.concatenate(values)

    def judge(self, adapter: Adapter | None) -> RetrievalScores:
        """Return what an adapter finds, or the base model, for all held-out queries."""
        found = []
        for data in (part.data for part in self.parts):
            queries = data.queries if adapter is None else adapter.apply(data.queries)
            found.append(search(data, queries, data.documents))
        return joined(found)


@dataclass(frozen=True)
class Gain:
    """The mean change in NDCG@10 over the base model, on known and on new documents.

    ``parts`` has that of ``"known"`` and ``"new"``, where there are held-out queries, and
    ``"overall"``: the mean over all of them, or the expected mixture of the two. ``harmless``:
    neither part lost more than its standard error; one of fewer than 20 queries tells nothing.
    Where the mixture is known, its gain decides alone.
    """

    parts: Mapping[str, float]
    harmless: bool

    @property
    def overall(self) -> float:
        """The gain that decides."""
        return self.parts["overall"]

    @classmethod
    def of(cls, validation: Validation, scores: PerQuery) -> Gain:
        """Summarise per-query scores."""
        change = scores - validation.base
        both = {"known": change[validation.known], "new": change[~validation.known]}
        gains = {part: float(own.mean()) for part, own in both.items() if len(own)}
        if (known := validation.expect) is not None:
            shares = {"known": known, "new": 1.0 - known}
            weight = sum(shares[part] for part in gains)
            mixed = sum(shares[part] * gain for part, gain in gains.items())
            return cls({"overall": mixed / weight if weight else 0.0, **gains}, harmless=True)
        telling = [own for own in both.values() if len(own) >= FEWEST]
        harmless = all(own.mean() >= -own.std(ddof=1) / len(own) ** 0.5 for own in telling)
        return cls({"overall": float(change.mean()), **gains}, harmless)


def hold_out_split(
    data: EncodedDataset,
    given: EncodedDataset | None,
    *,
    alone: bool = False,
    expect: float | None,
    seed: int,
) -> tuple[EncodedDataset, Validation]:
    """Decide what to train on, and to validate on besides ``given``, or raise a DatasetError.

    ``alone``: on nothing besides.
    """
    check_queries_differ(data)
    # Judging takes queries times documents.
    judges = max(_FEWEST_JUDGES, _SCORES_PER_JUDGEMENT // max(1, len(data.documents)))
    most = judges / max(1, len(data.relevance))
    by_query, by_document = min(HELD_OUT, most) if given is None else 0.0, min(HELD_OUT, most)
    new_given = 0 if given is None else (~known_mask(data, given)).sum()
    if alone or expect == 1.0 or new_given >= _ENOUGH_NEW:
        by_document = 0.0
    rows, held = hold_out(data, queries=by_query, documents=by_document, seed=seed)
    train = data.take(rows)
    parts = [part for part in (given, data.take(held)) if part is not None and len(part.relevance)]
    check_split(data, len(rows), sum(len(part.relevance) for part in parts))
    judged = (HeldOut(part, known_mask(train, part)) for part in parts)
    return train, Validation(*judged, expect=expect)


def check_split(data: EncodedDataset, train: int, judged: int) -> None:
    """Refuse, by a DatasetError, a split that leaves no query to learn from, or none to judge."""
    if not train or not judged:
        raise DatasetError(
            "Training needs queries to learn from and queries to validate on; "
            f"{len(data.relevance)} leave {train} and {judged}. Add queries, or pass val_dataset."
        )


def hold_out(
    data: EncodedDataset, *, queries: float, documents: float, seed: int
) -> tuple[Rows, Rows]:
    """Choose rows of training queries to train on, and rows to validate on.

    Of the queries, about the share ``documents`` is held out with all their documents, fewer or
    none where documents are shared by so many queries that this would cost training too much, and
    ``queries`` of the rest alone. Queries that ask for held-out and other documents are in neither.
    """
    equal: dict[int, list[int]] = {}  # asked again, or the same to the base model
    for row, asked in enumerate(data.same.tolist()):
        equal.setdefault(asked, []).append(row)
    groups = {members[0]: members for members in equal.values()}
    wants = {
        group: {int(d) for q in members for d in data.canonical_rows[data.relevance.relevant_to(q)]}
        for group, members in groups.items()
    }
    taken, lost = hold_out_documents(wants, wanted=round(documents * len(groups)), seed=seed)
    if len(taken) + len(lost) > (documents + _MOST_LOST) * len(groups):
        taken, lost = set(), set()
    rest = np.array([group for group in groups if group not in taken and group not in lost])
    alone = np.random.default_rng(seed).permutation(rest)[: round(queries * len(rest))]
    chosen = sorted(row for group in [*taken, *alone.tolist()] for row in groups[group])
    dropped = [row for group in lost for row in groups[group]]
    held = np.array(chosen, dtype=int)
    return np.setdiff1d(np.arange(len(data.relevance)), [*chosen, *dropped]), held


def known_mask(train: EncodedDataset, other: EncodedDataset) -> Mask:
    """Return which queries of ``other`` share a document, by its text, with one of ``train``."""
    asked, truth = train.keys[train.relevance.documents], other.relevance
    return truth.where(np.isin(other.keys[truth.documents], asked)).counts > 0


def check_queries_differ(data: EncodedDataset) -> None:
    """Refuse, by a DatasetError, a base model that gives all queries the same vector."""
    if len(data.relevance) > 1 and (data.queries == data.queries[0]).all():
        what = f"all {len(data.relevance)} queries the same vector"
        raise DatasetError(f"The base model gives {what}. Are their texts equal, or is it a mock?")


def labels_look_random(data: EncodedDataset, *, seed: int = 0, tell: bool = False) -> bool:
    """Whether the base model ranks the relevant documents no better than randomly assigned ones.

    Such judgements are nearly always a mistake, as of shuffled columns. An adapter can still fit
    them, and even pass cross-fitting, as it learns which documents are asked for at all; served, it
    ruins what the base model can do. 1,000 queries are looked at; ``tell`` prints where they do.
    """
    random = np.random.default_rng(seed)
    sample = data.take(np.sort(random.permutation(len(data.relevance))[:_MOST_LOOKED_AT]))
    truth = sample.relevance
    # The same documents as often, so that one that suits every query is no advantage.
    drawn = replace(sample, relevance=replace(truth, documents=random.permutation(truth.documents)))
    found = search(sample, sample.queries, sample.documents)
    by_chance = replace(found, relevance=drawn.scored)
    both = (each.values("mrr@10") for each in (by_chance, found))
    difference = paired_difference(*both, metric="mrr@10", seed=seed, groups=found.groups)
    random_looking = not (difference.mean > 0 and difference.p_value <= 2 * _RANDOM_LEVEL)
    if random_looking and tell:
        tqdm.write(f"Look at your data: {LOOKS_RANDOM.reason}.", file=sys.stderr)
    return random_looking


def scoring_notes(data: EncodedDataset, adapter: Adapter) -> dict[str, list[str]]:
    """Return what a report says of the scoring, and of what an adapter does to cut-offs."""
    if adapter.is_identity:
        return {"notes": list(data.notes)}
    step = -(-len(data.queries) // _MOST_LOOKED_AT)
    queries, documents = data.queries[::step], adapter.apply(data.documents, "document", data.keys)
    sides = ((queries, data.documents), (adapter.apply(queries), documents))
    best = (top_k(l2_normalize(one), normalized_rows(other), 1)[1][:, 0] for one, other in sides)
    return {"notes": [*data.notes, str(ScoreShift.of(*best))]}


def drop_leaked_queries(train: EncodedDataset, given: EncodedDataset) -> EncodedDataset:
    """Leave out training queries that are also in the validation set: they would prove nothing.

    That all of them are is a DatasetError.
    """
    vectors = {vector.tobytes() for vector in given.queries}
    seen = np.array([vector.tobytes() in vectors for vector in train.queries])
    seen |= np.isin(train.groups, given.groups)
    own = np.flatnonzero(~seen)
    shared = len(train.queries) - len(own)
    if shared and not len(own):
        raise DatasetError(
            f"All {shared} training queries are also in val_dataset: none is left to learn from. "
            "Pass others to judge on, or no val_dataset: some are held out then."
        )
    if shared:
        told = "training queries are also in val_dataset; they are not trained on"
        warnings.warn(f"{shared} {told}.", stacklevel=5)
    return train.take(own)
