"""Encoded datasets whose answer is known, for what learns from arrays."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.training.auto import pipelines
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
    *, documents: int = 200, per_document: int = 3, dim: int = 12, seed: int = 0
) -> tuple[EncodedDataset, np.ndarray]:
    """Queries are their documents, rotated, with noise: a linear map can undo it.

    Returns the data and the rotation that takes documents to queries.
    """
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.standard_normal((dim, dim)))
    corpus = l2_normalize(random.standard_normal((documents, dim)))
    answers = np.repeat(np.arange(documents), per_document)
    noise = 0.1 * random.standard_normal((len(answers), dim))
    queries = l2_normalize(corpus[answers] @ rotation.T + noise)
    return encoded(queries, corpus, [[answer] for answer in answers]), rotation


@dataclass(frozen=True)
class Named(pipelines.PipelineSpec):
    """A spec with nothing but a name; it changes nothing."""

    method = "named"
    name: str

    def fit(self, fitter: pipelines.PipelineFitter) -> Adapter:
        return fitter.fit(pipelines.IDENTITY)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _TestFold:
    known: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class _Fold:
    test: _TestFold


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
    fold = _Fold(_TestFold(flags, np.arange(len(flags)) if rows is None else rows))
    found = CrossFittedScores([fold], QueryMix(expect, given))
    found.scores = {pipelines.IDENTITY: np.full(len(flags), base)}
    for name, values in scores.items():
        found.scores[Named(name)] = np.broadcast_to(values, flags.shape).astype(float)
    return found
