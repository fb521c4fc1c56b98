"""Encoded datasets whose answer is known, for what learns from arrays."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.training.auto import cross_fitting, pipelines
from llama_index_embeddings_adapted.training.auto.selection import CrossFittedScores, QueryMix


def encoded(queries: Any, documents: Any, relevant: list[list[int]]) -> EncodedDataset:
    sides = {"q": queries, "d": documents}.items()
    ids = (tuple(f"{kind}{row}" for row in range(len(side))) for kind, side in sides)
    rows, relevance = np.arange(len(documents)), Qrels.from_lists(relevant)
    vectors = np.float32(queries), np.float32(documents)
    return EncodedDataset(*vectors, relevance, *ids, rows, rows.astype(np.uint64))


def found_first(data: EncodedDataset, queries: Any, documents: Any) -> float:
    """The share of judged pairs whose document is the first of its query."""
    return float((data.relevance.ranks(*map(l2_normalize, (queries, documents))) == 0).mean())


def rotated_corpus(
    *, documents: int = 200, per_document: int = 3
) -> tuple[EncodedDataset, np.ndarray]:
    """Queries are their documents, rotated, with noise: a linear map can undo it.

    Returns the data, of 12 dimensions, and the rotation that takes documents to queries.
    """
    random = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(random.standard_normal((12, 12)))
    corpus = l2_normalize(random.standard_normal((documents, 12)))
    answers = np.repeat(np.arange(documents), per_document)
    noise = 0.1 * random.standard_normal((len(answers), 12))
    queries = l2_normalize(corpus[answers] @ rotation.T + noise)
    return encoded(queries, corpus, [[answer] for answer in answers]), rotation


def several_answers() -> EncodedDataset:
    """60 queries near their one to three answers among 40 documents, ten of which answer none."""
    random = np.random.default_rng(0)
    corpus = l2_normalize(random.standard_normal((40, 8)))
    answers = [random.choice(30, size=random.integers(1, 4), replace=False) for _ in range(60)]
    asked = np.stack([corpus[rows].sum(axis=0) for rows in answers])
    queries = l2_normalize(asked + random.standard_normal((60, 8)))
    return encoded(queries, corpus, [rows.tolist() for rows in answers])


@dataclass(frozen=True)
class Named(pipelines.PipelineSpec):
    """A spec with nothing but a name; it changes nothing."""

    method = "named"
    name: str

    def fit(self, fitter: pipelines.PipelineFitter) -> Adapter:
        return fitter.fit(pipelines.IDENTITY)

    def __str__(self) -> str:
        return self.name


def cross_fitted(
    known: Iterable[bool],
    *,
    expect: float = 0.5,
    given: bool = False,
    rows: np.ndarray | None = None,
    base: float = 0.5,
    **scores: Any,
) -> CrossFittedScores:
    """Judgements of one fold with scores by hand; the base model has the same everywhere."""
    flags = np.array(list(known), dtype=bool)
    rows = np.arange(len(flags)) if rows is None else rows
    fold = cross_fitting.Fold(None, cross_fitting.TestFold(None, rows, None, None, flags))
    found = CrossFittedScores([fold], QueryMix(expect, given), *2 * [np.arange(len(flags))])
    found.scores = {pipelines.IDENTITY: np.full(len(flags), base)}
    for name, values in scores.items():
        found.scores[Named(name)] = np.broadcast_to(values, flags.shape).astype(float)
    return found
