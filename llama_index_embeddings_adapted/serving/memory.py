"""A retriever that adds to any other's scores what similar training queries were answered by.

Its folder: ``memory.json`` and ``memory.safetensors``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle

from .. import errors
from ..adapters import saving
from ..core import files
from ..core.arrays import Vectors, as_vectors, l2_normalize
from ..core.encoded import Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.base_model import adapted, base_of, check_base, fingerprint_of
from ..encoding.cache import CacheDir
from ..encoding.encoder import answers_of, encode
from ..encoding.serialize import rebuild_base
from ..errors import DatasetError, OptionError, ShapeError
from .views import Nodes, SteppedRetriever, check_nodes, check_retriever, copy_of, fetch_nodes
from .wrapped import Steps

TEMPERATURE, NEIGHBOURS = 0.1, 10
CONFIG, ARRAYS = "memory.json", "memory.safetensors"

Match = Literal["node_id", "ref_doc_id"]

_SETTINGS = ("weight", "temperature", "neighbours", "top_k", "match")
_ARRAYS = {"offsets": np.int64, "documents": np.int64, "shares": np.float64}
_LEAST_SCORE = 0.01  # less than this share of ``weight`` brings no document in


@dataclass(frozen=True, eq=False)
class AnswerMemory:
    """Queries and what answered them, no texts; parts that do not fit are a ShapeError."""

    queries: Vectors  #: ``(n, dim)``, unit rows, of the base model.
    answers: Qrels  #: Of the queries, rows into ``document_ids``; the grades are shares in (0, 1].
    document_ids: tuple[str, ...]  #: Distinct.

    def __post_init__(self) -> None:
        count, known = len(as_vectors(self.queries, what="queries")), len(set(self.document_ids))
        offsets, rows, shares = self.answers.offsets, self.answers.documents, self.answers.grades
        fits = (
            count > 0
            and offsets.shape == (count + 1,)
            and offsets[0] == 0
            and offsets[-1] == len(rows) == len(shares)
            and (np.diff(offsets) > 0).all()
            and ((rows >= 0) & (rows < known)).all()
            and ((shares > 0) & (shares <= 1)).all()
        )
        if not fits:
            expected = f"some of {known} distinct documents, with shares in (0, 1], for each query"
            raise ShapeError("answers", expected=expected, actual=self.answers)

    @classmethod
    def of(cls, queries: Vectors, relevance: Qrels, document_ids: Sequence[str]) -> AnswerMemory:
        """Remember judged queries, ``(n, dim)``, by share of the best grade; or a DatasetError."""
        judged = np.flatnonzero(relevance.counts > 0)
        if not len(judged):
            raise DatasetError("No query has a relevant document: there is nothing to remember.")
        kept = relevance.take(judged)
        best = np.maximum.reduceat(kept.grades, kept.offsets[:-1])
        documents, rows = np.unique(kept.documents, return_inverse=True)
        return cls(
            l2_normalize(as_vectors(queries, what="queries")[judged]),
            Qrels(kept.offsets, rows.astype(np.int64), kept.grades / best[kept.queries]),
            tuple(document_ids[row] for row in documents),
        )

    def lookup(
        self, query: Vectors, *, temperature: float = TEMPERATURE, neighbours: int = NEIGHBOURS
    ) -> dict[str, float]:
        """Return document id → ``Σ w_i y_i``, in [0, 1], largest first, for a query, ``(dim,)``."""
        dim = self.queries.shape[1]
        [vector] = as_vectors(np.atleast_2d(query), what="A vector for this memory", dim=dim)
        cosines = self.queries @ l2_normalize(vector)
        nearest = np.argsort(-cosines, kind="stable")[:neighbours]
        attention = np.exp((cosines[nearest] - 1.0) / temperature)
        attention /= max(attention.sum(), 1.0)
        answers = self.answers.take(nearest)
        rows, place = np.unique(answers.documents, return_inverse=True)
        total = np.bincount(place, weights=attention[answers.queries] * answers.grades)
        order = np.argsort(-total, kind="stable")
        return {self.document_ids[rows[at]]: float(total[at]) for at in order}


class MemoryRetriever(SteppedRetriever):
    """Adds to any LlamaIndex retriever's scores what similar training queries were answered by.

    Deprecated: ``method="auto"`` learns the same, and :class:`HybridRetriever` serves it.

    ``score(q, d) = retriever's score + weight · Σ w_i(q) y_id``: ``w_i``, from the cosine of ``q``
    to remembered query ``i``, sums to at most 1 and vanishes far from every remembered query;
    ``y_id`` is 1 for its best documents. Where the retriever gives no scores, its order stands
    behind what is remembered. What it does not give, only ``nodes`` lets the memory bring in.
    **The retriever's filters do not apply to them:** pass only nodes that anyone who may ask may
    see.

    Args:
        retriever: Any; let it give more nodes than are needed, 30 or 100.
        memory: See :meth:`from_dataset`.
        embed_model: The model whose query vectors are remembered; of an adapted model, the base.
        weight: ``>= 0``, in the units of the retriever's scores.
        temperature: In cosine units, ``> 0``.
        neighbours: How many remembered queries count at most.
        top_k: How many nodes come back at most; by default as many as the retriever gave.
        match: Remembered ids are ``"node_id"``, or ``"ref_doc_id"``, whose nodes gain alike.
        nodes: Where to find what the retriever did not give: id → node, or a docstore.
        shares_embedding: Whether one embedding of a query serves both; by default only where the
            retriever holds this very model.
        callback_manager: That of the retriever by default.

    Raises:
        OptionError: A setting out of range, or arguments that do not go together.

    Source: LADER (Wang et al. 2022, DOI 10.1145/3539618.3591755) and PEFA (Chang et al. 2024,
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
        warnings.warn(
            'MemoryRetriever goes with 0.3. method="auto" learns what answered similar queries, '
            "proven on held-out ones; HybridRetriever puts words beside it.",
            DeprecationWarning,
            stacklevel=2,
        )
        check_retriever("retriever", retriever)
        check_nodes(nodes or {})
        hint = "Of a dataset: MemoryRetriever.from_dataset."
        errors.check_kind("memory", memory, AnswerMemory, "an AnswerMemory", hint)
        errors.check_number("weight", weight, least=0.0)
        errors.check_number("temperature", temperature, above=0.0)
        errors.check_whole("neighbours", neighbours)
        errors.check_whole("top_k", 1 if top_k is None else top_k)
        errors.check_choice("match", match, get_args(Match))
        if nodes is not None and match == "ref_doc_id":
            raise OptionError(
                'nodes: expected None with match="ref_doc_id": which of the nodes of a remembered '
                "document to bring in is not known."
            )
        self.retriever, self.memory = retriever, memory
        self.weight, self.temperature = float(weight), float(temperature)
        self.neighbours, self.top_k, self.match = int(neighbours), top_k, match
        self._embed_model, self._nodes = check_base(embed_model, "embed_model"), nodes
        self._base, its = base_of(self._embed_model), getattr(retriever, "_embed_model", None)
        self._shares = its is embed_model if shares_embedding is None else shares_embedding
        own = getattr(retriever, "callback_manager", None)
        super().__init__(callback_manager=callback_manager or own)

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
        """Embed the queries of a dataset whose document ids are node ids, or what ``match`` says.

        ``settings`` are those of the constructor, the others of :class:`Encoder`. A DatasetError
        where no query has a relevant document.
        """
        embed_model = check_base(embed_model, "embed_model")
        encoding: Any = {"batch_size": batch_size, "cache_dir": cache_dir}
        encoding["show_progress"] = show_progress
        queries = encode(base_of(embed_model), [*dataset.queries.values()], "query", **encoding)
        memory = AnswerMemory.of(queries, answers_of(dataset), tuple(dataset.corpus))
        return cls(retriever, memory, embed_model=embed_model, **settings)

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        """Embed the query, retrieve, bring remembered documents in, rank."""
        own = self._shares and self._embed_model is self._base
        vector, remembered = bundle.embedding if own else None, dict[str, float]()
        if vector is None and bundle.query_str:
            base = self._base
            vector = yield base.get_query_embedding, base.aget_query_embedding, (bundle.query_str,)
        handed_on = self._handed_on(bundle, vector)
        found = yield self.retriever.retrieve, self.retriever.aretrieve, (handed_on,)
        if vector is not None:
            asked, near = np.asarray(vector, np.float32), self.neighbours
            remembered = self.memory.lookup(asked, temperature=self.temperature, neighbours=near)
        limit = len(found) if self.top_k is None else self.top_k
        present = {node.node_id for node in found}
        told = [name for name, share in remembered.items() if share >= _LEAST_SCORE]
        absent = [] if self._nodes is None else [name for name in told if name not in present]
        added = yield from fetch_nodes(self._nodes or {}, absent[:limit])
        return self._ranked(found, remembered, added)[:limit]

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"retriever": self.retriever}

    def _handed_on(self, bundle: QueryBundle, vector: list[float] | None) -> QueryBundle:
        """Return a copy (retrievers write to bundles), with a vector where that saves a call."""
        plain = bundle.embedding is None and bundle.embedding_strs == [bundle.query_str]
        if vector is None or not plain or not self._shares:
            return replace(bundle)
        if self._embed_model is not self._base:
            vector = adapted(self._embed_model, np.asarray(vector, np.float32), "query").tolist()
        return replace(bundle, embedding=vector)

    def _ranked(
        self, found: list[NodeWithScore], remembered: dict[str, float], added: dict[str, BaseNode]
    ) -> list[NodeWithScore]:
        scores = _scores(found, self.retriever)
        floor = min(scores, default=0.0)
        scored = [
            (score + self.weight * remembered.get(getattr(node.node, self.match) or "", 0.0), node)
            for score, node in zip(scores, found, strict=True)
        ] + [
            (floor + self.weight * remembered[name], NodeWithScore(node=copy_of(node)))
            for name, node in added.items()
        ]
        scored.sort(key=lambda pair: -pair[0])
        return [node.model_copy(update={"score": score}) for score, node in scored]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write memory, settings and base model's identity, atomically; or raise a FolderError."""
        files.check_target_folder(Path(folder), frozenset((CONFIG, ARRAYS)))
        fingerprint, answers = fingerprint_of(self._base), self.memory.answers
        config = {
            **saving.provenance(self._base, fingerprint),
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "document_ids": list(self.memory.document_ids),
        }
        kept = (answers.offsets, answers.documents, answers.grades)
        arrays = {"queries": self.memory.queries, files.PROBES: fingerprint.probes}
        with files.atomic_folder(Path(folder)) as temporary:
            content = files.to_bytes({**arrays, **dict(zip(_ARRAYS, kept, strict=True))})
            (temporary / ARRAYS).write_bytes(content)
            (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")

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
        """Load what :meth:`save_pretrained` wrote, for any retriever; ``settings`` win over it.

        For the rest, and for errors, see :meth:`AdaptedEmbedding.from_pretrained`.
        """
        path = Path(folder)
        config = files.read_config(path, CONFIG)
        files.check_version(config, path)
        arrays = files.read_arrays(path / ARRAYS)
        with files.legible(f"{path}: not a saved memory"):
            parts: Any = (arrays[k].astype(kind, casting="safe") for k, kind in _ARRAYS.items())
            memory = AnswerMemory(arrays["queries"], Qrels(*parts), tuple(config["document_ids"]))
            base = {**config["base_model"], "dim": memory.queries.shape[1]}
            fingerprint = saving.read_fingerprint(base, arrays.get(files.PROBES), where=path)
            saved = {name: each for name, each in config["settings"].items() if name in _SETTINGS}
        embed_model = rebuild_base(config["base_model"]) if embed_model is None else embed_model
        if verify:
            saving.verify(fingerprint, base_of(embed_model), where=path)
        return cls(retriever, memory, embed_model=embed_model, **{**saved, **settings})


def _scores(found: list[NodeWithScore], retriever: BaseRetriever) -> list[float]:
    """Return the scores, all 0 where the retriever gives none; an OptionError if only some."""
    scores = [0.0 if node.score is None else float(node.score) for node in found]
    unscored = sum(node.score is None for node in found)
    if 0 < unscored < len(found) or not np.isfinite(scores).all():
        raise OptionError(
            f"{type(retriever).__name__}: expected a finite score for each node or for none, as a "
            "memory adds to scores. Wrap a retriever that gives them."
        )
    return scores
