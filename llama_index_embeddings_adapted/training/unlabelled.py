"""Without a label: words, and a prior and a map from unjudged queries; or queries are written."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import BaseNode
from tqdm import tqdm

from ..adapters.maps import LinearAdapter
from ..adapters.prior import MOST_QUERIES
from ..adapters.prior import WEIGHT as PENALTY
from ..core.arrays import Keys, Vectors, content_hashes, l2_normalize
from ..core.encoded import EncodedDataset, Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.base_model import adapted, base_of, check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder, encode
from ..errors import OptionError, check_texts, check_whole, truncate
from ..lexical.bm25 import WEIGHT, ranked
from ..questions.generate import generate_qa_embedding_pairs
from ..serving.embedding import AdaptedEmbedding
from ..serving.hybrid import CANDIDATES, TOP_K, HybridRetriever
from ..serving.views import Views, index_and_nodes, texts_of
from .auto.tune import tune
from .closed_form import ridge
from .options import TrainingOptions

SHRINKAGE = 100.0  # of 10, 30, 100, 300 the least that lost, words left out, on dev of no set


def adapt_without_labels(
    index_or_nodes: VectorStoreIndex | Iterable[BaseNode],
    base: BaseEmbedding | str,
    *,
    queries: Sequence[str] | None = None,
    llm: Any = None,
    weight: float = WEIGHT,
    penalty: float = PENALTY,
    pseudo_labels: bool = True,
    top_k: int = TOP_K,
    candidates: int = CANDIDATES,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
    **writing: Any,
) -> HybridRetriever:
    """Return a retriever with words, a prior and an adapter that are safe without labels.

    Prior and adapter need queries as users ask them: those of a log, or questions that an LLM
    writes; documents in their place can do harm. Without either, words are all that is added.
    Nothing is proven: :meth:`HybridRetriever.moved_documents` shows what changes, and
    :class:`Mixture` lets it be judged as soon as some queries are. To prove a gain of .05 NDCG@10
    takes 70 to 400 judged queries.

    Args:
        index_or_nodes: An index over vectors of ``base``, which stays as it is; or nodes, which go
            into a new index in memory.
        base: Any LlamaIndex embedding model, adapted or not, or what names one.
        queries: Of a log; more than 2,000 distinct ones are sampled.
        llm: Writes questions; those do not count for the document they were written about.
        weight: Of words, in cosine units.
        penalty: Of the prior, in cosine units.
        pseudo_labels: Adapt queries, towards what the retriever ranks first for them, see
            :func:`self_trained`. A model that has an adapter keeps it.
        top_k, candidates: See :class:`HybridRetriever`.
        cache_dir, show_progress: See :class:`Encoder`; of the LLM's answers, too.
        writing: Passed to :func:`generate_qa_embedding_pairs`, with ``llm`` only.

    Raises:
        OptionError: No node, or ``queries`` without a query.
        StoreError: The index cannot list its nodes; pass them, and make the retriever with
            :meth:`HybridRetriever.from_nodes`.
        EncodeError: The model gave no usable vector.
    """
    if writing and llm is None:
        told = "of use with llm=… only, and if generate_qa_embedding_pairs takes it"
        raise OptionError(f"{', '.join(sorted(writing))}: {told}.")
    index, nodes = index_and_nodes(index_or_nodes, base := check_base(base, "base"))
    quiet: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    texts, sources = _queries(queries, nodes, llm, {**quiet, **writing})
    some = np.sort(np.random.default_rng(0).permutation(len(texts))[:MOST_QUERIES])
    asked = [texts[row] for row in some]
    bank = adapted(base, encode(base_of(base), asked, "query", **quiet), "query") if asked else None
    found = HybridRetriever.from_nodes(
        index, nodes, embed_model=base, weight=weight, penalty=penalty, queries=texts, bank=bank,
        sources=sources[some], top_k=top_k, candidates=candidates, **quiet,
    )  # fmt: skip
    if pseudo_labels and bank is not None and base_of(base) is base:
        _adapt(found, base, asked, bank)
    return found


def _adapt(
    found: HybridRetriever, base: BaseEmbedding, asked: Sequence[str], bank: Vectors
) -> None:
    """Give the retriever an adapter, and a prior of adapted queries."""
    views = found.views
    adapter = self_trained(views, asked, bank)
    found.embed_model = AdaptedEmbedding(base, adapter)
    if views.prior is not None:
        bank = l2_normalize(adapter.apply(bank))
        prior = views.prior.changed(bank=bank)
        neutral = float(prior.nearness(views.vectors, views.keys).mean())
        found.views = views.changed(prior=prior.changed(neutral=neutral))


def self_trained(
    views: Views, texts: Sequence[str], queries: Vectors, shrinkage: float = SHRINKAGE
) -> LinearAdapter:
    """Return a map of queries towards the documents that the views rank first for them.

    Vectors, words and prior together are right more often than vectors alone, so that their first
    document is a label, if a noisy one. The map is that of :func:`ridge`; ``queries``, ``(n,
    dim)``, are the vectors of the texts. ``shrinkage``, ``> 0``, is towards the identity: where
    squares of the queries sum up to as much along a direction, the map goes half of the way.
    Source: self-training (Yarowsky 1995, DOI 10.3115/981658.981684) by the mixture.
    """
    asked = views.lexical, texts, l2_normalize(queries)
    first = ranked(*asked, views.vectors, views.weight, views.shifts, 1)
    count, dim = queries.shape
    ids = tuple(map(str, range(count))), views.lexical.ids
    labels, rows = Qrels.from_lists(first.tolist()), np.arange(len(views.keys))
    data = EncodedDataset(queries, views.vectors, labels, *ids, rows, views.keys)
    return ridge(data, shrinkage * dim / count)


def _queries(
    queries: Sequence[str] | None, nodes: dict[str, BaseNode], llm: Any, writing: dict[str, Any]
) -> tuple[list[str], Keys]:
    """Return the texts of the bank, and the content key of what each was written about."""
    expected = "a list of texts with at least one"
    given = [] if queries is None else check_texts("queries", queries, expected)
    logged = list(dict.fromkeys(query for query in given if query.strip()))
    if queries is not None and not logged:
        raise OptionError(f"queries: expected {expected}, got {truncate(repr(given))}.")
    texts, sources = logged, np.zeros(len(logged), dtype=np.uint64)
    if llm is not None:
        written = generate_qa_embedding_pairs(list(nodes.values()), llm, **writing)
        about = [written.relevant_docs[query][0] for query in written.queries]
        own = texts_of(nodes[name] for name in about)
        texts = logged + list(written.queries.values())
        sources = np.concatenate([sources, content_hashes(own)])
    return texts, sources


def generate_until_enough(
    nodes: Iterable[BaseNode],
    llm: Any,
    base: BaseEmbedding | str,
    *,
    first: int = 100,
    max_chunks: int = 800,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
    **writing: Any,
) -> EmbeddingQAFinetuneDataset:
    """Have questions written about more and more passages, until more would hardly gain more.

    Passages double. After each step, what the questions gain so far is cross-fitted as
    ``method="auto"`` does it. Where all of them do not gain more than half of them, by more than a
    standard error and a tenth of the gain, that is enough; where nothing gains yet, it goes on. No
    answer is paid for twice.

    Args:
        nodes: What to ask about.
        llm: Writes.
        base: The model to be adapted.
        first: Passages asked about to begin with.
        max_chunks: Passages asked about at most.
        cache_dir: Where answers and vectors are kept; with ``False`` every step asks anew.
        show_progress: Show bars, and what each step gains.
        writing: Passed to :func:`generate_qa_embedding_pairs`.

    Raises:
        OptionError: An argument out of range, or ``first`` above ``max_chunks``.
        GenerationError: See :func:`generate_qa_embedding_pairs`.
    """
    check_whole("first", first)
    check_whole("max_chunks", max_chunks)
    if first > max_chunks:
        raise OptionError(f"first: expected at most max_chunks, {max_chunks}, got {first}.")
    nodes, base = list(nodes), check_base(base, "base")
    quiet: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    asked = first
    while True:
        written = generate_qa_embedding_pairs(
            nodes, llm, max_chunks=asked, embed_model=base, **quiet, **writing
        )
        with Encoder(base, **quiet) as encoder:
            data = encoder.dataset(written)
        found = tune(data, TrainingOptions(), curve=True, show_progress=False).choice
        if show_progress:
            tqdm.write(f"{asked} passages: {found.curve or found.verdict}", file=sys.stderr)
        if asked >= min(max_chunks, len(nodes)) or (found.curve and not found.curve.grows):
            return written
        asked = min(2 * asked, max_chunks)
