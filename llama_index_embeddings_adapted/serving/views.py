"""What a hybrid retriever knows of documents besides the vector store, and its folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.vector_stores.simple import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from ..adapters import saving
from ..adapters.base import describe, restore
from ..adapters.prior import DocumentPrior
from ..core import files
from ..core.arrays import Keys, Rows, Vectors, content_hashes, l2_normalize
from ..encoding.base_model import Fingerprint, adapted, base_of, fingerprint_of
from ..encoding.encoder import encode
from ..errors import OptionError, ShapeError, StoreError, check_kind, check_known, check_number
from ..evaluation.retrieval import ScoreShift
from ..lexical import bm25
from ..lexical.bm25 import WEIGHT, BM25Index
from .embedding import AdaptedEmbedding
from .wrapped import Steps, arun_steps, run_steps

CONFIG, ARRAYS, VECTORS = "hybrid.json", "hybrid.safetensors", "vectors.npy"
FORMAT_VERSION = 2
MODEL = "model"  # the folder of an adapted model
SETTINGS = ("top_k", "candidates")  # of the retriever
_OF_LISTS = (FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL)
_FILES = frozenset({CONFIG, ARRAYS, VECTORS, MODEL, bm25.CONFIG, bm25.ARRAYS})

Nodes = Mapping[str, BaseNode] | BaseDocumentStore


@dataclass(frozen=True, eq=False)
class Views:
    """What is known of documents besides the vector store; immutable."""

    lexical: BM25Index  #: Their words.
    vectors: Vectors  #: ``(m, dim)``, unit rows in the order of ``lexical.ids``; maybe in a file.
    keys: Keys  #: ``(m,)``, content keys.
    weight: float = WEIGHT  #: Of words, in cosine units.
    prior: DocumentPrior | None = None
    shifts: Any = None  #: ``(m,)``, what the prior takes off; computed unless given.
    scale: ScoreShift | None = None  #: See :meth:`HybridRetriever.calibrate`.

    def __post_init__(self) -> None:
        check_number("weight", self.weight, least=0.0)
        count = len(self.lexical)
        if self.vectors.ndim != 2 or len(self.vectors) != count or self.keys.shape != (count,):
            raise ShapeError(
                "vectors and keys of the documents",
                expected=f"{count}, as the words have",
                actual=f"{self.vectors.shape} and {self.keys.shape}",
            )
        if self.prior is not None and self.prior.input_dim != self.vectors.shape[1]:
            expected = f"{self.vectors.shape[1]} dimensions"
            raise ShapeError("prior", expected=expected, actual=self.prior)
        if self.prior is None:
            object.__setattr__(self, "shifts", np.zeros(count, dtype=np.float32))
        elif self.shifts is None:
            object.__setattr__(self, "shifts", self.prior.shifts(self.vectors, self.keys))

    def changed(self, **changes: Any) -> Views:
        """Return views with other fields; the prior's shifts follow what they depend on."""
        check_known(changes, [each.name for each in fields(self)], what="swap")
        if not set(changes) <= {"weight", "shifts", "scale"}:
            changes.setdefault("shifts", None)
        return replace(self, **changes)

    def scores(self, rows: Rows, query: Vectors, shares: Vectors) -> Vectors:
        """Return ``cosine + weight · words - prior`` of documents, ``(n,)``, for a unit query.

        ``shares``, ``(m,)``, is what words say of all documents, see :meth:`BM25Index.shares`.
        """
        cosines = self.vectors[rows] @ query
        mixed = cosines + np.float32(self.weight) * shares[rows] - self.shifts[rows]
        return np.asarray(mixed, dtype=np.float32)


