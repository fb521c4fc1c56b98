"""How a vector store compares, found by asking it, and what that means for an adapted model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from ..core.arrays import Floats, Vectors, content_hashes, l2_normalize
from ..encoding.base_model import adapted, base_of, fingerprint_of
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import OptionError, StoreError, check_texts, check_whole
from ..evaluation.retrieval import FEWEST_TO_SCALE, ScoreShift
from ..serving.views import texts_of

_UNIT = 0.01  # how far from 1 the length of a unit vector may be
_NEAR = 0.02  # how far a score may be from what a formula says: stores quantise
_FIRST = 10

VectorsOf = Callable[[Sequence[BaseNode]], Vectors]


@dataclass(frozen=True)
class SimilarityCheck:
    """How an index compares queries with documents, from a sample of answers.

    Args:
        similarity: ``"cosine"``, ``"inner product"``, ``"Euclidean distance"``, or ``"unknown"``
            where no formula gives the scores.
        scores: The formula that gives the scores, with ``s`` the cosine or inner product and ``d``
            the distance.
        ascending: The best document has the smallest score.
        shortest, longest: Lengths of document vectors in the sample.
        query_length: Length of the model's query vectors, the one furthest from 1.
        agreement: Share of the first 10 that the index has in common with exact search by cosine,
            in [0, 1], among the documents sampled.
        documents: How many were sampled.
        best_scores: Of each of ``queries``, the score of the best document with the base model and
            with the adapter; empty where no queries were given, or there is no adapter.
    """

    similarity: str
    scores: str
    ascending: bool
    shortest: float
    longest: float
    query_length: float
    agreement: float
    documents: int
    best_scores: tuple[tuple[float, float], ...] = ()

    @property
    def shift(self) -> float | None:
        """How much higher the best scores are with the adapter, on average; None if not asked."""
        return float(np.diff(self.best_scores).mean()) if self.best_scores else None

    def equivalent_cutoff(self, cutoff: float) -> float:
        """Return the cut-off that as many queries pass with the adapter as ``cutoff`` without.

        By quantiles of the best scores, between which it is interpolated; beyond them the cut-off
        moves as the nearest does. An OptionError where :func:`check_similarity` was given no
        queries.
        """
        return self._shift.to_adapted(cutoff)

    def calibrated(self) -> CalibratedScores:
        """Return a postprocessor that gives adapted scores the base's scale; or an OptionError."""
        shift = self._shift
        return CalibratedScores(base=list(shift.base), adapted=list(shift.adapted))

    @property
    def _shift(self) -> ScoreShift:
        if not self.best_scores:
            raise OptionError("cutoff: pass queries=… to check_similarity, at least 30.")
        return ScoreShift.of(*np.transpose(self.best_scores))

    @property
    def of_unit_length(self) -> bool:
        """Whether the documents have length 1."""
        return max(abs(self.shortest - 1), abs(self.longest - 1)) <= _UNIT

    @property
    def problems(self) -> list[str]:
        """What spoils rankings or cut-offs, with what to do about it; empty where all is well."""
        found: list[str] = []
        ranks = f"the first {_FIRST} agree with cosine in {self.agreement:.0%}"
        if self.similarity == "unknown":
            found += [
                f"The scores are not those of this model's document vectors ({ranks}). Was the "
                "index built with another model, or does the adapter move documents? Rebuild it "
                "with adapt_index."
            ]
        elif self.similarity != "cosine" and not self.of_unit_length:
            found += [
                f"Documents have lengths from {self.shortest:.3g} to {self.longest:.3g}, and the "
                f"store ranks by {self.similarity}, where length counts: {ranks}. Adapters are "
                "trained and judged by cosine. Rebuild with adapt_index(index, "
                "model.normalized(), new_store), or use a cosine store."
            ]
        if self.similarity not in ("cosine", "unknown") and abs(self.query_length - 1) > _UNIT:
            found += [
                f"Queries have length {self.query_length:.3g}, which changes the scores of a store "
                f"that ranks by {self.similarity}. Use an adapter with normalize=True, or "
                "model.normalized()."
            ]
        if self.ascending:
            found += [
                f"Scores are distances ({self.scores}): the best is the smallest. A "
                "SimilarityPostprocessor or fusion by score would keep the worst."
            ]
        return found

    @property
    def note(self) -> str:
        """What to know of the scale of the scores."""
        if self.scores == "s" and self.similarity != "unknown":
            return "Scores are the similarity itself."
        return f"Scores are {self.scores}: cut-offs of other stores do not carry over."

    def warn(self, stacklevel: int = 2) -> None:
        """Warn of each problem."""
        for problem in self.problems:
            warnings.warn(problem, stacklevel=stacklevel + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as JSON knows it."""
        shown = ("shift", "problems", "note")
        return {**asdict(self), **{name: getattr(self, name) for name in shown}}

    def __str__(self) -> str:
        found = self.problems or ["No problem found."]
        if self.shift is not None:
            found = [*found, f"{str(self._shift).capitalize()}; others: equivalent_cutoff(…)."]
        lengths = f"{self.documents} documents of length {self.shortest:.3g} to {self.longest:.3g}"
        return "\n".join([f"{self.similarity}; {self.note} {lengths}.", *found])


class CalibratedScores(BaseNodePostprocessor):
    """Gives the scores of an adapted model the base model's scale; the order stays.

    Before a ``SimilarityPostprocessor``, it lets a cut-off of the base model keep as many answers
    as before. ``base`` and ``adapted`` are best scores of the same queries, each ascending.
    """

    base: list[float]
    adapted: list[float]

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        scale = ScoreShift(tuple(self.base), tuple(self.adapted)).to_base
        pairs = [(each.node, each.score) for each in nodes]
        return [NodeWithScore(node=n, score=None if s is None else scale(s)) for n, s in pairs]


def check_similarity(
    index: VectorStoreIndex,
    embed_model: BaseEmbedding,
    *,
    queries: Sequence[str] = (),
    sample: int = 100,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> SimilarityCheck:
    """Find out how an index compares and scores, and whether an adapted model is safe with it.

    Asks the index, of any store, for its best documents for a few vectors, at two lengths, and
    compares order and scores with cosine, inner product and Euclidean distance of the documents'
    own vectors, which are asked for where they are not cached: at most ``6 * sample`` texts.

    Args:
        index: Any vector index.
        embed_model: The model that is to query it.
        queries: Live queries, at least 30: an adapter shifts the scores, and
            :meth:`SimilarityCheck.equivalent_cutoff` then says which cut-off lets as many of them
            pass as before. Only for adapters that leave documents alone.
        sample: Documents per vector, at least 10.
        cache_dir, show_progress: See :class:`Encoder`.

    Raises:
        OptionError: The index is empty or none of vectors, ``sample`` is too small, or ``queries``
            are too few or given for an adapter that moves documents.
    """
    check_whole("sample", sample, least=_FIRST)
    queries = check_texts("queries", queries)
    if 0 < len(queries) < FEWEST_TO_SCALE:
        expected = f"expected at least {FEWEST_TO_SCALE} or none"
        raise OptionError(f"queries: {expected}, got {len(queries)}.")
    if queries and getattr(getattr(embed_model, "adapter", None), "adapts_documents", False):
        raise OptionError(
            "queries: expected none, as the adapter moves documents: this index has no scores of "
            "the base model to compare with."
        )
    with Encoder(base_of(embed_model), cache_dir=cache_dir, show_progress=show_progress) as encoder:

        def vectors_of(nodes: Sequence[BaseNode]) -> Vectors:
            texts = texts_of(nodes)
            vectors = encoder.encode(texts, "document")
            return adapted(embed_model, vectors, "document", content_hashes(texts))

        check = examine(index, query_probes(embed_model), vectors_of, sample=sample)
        if not queries or base_of(embed_model) is embed_model:
            return check
        asked = encoder.encode(list(queries), "query")
    retriever = index.as_retriever(similarity_top_k=1)

    def best(vectors: Vectors) -> list[float]:
        found = (retriever.retrieve(QueryBundle("", embedding=each)) for each in vectors.tolist())
        return [float(nodes[0].score or 0.0) for nodes in found]

    scores = zip(best(asked), best(adapted(embed_model, asked, "query")), strict=True)
    return replace(check, best_scores=tuple(scores))


def query_probes(embed_model: BaseEmbedding) -> Vectors:
    """Return a few query vectors of a model, known since it was identified, ``(n, dim)``."""
    return adapted(embed_model, fingerprint_of(base_of(embed_model)).of_role("query"), "query")


def examine(
    index: VectorStoreIndex, queries: Vectors, vectors_of: VectorsOf, *, sample: int = 100
) -> SimilarityCheck:
    """Compare answers to ``(n, dim)`` queries with vectors, ``sample`` each; or OptionError."""
    if not isinstance(index, VectorStoreIndex) or not index.vector_store.is_embedding_query:
        raise OptionError("index: expected a VectorStoreIndex over a store of vectors.")
    retriever = index.as_retriever(similarity_top_k=sample)
    answers: list[Answer] = []
    for query in np.concatenate([l2_normalize(queries), 2 * l2_normalize(queries)]):
        found = retriever.retrieve(QueryBundle("", embedding=query.tolist()))
        if not found:
            raise OptionError("index: expected documents in it, found none.")
        scores = np.array([item.score or 0.0 for item in found], dtype=np.float64)
        answers.append((query, scores, vectors_of([item.node for item in found])))
    lengths = np.concatenate([np.linalg.norm(vectors, axis=1) for _, _, vectors in answers])
    own = np.linalg.norm(queries, axis=1)
    return SimilarityCheck(
        *_formula(answers),
        ascending=bool(np.mean([np.diff(scores).sum() > 0 for _, scores, _ in answers]) > 0.5),
        shortest=float(lengths.min()),
        longest=float(lengths.max()),
        query_length=float(own[np.argmax(np.abs(own - 1))]),
        agreement=float(np.mean([_agreement(query, found) for query, _, found in answers])),
        documents=max(len(scores) for _, scores, _ in answers),
    )


#: A query; scores ``(k,)`` and vectors ``(k, dim)`` of what is found, in the store's order.
Answer = tuple[Vectors, Floats, Vectors]


def examine_written(
    index: VectorStoreIndex, model: BaseEmbedding, nodes: Sequence[BaseNode], vectors_of: VectorsOf
) -> SimilarityCheck:
    """Search an index just written; a StoreError where it does not hold its vectors."""
    written = {node.node_id: node for node in nodes}

    def checked(found: Sequence[BaseNode]) -> Vectors:
        strangers = [node.node_id for node in found if node.node_id not in written]
        if strangers:
            raise StoreError(
                f"The new store holds nodes that the index does not have (first: {strangers[0]}). "
                "Pass an empty collection."
            )
        return vectors_of([written[node.node_id] for node in found])

    check = examine(index, query_probes(model), checked)
    if check.similarity == "unknown":
        raise StoreError(
            "The new store's scores are not those of the vectors written to it. Pass an empty "
            "collection, or check=False for a store that scores in a way of its own."
        )
    return check


def _agreement(query: Vectors, vectors: Vectors) -> float:
    """Return the share of a store's first 10 that are, up to ties, the first 10 by cosine."""
    cosine = l2_normalize(vectors) @ l2_normalize(query)
    floor = np.sort(cosine)[::-1][:_FIRST][-1]
    return float(np.mean(cosine[:_FIRST] >= floor - 1e-3))


def _formula(answers: Sequence[Answer]) -> tuple[str, str]:
    """Return which similarity and which formula give the scores, for queries of two lengths."""
    scores = np.concatenate([found for _, found, _ in answers])
    scale = max(float(np.abs(scores).max()), 1e-12)
    errors: dict[tuple[str, str], float] = {}
    for name, (similarity, formulas) in _SIMILARITIES.items():
        values = np.concatenate([similarity(query, vectors) for query, _, vectors in answers])
        with np.errstate(over="ignore"):
            for formula, scored in formulas.items():
                errors[name, formula] = float(np.abs(scored(values) - scores).max()) / scale
    best = min(errors, key=lambda key: errors[key])
    return best if errors[best] <= _NEAR else ("unknown", "of no known formula")


def _dot(query: Vectors, vectors: Vectors) -> Floats:
    return np.asarray(vectors.astype(np.float64) @ query)


_OF_SIMILARITY: dict[str, Callable[[Floats], Floats]] = {
    "s": lambda s: s,
    "1 - s": lambda s: 1 - s,
    "(1 + s) / 2": lambda s: (1 + s) / 2,
    "exp(s - 1)": lambda s: np.exp(s - 1),
}
_OF_DISTANCE: dict[str, Callable[[Floats], Floats]] = {
    "d": lambda d: d,
    "d²": lambda d: d**2,
    "-d": lambda d: -d,
    "1 - d": lambda d: 1 - d,
    "1 - d²": lambda d: 1 - d**2,
    "1 / (1 + d)": lambda d: 1 / (1 + d),
    "1 / (1 + d²)": lambda d: 1 / (1 + d**2),
    "exp(-d)": lambda d: np.exp(-d),
    "exp(-d²)": lambda d: np.exp(-(d**2)),
}
_SIMILARITIES: dict[str, tuple[Callable[[Vectors, Vectors], Floats], Any]] = {
    "cosine": (lambda q, v: _dot(l2_normalize(q), l2_normalize(v)), _OF_SIMILARITY),
    "inner product": (_dot, _OF_SIMILARITY),
    "Euclidean distance": (
        lambda q, v: np.linalg.norm(v.astype(np.float64) - q, axis=1),
        _OF_DISTANCE,
    ),
}
