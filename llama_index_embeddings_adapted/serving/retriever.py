"""A retriever that adds the memory of similar queries to the scores of any other retriever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore

from ..adapters import saving
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.cache import CacheDir
from ..encoding.encoder import Adapting
from ..encoding.serialize import rebuild_base
from ..errors import OptionError, quote_some
from . import memory as answer_store
from .base_vectors import Steps, arun_steps, fetch_nodes, run_steps
from .memory import NEIGHBOURS, TEMPERATURE, AnswerMemory, base_of, check_settings

Match = Literal["node_id", "ref_doc_id"]
Nodes = Mapping[str, BaseNode] | BaseDocumentStore

_SETTINGS = ("weight", "temperature", "neighbours", "top_k", "match")
_LEAST_SCORE = 0.01  # less than this share of ``weight`` brings no document in


class MemoryRetriever(BaseRetriever):
    """Adds to any LlamaIndex retriever's scores what similar training queries were answered by.

    ``score(q, d) = retriever's score + weight · Σ w_i(q) y_id``: ``w_i``, from the cosine of ``q``
    to remembered query ``i``, sums to at most 1 and vanishes far from every remembered query;
    ``y_id`` is 1 for its best documents. So a document gains at most ``weight``. Nodes come back
    best first; nodes of equal score keep the retriever's order.

    What it costs: documents without a remembered query gain nothing, so where queries about them
    resemble remembered ones, others pass them by. Choose ``weight`` on held-out queries about both
    kinds of document, with :func:`search_with_memory`.

    Let the wrapped retriever give more nodes than are needed, 30 or 100, and set ``top_k``: what it
    does not give, the memory cannot lift. ``nodes`` lets the memory bring such documents in. What
    the retriever would have scored them is unknown, but no more than the lowest score it gave, so
    that is their score without memory (0 if it gave no node); a document whose memory is below
    1 % of ``weight`` is not brought in. **The retriever's filters do not apply to them:** pass only
    nodes that anyone who may ask may see.

    A retriever that gives no scores counts as giving 0 to each node: its order stands, behind what
    is remembered.

    Args:
        retriever: Any.
        memory: See :meth:`from_dataset`.
        embed_model: The model whose query vectors are remembered; of an adapted model, the base.
        weight: ``>= 0``, in the units of the retriever's scores: .1 suits cosines; for BM25 start
            with what lies between a first and a tenth node.
        temperature: In cosine units, ``> 0``.
        neighbours: How many remembered queries count at most.
        top_k: How many nodes come back at most; by default as many as the retriever gave.
        match: What a remembered document id is: a ``node_id``, or the ``ref_doc_id`` of nodes,
            which all gain alike.
        nodes: Where to find remembered documents that the retriever did not give: id → node, or a
            docstore such as ``index.docstore``. Ids that it does not know are passed over.
        shares_embedding: Whether the retriever searches with the vectors of ``embed_model``. Then
            one embedding serves both: it is handed on in the ``QueryBundle``, and one that comes
            in the bundle is taken as the query's. By default only where the retriever holds this
            very object. Otherwise a vector in the bundle is the retriever's alone.
        callback_manager: That of the retriever by default.

    Raises:
        OptionError: A setting out of range, or arguments that do not go together.

    Source:
        LADER (Wang et al. 2022, DOI 10.1145/3539618.3591755) and PEFA (Chang et al. 2024,
        arXiv:2312.02429). The bound on what is added and its vanishing are ours.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        memory: AnswerMemory,
        *,
        embed_model: BaseEmbedding,
        weight: float = 0.1,
        temperature: float = TEMPERATURE,
        neighbours: int = NEIGHBOURS,
        top_k: int | None = None,
        match: Match = "node_id",
        nodes: Nodes | None = None,
        shares_embedding: bool | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        _check_parts(retriever, memory, match, nodes)
        check_settings(weight, temperature, neighbours, top_k)
        self.retriever, self.memory = retriever, memory
        self.weight, self.temperature = float(weight), float(temperature)
        self.neighbours, self.top_k, self.match = int(neighbours), top_k, match
        self._base, self._embed_model, self._nodes = base_of(embed_model), embed_model, nodes
        if shares_embedding is None:
            shares_embedding = getattr(retriever, "_embed_model", None) is embed_model
        self._shares_embedding = shares_embedding
        super().__init__(
            callback_manager=callback_manager or getattr(retriever, "callback_manager", None)
        )

    @classmethod
    def from_dataset(
        cls,
        retriever: BaseRetriever,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        *,
        batch_size: int | None = None,
        cache_dir: CacheDir = None,
        show_progress: bool = True,
        **settings: Any,
    ) -> MemoryRetriever:
        """Remember the queries of a dataset; arguments as of :meth:`AnswerMemory.from_dataset`.

        Args:
            retriever: Any.
            dataset: Its document ids are to be node ids; see ``match``.
            embed_model: Any LlamaIndex embedding model.
            batch_size: Texts per call; the model's ``embed_batch_size`` by default.
            cache_dir: See :class:`Encoder`.
            show_progress: Show a bar while embedding.
            settings: Passed to the constructor.

        Raises:
            DatasetError: No query has a relevant document.
            EncodeError: The model gave no usable vector.
            OptionError: As the constructor.
        """
        memory = AnswerMemory.from_dataset(
            dataset,
            embed_model,
            batch_size=batch_size,
            cache_dir=cache_dir,
            show_progress=show_progress,
        )
        return cls(retriever, memory, embed_model=embed_model, **settings)

    # --- what LlamaIndex calls ----------------------------------------------------------------

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run_steps(self._steps(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await arun_steps(self._steps(query_bundle))

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        """Embed the query, retrieve, bring remembered documents in, rank."""
        vector = self._given_vector(bundle)
        if vector is None and bundle.query_str:
            base = self._base
            vector = yield base.get_query_embedding, base.aget_query_embedding, (bundle.query_str,)
        handed_on = self._handed_on(bundle, vector)
        found = yield self.retriever.retrieve, self.retriever.aretrieve, (handed_on,)
        remembered = (
            {}
            if vector is None
            else self.memory.lookup(
                np.asarray(vector, np.float32),
                temperature=self.temperature,
                neighbours=self.neighbours,
            )
        )
        limit = len(found) if self.top_k is None else self.top_k
        added: dict[str, BaseNode] = {}
        if self._nodes is not None:
            absent = self._absent(found, remembered)[:limit]
            added = yield from fetch_nodes(self._nodes, absent)
        return self._ranked(found, remembered, added)[:limit]

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"retriever": self.retriever}

    # --- the query's vector -------------------------------------------------------------------

    def _given_vector(self, bundle: QueryBundle) -> list[float] | None:
        """Return the bundle's vector where it is one of the base model."""
        own = self._shares_embedding and self._embed_model is self._base
        return bundle.embedding if own else None

    def _handed_on(self, bundle: QueryBundle, vector: list[float] | None) -> QueryBundle:
        """Return a copy (retrievers write to bundles), with a vector where that saves a call."""
        plain = bundle.embedding is None and bundle.embedding_strs == [bundle.query_str]
        if vector is None or not plain or not self._shares_embedding:
            return replace(bundle)
        if isinstance(self._embed_model, Adapting):
            vector = self._embed_model.adapt(np.asarray(vector, np.float32), "query").tolist()
        return replace(bundle, embedding=vector)

    # --- the nodes ----------------------------------------------------------------------------

    def _absent(self, found: list[NodeWithScore], remembered: dict[str, float]) -> list[str]:
        """Return the ids of the documents to bring in, best first."""
        present = {node.node_id for node in found}
        return [d for d, share in remembered.items() if share >= _LEAST_SCORE and d not in present]

    def _ranked(
        self, found: list[NodeWithScore], remembered: dict[str, float], added: dict[str, BaseNode]
    ) -> list[NodeWithScore]:
        scores = _scores(found, self.retriever)
        floor = min(scores, default=0.0)
        scored = [
            (score + self.weight * remembered.get(getattr(node.node, self.match) or "", 0.0), node)
            for score, node in zip(scores, found, strict=True)
        ] + [
            (floor + self.weight * remembered[name], NodeWithScore(node=node))
            for name, node in added.items()
        ]
        scored.sort(key=lambda pair: -pair[0])
        return [node.model_copy(update={"score": score}) for score, node in scored]

    # --- saving -------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write memory, settings and the identity of the base model; atomic, without texts.

        The wrapped retriever and ``nodes`` are not part of it.

        Raises:
            FolderError: The folder exists and holds something else.
        """
        settings = {name: getattr(self, name) for name in _SETTINGS}
        answer_store.write(Path(folder), self.memory, self._base, settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        retriever: BaseRetriever,
        embed_model: BaseEmbedding | None = None,
        *,
        verify: bool = True,
        **settings: Any,
    ) -> MemoryRetriever:
        """Load what :meth:`save_pretrained` wrote.

        Args:
            folder: Where.
            retriever: Any, not only the one it was saved with.
            embed_model: None builds the base model from what the folder says.
            verify: Ask the model for a few probe vectors, and refuse it if they are not those of
                the model whose query vectors are remembered.
            settings: Passed to the constructor, before what was saved.

        Raises:
            FolderError: The folder is missing, damaged, foreign or too new, or the base model
                cannot be built.
            BaseModelMismatchError: The model is not the one the memory was made with.
            OptionError: As the constructor.
        """
        path = Path(folder)
        config, memory, fingerprint = answer_store.read(path)
        if embed_model is None:
            embed_model = rebuild_base(config.get("base_model"))
        if verify:
            saving.verify(fingerprint, base_of(embed_model), where=path)
        saved = config["settings"]
        kept = {name: saved[name] for name in _SETTINGS if name in saved}
        return cls(retriever, memory, embed_model=embed_model, **{**kept, **settings})


def _check_parts(retriever: object, memory: object, match: object, nodes: object) -> None:
    if not isinstance(retriever, BaseRetriever):
        raise OptionError(
            f"retriever: expected a LlamaIndex retriever, got {type(retriever).__name__}. "
            "Of an index: index.as_retriever()."
        )
    if not isinstance(memory, AnswerMemory):
        raise OptionError(
            f"memory: expected an AnswerMemory, got {type(memory).__name__}. "
            "Of a dataset: MemoryRetriever.from_dataset."
        )
    if match not in ("node_id", "ref_doc_id"):
        raise OptionError(f'match: expected "node_id" or "ref_doc_id", got {match!r}.')
    if nodes is not None and not isinstance(nodes, (Mapping, BaseDocumentStore)):
        raise OptionError(
            f"nodes: expected a dict of id → node or a docstore, got {type(nodes).__name__}."
        )
    if nodes is not None and match == "ref_doc_id":
        raise OptionError(
            'nodes: expected None with match="ref_doc_id": which of the nodes of a remembered '
            "document to bring in is not known."
        )


def _scores(found: list[NodeWithScore], retriever: BaseRetriever) -> list[float]:
    """Return the scores, all 0 where the retriever gives none; an OptionError if only some."""
    given = [0.0 if node.score is None else float(node.score) for node in found]
    unscored = [node.node_id for node in found if node.score is None]
    odd = [node.node_id for node, score in zip(found, given, strict=True) if not np.isfinite(score)]
    if odd or 0 < len(unscored) < len(found):
        bad = odd or unscored
        raise OptionError(
            f"{type(retriever).__name__}: expected a finite score for each node or for none; "
            f"{len(bad)} of {len(found)} nodes have {'NaN or infinity' if odd else 'no score'} "
            f"(first: {quote_some(bad)}). A memory adds to scores: wrap a retriever that gives "
            "them."
        )
    return given