class SteppedRetriever(BaseRetriever):
    """Finds nodes by a generator of calls, :meth:`_steps`, both ways."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return run_steps(self._steps(query_bundle))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await arun_steps(self._steps(query_bundle))

    def _steps(self, bundle: QueryBundle) -> Steps[list[NodeWithScore]]:
        raise NotImplementedError


def check_retriever(name: str, retriever: object) -> None:
    """Refuse, by an :class:`OptionError`, what is no retriever."""
    hint = "Of an index: index.as_retriever(similarity_top_k=100)."
    check_kind(name, retriever, BaseRetriever, "a LlamaIndex retriever", hint)


def check_nodes(nodes: object) -> None:
    """Refuse, by an :class:`OptionError`, where no node can be looked up."""
    check_kind("nodes", nodes, (Mapping, BaseDocumentStore), "a dict of id → node or a docstore")


def fetch_nodes(nodes: Nodes, ids: list[str]) -> Steps[dict[str, BaseNode]]:
    """Yield the call that gets nodes by their ids; those that are not known are passed over."""
    if isinstance(nodes, BaseDocumentStore):
        stored = yield nodes.get_nodes, nodes.aget_nodes, (ids, False)
        return {node.node_id: node for node in stored}
    return {name: nodes[name] for name in ids if name in nodes}


def passing(filters: MetadataFilters | None) -> Callable[[BaseNode], float]:
    """Return what says of a node whether every store lets it through: 1, 0, or ½ if not all do.

    LlamaIndex's own function takes no filters within filters, as several of its stores do.
    """
    parts = [
        passing(each) if isinstance(each, MetadataFilters) else _passing_one(each)
        for each in (filters.filters if filters else [])
    ]
    how = filters.condition if filters and parts else FilterCondition.AND
    if how == FilterCondition.NOT:
        return lambda node: 1.0 - max(part(node) for part in parts)
    several = max if how == FilterCondition.OR else min
    return lambda node: several((part(node) for part in parts), default=1.0)


def _passing_one(one: MetadataFilter) -> Callable[[BaseNode], float]:
    """Return the same for one filter; stores differ where a key is missing or kinds do not fit."""
    lookup: Any = dict  # metadata stand for their node's id
    holds: Any = build_metadata_filter_fn(lookup, MetadataFilters(filters=[one]))

    def passes(node: BaseNode) -> float:
        source = dict.fromkeys(("doc_id", "ref_doc_id", "document_id"), node.ref_doc_id)
        metadata = {**node.metadata, **source}  # as stores have it
        found = metadata.get(one.key)
        if one.operator == FilterOperator.IS_EMPTY:
            agreed = found not in ("", [])
        else:
            kinds = {_kind(each) for each in (*_listed(found), *_listed(one.value))}
            of_list = one.operator in _OF_LISTS
            agreed = found is not None and len(kinds) == 1 and isinstance(found, list) == of_list
        with suppress(TypeError):
            return float(holds(metadata)) if agreed else 0.5
        return 0.5

    return passes


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _kind(value: Any) -> tuple[bool, bool]:
    return isinstance(value, str), isinstance(value, bool)


def copy_of(node: BaseNode) -> BaseNode:
    """Return a node for postprocessors to write into; the object of an ``IndexNode`` is shared."""
    shared = getattr(node, "obj", None)
    return copy.deepcopy(node, {id(shared): shared})


def nodes_by_id(nodes: Nodes | Iterable[BaseNode]) -> dict[str, BaseNode]:
    """Return nodes by their id; an OptionError for none, or for something else."""
    if isinstance(nodes, BaseDocumentStore):
        found = {name: node for name, node in nodes.docs.items() if isinstance(node, BaseNode)}
    elif isinstance(nodes, Mapping):
        found = dict(nodes)
    else:
        found = {}
        for node in nodes:
            check_kind("nodes", node, BaseNode, "LlamaIndex nodes, such as TextNode(text=…)")
            found[node.node_id] = node
    if not found:
        raise OptionError("nodes: expected the nodes of the index, got none.")
    return found


def texts_of(nodes: Iterable[BaseNode]) -> list[str]:
    """Return what is embedded of nodes."""
    return [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def index_and_nodes(
    index_or_nodes: VectorStoreIndex | Iterable[BaseNode], model: BaseEmbedding
) -> tuple[VectorStoreIndex, dict[str, BaseNode]]:
    """Return an index, in memory where nodes were given, and its nodes by id."""
    if isinstance(index_or_nodes, VectorStoreIndex):
        return index_or_nodes, nodes_by_id(nodes_of(index_or_nodes))
    nodes = nodes_by_id(index_or_nodes)
    return VectorStoreIndex(list(nodes.values()), embed_model=model), nodes


def nodes_of(index: VectorStoreIndex) -> list[BaseNode]:
    """Return all nodes of an index, from its document store or else its vector store.

    A StoreError where the index is empty, or its store cannot list them.
    """
    ids = list(dict.fromkeys(index.index_struct.nodes_dict.values()))
    if ids and all(index.docstore.document_exists(node) for node in ids):
        return index.docstore.get_nodes(ids)
    store = index.vector_store
    if not ids and isinstance(store, SimpleVectorStore):
        raise StoreError("The index is empty: expected one with nodes.")
    try:
        try:
            return store.get_nodes(node_ids=None)
        except AssertionError:  # PostgreSQL's takes an empty list for all
            return store.get_nodes(node_ids=[])
        except ValueError:  # Milvus' an empty filter
            return store.get_nodes(node_ids=None, filters=MetadataFilters(filters=[]))
    except Exception as cause:  # stores raise what they like; the advice is the same
        what = f"{type(store).__name__} cannot list its nodes ({cause})"
        advice = "Pass the nodes: to adapt_index as nodes=…, elsewhere in place of the index"
        raise StoreError(f"{what}. {advice}.") from cause


def document_vectors(
    model: BaseEmbedding, texts: list[str], **settings: Any
) -> tuple[Keys, Vectors]:
    """Return content keys, and the unit vectors that a model gives documents."""
    keys, vectors = content_hashes(texts), encode(base_of(model), texts, "document", **settings)
    return keys, l2_normalize(adapted(model, vectors, "document", keys))


def write(
    folder: Path,
    views: Views,
    model: BaseEmbedding,
    settings: Mapping[str, int],
    filters: MetadataFilters | None,
) -> None:
    """Write views, settings, filters and the identity of the base model; atomic."""
    files.check_target_folder(folder, _FILES)
    base = base_of(model)
    fingerprint = fingerprint_of(base)
    config = {
        **saving.provenance(base, fingerprint),
        "format_version": FORMAT_VERSION,
        "weight": views.weight,
        "prior": None if views.prior is None else describe(views.prior),
        "settings": dict(settings),
        "filters": filters and filters.model_dump(mode="json"),
        "scale": None if views.scale is None else asdict(views.scale),
    }
    prior = {} if views.prior is None else views.prior.arrays()
    arrays: files.Arrays = {"document_keys": views.keys, "shifts": views.shifts}
    arrays |= {f"prior.{name}": array for name, array in prior.items()}
    arrays[files.PROBES] = fingerprint.probes
    with files.atomic_folder(folder) as temporary:
        if isinstance(model, AdaptedEmbedding):
            model.save_pretrained(temporary / MODEL)
        views.lexical.write(temporary)
        np.save(temporary / VECTORS, views.vectors, allow_pickle=False)
        (temporary / ARRAYS).write_bytes(files.to_bytes(arrays))
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[Views, dict[str, int], MetadataFilters | None, Fingerprint]:
    """Read what :func:`write` wrote, or raise a FolderError; the vectors stay on disk."""
    config = files.read_format(folder / CONFIG, FORMAT_VERSION)
    arrays = files.read_arrays(folder / ARRAYS)
    own = {n.removeprefix("prior."): a for n, a in arrays.items() if n.startswith("prior.")}
    with files.legible(f"{folder}: not a saved retriever"):
        prior: Any = config["prior"] and restore(config["prior"], own, where=str(folder))
        if not (prior is None or isinstance(prior, DocumentPrior)):
            raise TypeError(f"a {type(prior).__name__} in place of a prior")
        keys, shifts = arrays["document_keys"], arrays["shifts"]
        if shifts.shape != keys.shape:
            raise ShapeError("shifts", expected=keys.shape, actual=shifts.shape)
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        scale = config.get("scale") and ScoreShift(**config["scale"])
        rest: Any = float(config["weight"]), prior, shifts, scale
        base, probes = config["base_model"], arrays[files.PROBES]
        return (
            Views(BM25Index.load(folder), vectors, keys, *rest),
            {name: int(config["settings"][name]) for name in SETTINGS},
            config.get("filters") and MetadataFilters(**config["filters"]),
            saving.read_fingerprint(base, probes, where=folder),
        )
