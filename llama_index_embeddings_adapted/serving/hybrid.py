"""A retriever that adds words and a document prior to the cosines of any vector store."""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.types import MetadataFilters

from ..adapters import saving
from ..adapters.prior import WEIGHT as PENALTY
from ..adapters.prior import DocumentPrior
from ..core.arrays import Keys, Vectors, l2_normalize
from ..encoding.base_model import base_of, check_base
from ..encoding.cache import CacheDir
from ..errors import OptionError, ShapeError, check_kind, check_texts, check_whole, quote_some
from ..evaluation.retrieval import FEWEST_TO_SCALE, ScoreShift
from ..lexical.bm25 import WEIGHT, BM25Index, best_rows
from . import views as documents_views
from .embedding import DEPTH, AdaptedEmbedding
from .views import Nodes, SteppedRetriever, Views, document_vectors, nodes_by_id, texts_of
from .wrapped import Steps, run_steps

CANDIDATES, TOP_K = 100, 10


class HybridRetriever(SteppedRetriever):
    """Ranks by ``cosine + weight · words - prior``, over any vector store.

    The vector store gives the first candidates by vector, :class:`BM25Index` the first by words;
    each document of the two gets its true cosine, whatever the store calls a score, and its true
    share of the query's words, see :meth:`BM25Index.shares`. So the result is that of mixing all
    documents, unless one is among the first candidates of neither side.

    The filters of a ``VectorIndexRetriever`` hold for words as well: they are applied to the
    metadata of ``nodes``, and words bring in no document whose node is not known, or which some
    store may refuse, as where a key is missing. Where it has ``vector_store_kwargs``, which may be
    filters of the store's own, words rank only what the store finds. Say what is added to
    the store, or deleted there: :meth:`add_nodes`, :meth:`remove_nodes`. Before, a new document has
    what the store says of it, without words and prior; that of an index in memory is not found at
    all, as LlamaIndex's retrievers name its nodes when they are made.

    Args:
        dense: A retriever over the vector store that gives ``candidates`` nodes; its embedding
            model may be adapted.
        lexical: The words of the same nodes, by node id.
        vectors: ``(m, dim)``, as the store holds them, in the order of ``lexical.ids``.
        nodes: Where to find nodes that only words find: id → node, or a docstore.
        keys: ``(m,)``, content keys of the texts, for priors that know documents one by one.
        weight: Of words, in cosine units. Choose it on held-out queries with
            :class:`Mixture`; without labels .4 is safe.
        prior: Made with query and document vectors of the same model, adapted if that is. Not
            for an index whose vectors carry the prior already.
        top_k: How many nodes come back.
        candidates: How many documents words may bring in; at least ``top_k``.
        embed_model, callback_manager: Those of ``dense`` by default.

    Raises:
        OptionError: A setting out of range, or an argument of another kind.
        ShapeError: Parts that do not fit together.
    """

    def __init__(
        self,
        dense: BaseRetriever,
        lexical: BM25Index,
        *,
        vectors: Vectors,
        nodes: Nodes,
        keys: Keys | None = None,
        weight: float = WEIGHT,
        prior: DocumentPrior | None = None,
        top_k: int = TOP_K,
        candidates: int = CANDIDATES,
        embed_model: BaseEmbedding | str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        documents_views.check_retriever("dense", dense)
        documents_views.check_nodes(nodes)
        check_whole("top_k", top_k)
        check_whole("candidates", candidates)
        keys = np.zeros(len(lexical), dtype=np.uint64) if keys is None else np.asarray(keys)
        self.views = Views(lexical, vectors, keys, weight, prior)
        self.dense, self.nodes = dense, nodes
        self.top_k, self.candidates = top_k, max(candidates, top_k)
        model = embed_model or getattr(dense, "_embed_model", None)
        self.embed_model: BaseEmbedding = check_base(model, "embed_model")
        self._past: list[Views] = []
        self._lock = threading.RLock()
        self._allowed: tuple[tuple[Any, ...], Any] | None = None
        super().__init__(callback_manager=callback_manager or dense.callback_manager)

    @classmethod
    def from_nodes(
        cls,
        index: Any,
        nodes: Nodes | Iterable[BaseNode],
        *,
        embed_model: BaseEmbedding | str | None = None,
        weight: float = WEIGHT,
        prior: DocumentPrior | None = None,
        bank: Vectors | None = None,
        sources: Keys | None = None,
        queries: Iterable[str] = (),
        penalty: float = PENALTY,
        top_k: int = TOP_K,
        candidates: int = CANDIDATES,
        filters: Any = None,
        cache_dir: CacheDir = None,
        show_progress: bool = True,
    ) -> HybridRetriever:
        """Build words and vectors of nodes, beside the index that holds them.

        Args:
            index: A ``VectorStoreIndex``.
            nodes: All of its nodes: an iterable, a dict, or a docstore.
            embed_model: That of the index by default.
            weight, prior, top_k, candidates: See the class.
            bank: ``(n, dim)``, query vectors of the model to make a prior from.
            sources: Of the bank, see :class:`DocumentPrior`.
            queries: Such as users ask, for the words, see :class:`BM25Index`.
            penalty: λ of that prior, in cosine units; 0 for none.
            filters: Of LlamaIndex; hold for both sides.
            cache_dir, show_progress: See :class:`Encoder`.
        """
        if not hasattr(index, "_embed_model"):
            check_kind("index", index, VectorStoreIndex, "a VectorStoreIndex")
        model = check_base(embed_model or index._embed_model, "embed_model")
        found = nodes_by_id(nodes)
        texts = texts_of(found.values())
        settings: dict[str, Any] = {"top_k": top_k, "candidates": candidates}
        dense = _dense(index, model, filters, **settings)
        shown = show_progress
        keys, vectors = document_vectors(model, texts, cache_dir=cache_dir, show_progress=shown)
        if bank is not None and penalty:
            prior = DocumentPrior.of(bank, vectors, keys, sources=sources, weight=penalty)
        words = BM25Index.of(dict(zip(found, texts, strict=True)), queries)
        settings |= {"weight": weight, "prior": prior, "embed_model": model}
        held = nodes if isinstance(nodes, BaseDocumentStore) else found
        return cls(dense, words, vectors=vectors, nodes=held, keys=keys, **settings)

    def over(self, dense: BaseRetriever) -> HybridRetriever:
        """Return the same views over another retriever of the store, such as one with filters."""
        documents_views.check_retriever("dense", dense)
        other = copy.copy(self)
        other.dense, other._past, other._allowed = dense, [], None
        return other

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        """Embed the query, retrieve by vector, rank with the words, fetch what only words found."""
        model, vector, views = self.embed_model, bundle.embedding, self.views
        if vector is None:
            ask, aask = model.get_agg_embedding_from_queries, model.aget_agg_embedding_from_queries
            vector = yield ask, aask, (bundle.embedding_strs,)
        given = replace(bundle, embedding=vector)
        found = yield self.dense.retrieve, self.dense.aretrieve, (given,)
        if doc_ids := getattr(self.dense, "_doc_ids", None):  # LlamaIndex's own store ignores them
            found = [node for node in found if node.node.ref_doc_id in (None, *doc_ids)]
        ranked = self._ranked(views, bundle.query_str, vector, found)
        nodes = {node.node_id: node.node for node in found}
        absent = [name for name, _ in ranked if name not in nodes]
        own = yield from documents_views.fetch_nodes(self.nodes, absent[: 2 * self.top_k])
        # Nodes that are nowhere any more are passed over.
        there = [pair for pair in ranked if pair[0] in nodes or pair[0] in own][: self.top_k]
        nodes |= {name: documents_views.copy_of(own[name]) for name, _ in there if name in own}
        to_base = (lambda score: score) if views.scale is None else views.scale.to_base
        return [NodeWithScore(node=nodes[name], score=to_base(score)) for name, score in there]

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"dense": self.dense}

    def _ranked(
        self, views: Views, text: str, vector: Sequence[float], found: list[NodeWithScore]
    ) -> list[tuple[str, float]]:
        """Return node ids and scores of all candidates, best first."""
        shares, allowed = views.lexical.shares(text), self._allowed_rows(views.lexical)
        query = l2_normalize(np.asarray(vector, dtype=np.float32))
        if query.shape != views.vectors.shape[1:]:
            expected = f"{views.vectors.shape[1:]}"
            raise ShapeError("Query vector", expected=expected, actual=query.shape)
        given = [(node.node_id, views.lexical.rows.get(node.node_id)) for node in found]
        known = [row for _, row in given if row is not None]
        wanted = shares if allowed is None else np.where(allowed, shares, np.float32(0.0))
        rows = np.union1d(best_rows(wanted, self.candidates), np.array(known, dtype=np.int64))
        scores = views.scores(rows, query, shares).tolist()
        ranked = [(views.lexical.ids[row], score) for row, score in zip(rows, scores, strict=True)]
        if len(known) < len(found):
            ranked += _estimated(found, given, views.vectors[known] @ query)
        return sorted(ranked, key=lambda pair: -pair[1])

    def _allowed_rows(self, lexical: BM25Index) -> Any:
        """Return the documents that the dense retriever surely lets through; None for all."""
        names = ("_filters", "_node_ids", "_doc_ids", "_kwargs")
        asked = [getattr(self.dense, name, None) for name in names]
        filters, node_ids, doc_ids, of_store = asked
        if not (filters or node_ids or doc_ids or of_store):
            return None
        cached = self._allowed
        if cached is not None and all(map(operator.is_, cached[0], (lexical, *asked))):
            return cached[1]
        nodes = run_steps(documents_views.fetch_nodes(self.nodes, list(lexical.ids)))
        # Indexes that hold the texts name all of their nodes, in a list.
        some = set(node_ids) if node_ids else nodes
        passes = documents_views.passing(filters)

        def allows(name: str) -> bool:
            if name not in nodes or name not in some or of_store:
                return False
            node = nodes[name]
            return (not doc_ids or node.ref_doc_id in doc_ids) and passes(node) == 1.0

        rows = np.array([allows(name) for name in lexical.ids])
        self._allowed = ((lexical, *asked), rows)
        return rows

    def swap(self, **changes: Any) -> None:
        """Serve with other views from the next query on; :meth:`roll_back` undoes the last eight.

        ``changes`` are ``weight``, ``prior``, ``lexical``, ``vectors``, ``keys``. An adapter is
        swapped in the embedding model. What was before nodes were added or removed is not kept.
        """
        with self._lock:
            new = self.views.changed(**changes)
            self._past = [*self._past, self.views][-DEPTH:]
            self.views = new

    def roll_back(self) -> None:
        """Undo the last :meth:`swap`; an OptionError if none is left to be undone."""
        with self._lock:
            if not self._past:
                kept = f"the last {DEPTH} changes are kept, none from before nodes came or went"
                raise OptionError(f"There are no earlier views; {kept}.")
            *self._past, self.views = self._past

    def calibrate(self, base: BaseRetriever, queries: Sequence[str]) -> None:
        """Give scores another retriever's scale from the next query on; their order stays.

        A ``similarity_cutoff`` chosen for that one then keeps answers of as many queries as before.
        :meth:`roll_back` undoes it; it is saved along. ``base`` is over the same documents, such as
        ``index.as_retriever(embed_model=base_model)``; ``queries`` are live ones, at least 30, each
        with an answer of both, else it is an OptionError. Distances are no scale to give: one, too.
        """
        queries = check_texts("queries", queries)
        if len(queries) < FEWEST_TO_SCALE:
            raise OptionError(f"queries: expected at least {FEWEST_TO_SCALE}, got {len(queries)}.")
        plain = self.over(self.dense)
        plain.views = self.views.changed(scale=None)
        found = [[each.retrieve(query) for query in queries] for each in (base, plain)]
        if not all(nodes for asked in found for nodes in asked):
            raise OptionError("queries: expected an answer of both retrievers to each.")
        rises = [(nodes[-1].score or 0.0) - (nodes[0].score or 0.0) for nodes in found[0]]
        if sum(rises) > 0:
            raise OptionError(
                "base: expected scores where more is better, got scores that grow with the rank, "
                "as distances do. Choose the cut-off by scores of this retriever instead."
            )
        best = ([nodes[0].score or 0.0 for nodes in asked] for asked in found)
        self.swap(scale=ScoreShift.of(*best))

    def add_nodes(
        self, nodes: Iterable[BaseNode], *, cache_dir: CacheDir = None, show_progress: bool = True
    ) -> None:
        """Take in nodes that were added to the store, or changed there, by their ids in the store.

        Words are counted anew, as idf depends on all documents; only the new nodes are embedded,
        see :class:`Encoder` for ``cache_dir`` and ``show_progress``. An OptionError for no node.
        """
        new = nodes_by_id(nodes)
        settings: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
        added = document_vectors(self.embed_model, texts_of(new.values()), **settings)
        with self._lock:
            if isinstance(self.nodes, BaseDocumentStore):
                self.nodes.add_documents(list(new.values()))
            self._serve({**nodes_by_id(self.nodes), **new}, new, *added)

    def remove_nodes(self, node_ids: Iterable[str]) -> None:
        """Forget nodes that were deleted from the store: words would go on finding them.

        Warns of ids that are not known; an OptionError where no node would be left.
        """
        gone = set(check_texts("node_ids", node_ids, "a list of node ids"))
        with self._lock:
            if unknown := gone.difference(self.views.lexical.ids):
                text = f"{len(unknown)} of {len(gone)} node ids are not known and change nothing"
                warnings.warn(f"{text} (first: {quote_some(sorted(unknown))}).", stacklevel=2)
            left = {name: n for name, n in nodes_by_id(self.nodes).items() if name not in gone}
            self._serve(left, {}, self.views.keys[:0], self.views.vectors[:0])

    def _serve(
        self, found: dict[str, BaseNode], new: dict[str, BaseNode], keys: Keys, vectors: Vectors
    ) -> None:
        """Serve those of the nodes so far that are found, and new ones with keys and vectors."""
        views, before, words = self.views, self.views.lexical.ids, self.views.lexical
        kept = [row for row, name in enumerate(before) if name in found and name not in new]
        ids = [*(before[row] for row in kept), *new]
        corpus = dict(zip(ids, texts_of(found[name] for name in ids), strict=True))
        settings: Any = {"usual": words.usual, "k1": words.k1, "b": words.b}
        lexical = BM25Index.of(corpus, **settings)  # first: it refuses to be empty
        if not isinstance(self.nodes, BaseDocumentStore):
            self.nodes = found
        dense: Any = self.dense
        named = getattr(dense, "_node_ids", None)
        if named and set(before) <= set(named):  # all that an index in memory had
            dense._node_ids = [name for name in dict.fromkeys([*named, *new]) if name in found]
        self._allowed = None
        self.swap(
            lexical=lexical,
            vectors=np.concatenate([views.vectors[kept], vectors]),
            keys=np.concatenate([views.keys[kept], keys]),
        )
        self._past = []  # whole corpora, with nodes that are gone

    def moved_documents(self, count: int = 20) -> dict[str, float]:
        """Return which documents' scores the prior changes most: id → change, largest first."""
        views = self.views
        if views.prior is None:
            return {}
        return views.prior.most_moved(views.lexical.ids, views.vectors, views.keys, count=count)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write words, vectors, prior, adapter, filters and settings, atomically.

        Store, nodes, texts and base model are no part of it; words can be read, not their order.
        A FolderError where it would replace something else.
        """
        settings = {name: getattr(self, name) for name in documents_views.SETTINGS}
        filters = getattr(self.dense, "_filters", None)
        documents_views.write(Path(folder), self.views, self.embed_model, settings, filters)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dense: BaseRetriever | VectorStoreIndex,
        nodes: Nodes | Iterable[BaseNode],
        *,
        embed_model: BaseEmbedding | str | None = None,
        verify: bool = True,
    ) -> HybridRetriever:
        """Load what :meth:`save_pretrained` wrote; the vectors stay on disk and are mapped.

        Args:
            folder: Where.
            dense: As for the constructor, or the index, which is then asked for as many candidates,
                with the filters that were saved. Those of a retriever are its own.
            nodes: All nodes of the index; a warning counts those that are missing.
            embed_model: The base model, where the folder holds an adapter for it; else likewise.
            verify: Refuse another base model than when the folder was written, by probe vectors.

        For errors see :meth:`AdaptedEmbedding.from_pretrained`.
        """
        found, kept, filters, fingerprint = documents_views.read(Path(folder))
        if isinstance(dense, VectorStoreIndex):
            embed_model = embed_model or dense._embed_model
            dense = _dense(dense, check_base(embed_model, "embed_model"), filters, **kept)
        if isinstance(nodes, BaseDocumentStore):
            missing = sum(not nodes.document_exists(name) for name in found.lexical.ids)
        else:
            nodes = nodes_by_id(nodes)
            missing = len(set(found.lexical.ids) - set(nodes))
        if missing:
            of = f"{missing:,} of the {len(found.lexical.ids):,} nodes that the folder knows"
            warnings.warn(f"{of} are not among those given: words cannot find them.", stacklevel=2)
        parts: Any = {"vectors": found.vectors, "nodes": nodes, "keys": found.keys, **kept}
        new = cls(dense, found.lexical, **parts, embed_model=embed_model)
        new.views = found
        base = base_of(new.embed_model)
        if verify:
            saving.verify(fingerprint, base, where=folder)
        adapted = Path(folder) / documents_views.MODEL
        if adapted.is_dir() and new.embed_model is base:
            new.embed_model = AdaptedEmbedding.from_pretrained(adapted, base, verify=False)
        return new


def _dense(
    index: Any, model: BaseEmbedding, filters: Any, *, top_k: int, candidates: int
) -> BaseRetriever:
    """Return what asks an index for its first candidates, or raise an :class:`OptionError`."""
    check_whole("top_k", top_k)
    check_whole("candidates", candidates)
    if filters is not None:
        check_kind("filters", filters, MetadataFilters, "LlamaIndex's MetadataFilters")
    settings = {"similarity_top_k": max(candidates, top_k), "filters": filters}
    found: BaseRetriever = index.as_retriever(embed_model=model, **settings)
    return found


def _estimated(
    found: list[NodeWithScore], given: list[tuple[str, int | None]], cosines: Vectors
) -> list[tuple[str, float]]:
    """Return cosines of nodes that only the store knows, by its scores of those with a cosine."""
    scores = np.array([node.score or 0.0 for node in found])
    known = np.array([row is not None for _, row in given])
    estimates = scores
    if len(np.unique(scores[known])) > 1:
        # Cosines, inner products and squared distances are a line; exp(-distance) is in logs.
        forms = [scores, *([np.log(scores)] if (scores > 0).all() else [])]
        lines = [np.polyfit(form[known], cosines, 1, full=True) for form in forms]
        best = min(range(len(forms)), key=lambda at: lines[at][1].sum())
        estimates = np.polyval(lines[best][0], forms[best])
    pairs = zip(given, estimates, strict=True)
    return [(name, float(value)) for (name, row), value in pairs if row is None]
