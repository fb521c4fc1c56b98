"""A model and a dataset in, retrieval scores out: exact search, every query's value kept.

Metrics follow the definitions of ``trec_eval``: NDCG with linear gain, recall and MAP over all
relevant documents of the query, also those that were not retrieved. Documents that look right to
the base model and are not: what a better model must tell apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..core import arrays
from ..core.arrays import Keys, NormalizedRows, Rows, RowSource, Vectors, l2_normalize, top_k
from ..core.encoded import NO_DOCUMENT, EncodedDataset, Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset, answered
from ..encoding.base_model import adapted, base_of, check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder, with_rows
from ..errors import DatasetError, MetricError, OptionError, check_number, check_whole, quote_some
from ..lexical.bm25 import BM25Index, Mixture

#: What can be scored: see :func:`evaluate_retrieval`.
Retrieving = str | BaseEmbedding | Mixture | BaseRetriever | BM25Index

DEFAULT_KS = (1, 5, 10)
DEPTH = 100  # documents kept per query

PerQuery = arrays.Floats


def _precisions(hits: Any) -> Any:
    """Return the precision at each relevant document, else 0."""
    return np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1) * hits


#: Of the grades of the first ``k`` documents, ``(n, at most k)``.
METRICS: dict[str, Callable[[PerQuery, Qrels, int], Any]] = {
    # 1 where a relevant document is among them, else 0.
    "hit_rate": lambda grades, truth, k: (grades > 0).any(axis=1),
    # 1 / rank of the first relevant document, else 0.
    "mrr": lambda grades, truth, k: (grades > 0).any(axis=1) / (1 + (grades > 0).argmax(axis=1)),
    # Discounted gain over that of the best possible order: Järvelin and Kekäläinen 2002, with
    # gain = grade and discount 1 / log2(rank + 1).
    "ndcg": lambda grades, truth, k: (
        grades @ (1.0 / np.log2(np.arange(2, grades.shape[1] + 2))) / truth.ideal_gain(k)
    ),
    # Share of the relevant documents found.
    "recall": lambda grades, truth, k: (grades > 0).sum(axis=1) / truth.counts,
    # Share of the ``k`` places that hold a relevant document.
    "precision": lambda grades, truth, k: (grades > 0).sum(axis=1) / k,
    # Precision at each relevant document found, over all relevant ones.
    "map": lambda grades, truth, k: _precisions(grades > 0).sum(axis=1) / truth.counts,
}


def compute(name: str, ranked: Rows, relevance: Qrels, *, corpus_size: int) -> PerQuery:
    """Return a metric, as ``"ndcg@10"``, of ``(n, depth)`` rankings, ``(n,)``; or MetricError."""
    metric, k = parse(name)
    if k > ranked.shape[1] and ranked.shape[1] < corpus_size:
        raise MetricError(
            f"{name}: only {ranked.shape[1]} documents per query were retrieved. "
            f"Evaluate with a k of {k} among ks."
        )
    values = METRICS[metric](relevance.grades_at(ranked)[:, :k], relevance, k)
    return np.asarray(values, dtype=np.float64)


def parse(name: str) -> tuple[str, int]:
    """Split ``"ndcg@10"`` in its metric and cut-off, or raise a MetricError."""
    metric, _, cut = name.partition("@")
    if metric not in METRICS or not cut.isdecimal() or int(cut) < 1:
        raise MetricError(
            f'"{name}": expected a metric and a cut-off such as "ndcg@10"; '
            f"metrics are {', '.join(METRICS)}."
        )
    return metric, int(cut)


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """How well a model retrieves: ``scores["ndcg@10"]``, and every query's value.

    Any metric of ``hit_rate``, ``mrr``, ``ndcg``, ``recall``, ``precision``, ``map`` at any cut-off
    up to the depth retrieved (100, or the largest of ``ks``) can be asked for.

    Args:
        ranked: ``(n, depth)``, document rows per query, best first; where parts were joined, they
            may end with :data:`NO_DOCUMENT`.
        relevance: Of the ``n`` queries.
        query_ids: Their ids.
        document_ids: Ids of the documents searched.
        ks: The cut-offs that tables show.
        seconds: Wall time of search and embedding.
        base_calls, base_texts, base_tokens: Calls to the embedding model, 0 where the cache held
            everything; texts sent; their tokens, about: one for every four characters.
        notes: What was scored otherwise than ids and judgements alone would have it.
        seen: How many of the queries the model was trained on, where that is a fifth or more.
        groups: ``(n,)``, equal of queries that are one question asked again; None: all differ.
    """

    ranked: Rows
    relevance: Qrels
    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    ks: tuple[int, ...] = DEFAULT_KS
    seconds: float = 0.0
    base_calls: int = 0
    base_texts: int = 0
    base_tokens: int = 0
    notes: tuple[str, ...] = ()
    seen: str = ""
    groups: Keys | None = field(default=None, repr=False)
    _known: dict[str, PerQuery] = field(default_factory=dict, repr=False, init=False)

    def __getitem__(self, metric: str) -> float:
        """Return the mean of a metric; none such, or deeper than retrieved, is a MetricError."""
        return float(self.values(metric).mean())

    def values(self, metric: str) -> PerQuery:
        """Return the metric of each query, ``(n,)``, in the order of ``query_ids``."""
        if metric not in self._known:
            found, size = (self.ranked, self.relevance), len(self.document_ids)
            self._known[metric] = compute(metric, *found, corpus_size=size)
        return self._known[metric]

    @property
    def names(self) -> tuple[str, ...]:
        """Each metric at each of ``ks``."""
        return tuple(f"{metric}@{k}" for metric in METRICS for k in self.ks)

    @property
    def headline(self) -> tuple[str, ...]:
        """The few metrics that a table shows unless asked for others."""
        k = max(self.ks)
        return (*(f"hit_rate@{k}" for k in self.ks), f"mrr@{k}", f"ndcg@{k}", f"recall@{k}")

    @property
    def per_query(self) -> dict[str, dict[str, float]]:
        """Metric → query id → value, for the metrics that tables show."""
        values = {name: self.values(name).tolist() for name in self.names}
        return {name: dict(zip(self.query_ids, own, strict=True)) for name, own in values.items()}

    def retrieved(self, query_id: str, k: int = 10) -> list[str]:
        """Return the ids of the first ``k`` documents for a query."""
        if query_id not in self.query_ids:
            raise OptionError(f"query_id: {query_id!r} is none of those that were judged.")
        found = self.ranked[self.query_ids.index(query_id), :k]
        return [self.document_ids[document] for document in found if document != NO_DOCUMENT]

    def to_dict(self) -> dict[str, Any]:
        """Return the means and what they were computed on, as JSON knows it."""
        spent = ("seconds", "base_calls", "base_texts", "base_tokens")
        return {
            "metrics": {name: self[name] for name in self.names},
            "queries": len(self.query_ids),
            "documents": len(self.document_ids),
            **{name: getattr(self, name) for name in spent},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {self[name]:.4f}" for name in self.names)
        counts = f"{len(self.query_ids)} queries, {len(self.document_ids)} documents"
        return "\n".join([f"{counts}: {shown}", *self.notes])


def evaluate_retrieval(
    embed_model: Retrieving,
    dataset: EmbeddingQAFinetuneDataset,
    *,
    ks: tuple[int, ...] = DEFAULT_KS,
    batch_size: int | None = None,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> RetrievalScores:
    """Search the corpus of a dataset for each of its queries, by cosine, exactly, and score it.

    An :class:`AdaptedEmbedding` is scored on the cached vectors of its base model: two models over
    one base cost one embedding run.

    Args:
        embed_model: Any LlamaIndex embedding model, or what names one; a :class:`Mixture` of one
            with words and a prior; a :class:`BM25Index` of the corpus; or any LlamaIndex retriever
            whose node ids are document ids: it is asked query by query, and what it does not give
            counts as not found.
        dataset: Queries, corpus and relevance.
        ks: Cut-offs that tables show.
        batch_size, cache_dir, show_progress: See :class:`Encoder`.

    Raises:
        OptionError: ``ks`` or ``batch_size`` out of range.
        DatasetError: A query without a relevant document, or a retriever of other documents.
        EncodeError: The model gave no usable vector.
    """
    cuts = tuple(ks) if isinstance(ks, Iterable) else ()
    odd = [k for k in cuts if isinstance(k, bool) or not isinstance(k, Integral) or int(k) < 1]
    if odd or not cuts:
        raise OptionError(f"ks: expected whole numbers >= 1, got {ks!r}.")
    cuts = tuple(map(int, cuts))
    began, dataset = time.perf_counter(), answered(dataset, "dataset")
    if isinstance(embed_model, (BaseRetriever, BM25Index)):
        return _asked(embed_model, dataset, cuts)
    mixture = embed_model if isinstance(embed_model, Mixture) else None
    embed_model = check_base(mixture.embed_model if mixture else embed_model, "embed_model")
    settings: Any = {"batch_size": batch_size, "cache_dir": cache_dir}
    with Encoder(base_of(embed_model), **settings, show_progress=show_progress) as encoder:
        data = encoder.dataset(dataset)
    queries = adapted(embed_model, data.queries, "query")
    documents = NormalizedRows(
        data.documents, data.keys, lambda v, k: adapted(embed_model, v, "document", k)
    )
    scores = search(data, queries, documents, ks=cuts)
    if mixture is not None:
        given = ([*dataset.queries.values()], dataset.corpus, l2_normalize(queries), documents)
        scores = scores_of(data, mixture.rank(*given, data.keys, depth=_depth(data, cuts)), cuts)
    sketch = getattr(embed_model, "sketch", None)
    seen = "" if sketch is None else sketch.overlap(data.queries)
    return replace(scores, seen=seen, seconds=time.perf_counter() - began, **encoder.spent)


def _asked(
    model: BaseRetriever | BM25Index, dataset: EmbeddingQAFinetuneDataset, ks: tuple[int, ...]
) -> RetrievalScores:
    began = time.perf_counter()
    data = with_rows(dataset, *[np.empty((0, 0), dtype=np.float32)] * 2)
    rows = {document: row for row, document in enumerate(dataset.corpus)}
    depth = _depth(data, ks)
    ranked = np.full((len(dataset.queries), depth), NO_DOCUMENT, dtype=np.int64)
    for place, query in enumerate(dataset.queries.values()):
        if isinstance(model, BM25Index):
            found = model.first(query, depth)
        else:
            found = [node.node_id for node in model.retrieve(query)]
        if strangers := [name for name in found if name not in rows]:
            raise DatasetError(
                "The retriever has to search the corpus of the dataset, with document ids as node "
                f"ids; it gave {quote_some(strangers)}."
            )
        given = list(dict.fromkeys(found))[:depth]
        ranked[place, : len(given)] = [rows[name] for name in given]
    return scores_of(data, ranked, ks, time.perf_counter() - began)


def search(
    data: EncodedDataset,
    queries: Vectors,
    documents: RowSource,
    *,
    ks: tuple[int, ...] = DEFAULT_KS,
) -> RetrievalScores:
    """Score arrays, ``(n, dim)`` and ``(m, dim)``, never copied, as evaluate_retrieval does."""
    began = time.perf_counter()
    rows = documents if isinstance(documents, NormalizedRows) else NormalizedRows(documents)
    ranked, _ = top_k(l2_normalize(queries), rows, _depth(data, ks))
    return scores_of(data, ranked, ks, time.perf_counter() - began)


def scores_of(
    data: EncodedDataset, ranked: Rows, ks: tuple[int, ...], seconds: float = 0.0
) -> RetrievalScores:
    """Return the scores of rankings; documents hidden from a query are put behind all others."""
    ranked = (ranked if data.hidden is None else data.hidden.last(ranked))[:, : max(DEPTH, *ks)]
    ids = data.query_ids, data.document_ids
    known: Any = {"notes": data.notes, "groups": data.groups}
    return RetrievalScores(ranked, data.scored, *ids, ks, seconds, **known)


def _depth(data: EncodedDataset, ks: tuple[int, ...]) -> int:
    """Return how many documents to look for, so that enough are left without the hidden ones."""
    hidden = 0 if data.hidden is None else int(data.hidden.counts.max(initial=0))
    return min(max(DEPTH, *ks) + hidden, len(data.document_ids))


def joined(parts: Sequence[RetrievalScores]) -> RetrievalScores:
    """Return the scores of several lists of queries as one, whatever corpus each searched.

    Corpora are the same where ``document_ids`` are the same object. A ranking of a whole corpus
    that is smaller than others ends with :data:`NO_DOCUMENT`.
    """
    starts: dict[int, int] = {}
    document_ids: list[str] = []
    for ids in (scores.document_ids for scores in parts):
        if starts.setdefault(id(ids), len(document_ids)) == len(document_ids):
            document_ids += ids
    shifts = [starts[id(scores.document_ids)] for scores in parts]
    cut = [s.ranked.shape[1] for s in parts if s.ranked.shape[1] < len(s.document_ids)]
    depth = min(DEPTH, len(document_ids), *cut)
    groups = [scores.groups for scores in parts if scores.groups is not None]
    ranked, moved = [], []
    for scores, shift in zip(parts, shifts, strict=True):
        own, truth = scores.ranked[:, :depth], scores.relevance
        rows = np.where(own == NO_DOCUMENT, NO_DOCUMENT, own + shift)
        fewer = ((0, 0), (0, depth - own.shape[1]))
        ranked.append(np.pad(rows, fewer, constant_values=NO_DOCUMENT))
        moved.append(replace(truth, documents=truth.documents + shift))
    return RetrievalScores(
        np.concatenate(ranked),
        Qrels.joined(moved),
        tuple(query for scores in parts for query in scores.query_ids),
        tuple(document_ids),
        parts[0].ks,
        notes=tuple(dict.fromkeys(note for scores in parts for note in scores.notes)),
        groups=np.concatenate(groups) if len(groups) == len(parts) else None,
    )


_DEEPER = 4  # times k are looked at, as many of the first are relevant or too close


def mine_hard_negatives(
    dataset: EmbeddingQAFinetuneDataset,
    embed_model: BaseEmbedding,
    *,
    k: int = 10,
    most_of_positive: float = 0.95,
    skip: int = 0,
    batch_size: int | None = None,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> EmbeddingQAFinetuneDataset:
    """Find for each query the documents that the base model takes for answers, wrongly.

    A document that scores more than 95 % of what the query's best relevant document scores is
    likelier an answer that nobody labelled than a negative, and is passed over; so is every text
    that is that of a relevant document.

    Args:
        dataset: Queries, corpus and relevance.
        embed_model: The base model.
        k: Negatives per query, at most.
        most_of_positive: Share of the positive's cosine, in (0, 1], above which a document is
            passed over. A query whose positive scores 0 or less gets no negatives.
        skip: Pass over this many of the first non-relevant documents besides.
        batch_size, cache_dir, show_progress: See :class:`Encoder`.

    Returns:
        The same dataset with ``hard_negatives``, hardest first. The engine makes them compete with
        the relevant documents of their queries. For errors see :func:`evaluate_retrieval`.

    Source: Moreira et al. 2024, NV-Retriever, arXiv:2407.15831, "TopK-PercPos" with 95 %.
    """
    check_whole("k", k)
    check_whole("skip", skip, least=0)
    check_number("most_of_positive", most_of_positive, above=0.0, most=1.0)
    dataset = answered(dataset, "dataset")
    settings: Any = {"batch_size": batch_size, "cache_dir": cache_dir}
    with Encoder(embed_model, **settings, show_progress=show_progress) as encoder:
        data = encoder.dataset(dataset)
    rows = hard_negatives(data, k=k, most_of_positive=most_of_positive, skip=skip)
    each = zip(data.query_ids, rows, strict=True)
    ids = {query: [data.document_ids[row] for row in documents] for query, documents in each}
    return dataset.with_hard_negatives({query: found for query, found in ids.items() if found})


def hard_negatives(
    data: EncodedDataset, *, k: int, most_of_positive: float, skip: int = 0
) -> list[Rows]:
    """Do the same on arrays: rows of at most ``k`` documents for each query, hardest first."""
    queries, documents = l2_normalize(data.queries), arrays.normalized_rows(data.documents)
    truth, depth = data.relevance, _DEEPER * (k + skip)
    ranked, scores = top_k(queries, documents, depth + int(truth.counts.max(initial=0)))
    entries = np.einsum("ij,ij->i", queries[truth.queries], documents[truth.documents])
    best = np.full(len(queries), -np.inf, dtype=np.float32)
    np.maximum.at(best, truth.queries, entries)
    found: list[Rows] = []
    for query, (rows, row_scores) in enumerate(zip(ranked, scores, strict=True)):
        relevant = data.canonical_rows[truth.relevant_to(query)]
        allowed = (row_scores <= most_of_positive * best[query]) & (best[query] > 0)
        own: Any = [] if data.hidden is None else data.hidden.relevant_to(query)
        allowed &= ~np.isin(data.canonical_rows[rows], relevant) & ~np.isin(rows, own)
        allowed &= data.canonical_rows[rows] == rows
        found.append(rows[allowed][skip : skip + k])
    return found


FEWEST_TO_SCALE = 30  #: queries, to say how their scores shift


@dataclass(frozen=True)
class ScoreShift:
    """How an adapter moves the best scores of queries, ascending; cut-offs move with them."""

    base: tuple[float, ...]
    adapted: tuple[float, ...]

    @classmethod
    def of(cls, base: Any, adapted: Any) -> ScoreShift:
        """Take the best scores of at least one query, ``(n,)`` each; their percentiles are kept."""
        steps = np.linspace(0.0, 1.0, min(len(base), 101))
        return cls(*(tuple(np.quantile(own, steps).tolist()) for own in (base, adapted)))

    @property
    def mean(self) -> float:
        """How much higher the best scores are with the adapter, on average."""
        return float(np.mean(self.adapted) - np.mean(self.base))

    def to_adapted(self, cutoff: float) -> float:
        """Return the cut-off that as many queries pass with the adapter as ``cutoff`` without."""
        return _moved(cutoff, self.base, self.adapted)

    def to_base(self, score: float) -> float:
        """Return a score with the adapter on the base model's scale; a higher one stays higher."""
        return _moved(score, self.adapted, self.base)

    def __str__(self) -> str:
        middle = float(np.median(self.base))
        return (
            f"the best cosine of a query changes by {self.mean:+.3f} on average: a cut-off of "
            f"{middle:.3f} for the base model is one of {self.to_adapted(middle):.3f} now"
        )


def _moved(score: float, before: Sequence[float], after: Sequence[float]) -> float:
    """Interpolate between quantiles; beyond them a score moves as the nearest does."""
    inside = float(np.clip(score, before[0], before[-1]))
    return float(np.interp(inside, before, after)) + score - inside
