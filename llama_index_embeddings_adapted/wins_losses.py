"""Which queries a model wins and loses against another, with the passages that each finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llama_index_embeddings_adapted.errors import OptionError, shorten
from llama_index_embeddings_adapted.evaluation import RetrievalScores, Texts
from llama_index_embeddings_adapted.vectors import Rows

MOST_ROWS = 100  #: wins, and as many losses; the largest
MOST_CHARACTERS = 400  #: of a passage
_FIRST = 3  # passages shown of each model
_MOST_RELEVANT = 3
_NIL = 1e-9


@dataclass(frozen=True)
class Passage:
    """A document as a row shows it."""

    id: str
    text: str
    relevant: bool


@dataclass(frozen=True)
class Row:
    """One query whose score changed.

    Args:
        kind: ``"win"`` or ``"loss"``.
        change: Of the metric.
        query: Its text.
        ranks: Of its first relevant document before and after, in words.
        relevant: The first few of its relevant documents.
        before: What the base finds first.
        after: What the new model finds first.
    """

    kind: str
    change: str
    query: str
    ranks: str
    relevant: tuple[Passage, ...]
    before: tuple[Passage, ...]
    after: tuple[Passage, ...]


@dataclass(frozen=True)
class WinsLosses:
    """Rows, and how many there are besides."""

    base: str
    new: str
    summary: str
    rows: tuple[Row, ...]


def wins_losses(
    base: tuple[str, RetrievalScores],
    new: tuple[str, RetrievalScores],
    texts: Texts | None,
    *,
    metric: str,
) -> WinsLosses:
    """Compare two models query by query.

    Args:
        base: Name and scores.
        new: Name and scores, of the same queries in the same order.
        texts: Of the queries and documents; None gives counts only.
        metric: Such as ``"ndcg@10"``.

    Raises:
        OptionError: The models were scored on other queries.
    """
    if base[1].query_ids != new[1].query_ids:
        raise OptionError(f"{base[0]} and {new[0]} were scored on different queries.")
    change = new[1].values(metric) - base[1].values(metric)
    order = np.argsort(-change, kind="stable")
    wins = order[change[order] > _NIL]
    losses = order[change[order] < -_NIL][::-1]
    shown = [*wins[:MOST_ROWS], *losses[:MOST_ROWS]]
    summary = (
        f"{len(wins):,} of {len(change):,} queries win, {len(losses):,} lose and "
        f"{len(change) - len(wins) - len(losses):,} stay as they are, by {metric}."
    )
    if texts is None:
        return WinsLosses(base[0], new[0], summary, ())
    if len(shown) < len(wins) + len(losses):
        summary += f" Shown are the {MOST_ROWS} largest of each; the search looks through those."
    ranks = _first_relevant(base[1]), _first_relevant(new[1])
    rows = [
        Row(
            "win" if change[row] > 0 else "loss",
            f"{change[row]:+.3f}",
            texts.queries[row],
            f"first relevant passage: {_place(base[1], ranks[0][row])} → "
            f"{_place(new[1], ranks[1][row])}",
            _passages(base[1], texts, row, base[1].relevance.of(row)[:_MOST_RELEVANT]),
            _passages(base[1], texts, row, base[1].ranked[row, :_FIRST]),
            _passages(new[1], texts, row, new[1].ranked[row, :_FIRST]),
        )
        for row in map(int, shown)
    ]
    return WinsLosses(base[0], new[0], summary, tuple(rows))


def _first_relevant(scores: RetrievalScores) -> Rows:
    """Return the place of the first relevant document, 0 where none was retrieved."""
    hits = scores.relevance.grades_at(scores.ranked) > 0
    return np.asarray(np.where(hits.any(axis=1), 1 + hits.argmax(axis=1), 0), dtype=np.int64)


def _place(scores: RetrievalScores, rank: int) -> str:
    return f"place {rank}" if rank else f"beyond {scores.ranked.shape[1]}"


def _passages(
    scores: RetrievalScores, texts: Texts, query: int, documents: Iterable[int]
) -> tuple[Passage, ...]:
    relevant = set(scores.relevance.of(query).tolist())
    return tuple(
        Passage(
            scores.document_ids[document],
            shorten(texts.documents[document], MOST_CHARACTERS),
            int(document) in relevant,
        )
        for document in documents
        if document < len(texts.documents)
    )
