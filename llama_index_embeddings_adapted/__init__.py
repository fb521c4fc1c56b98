"""Adapters for LlamaIndex embedding models: train, judge, serve.

Importing this package loads neither torch nor transformers: what trains is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.composed import ComposedEmbedding
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.errors import AdaptedError
from llama_index_embeddings_adapted.maps import LinearAdapter, LowRankAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.resolve import resolve_embed_model

if TYPE_CHECKING:
    from llama_index_embeddings_adapted.candidates import Candidate
    from llama_index_embeddings_adapted.comparison import Comparison, compare_retrieval
    from llama_index_embeddings_adapted.composed_engine import (
        ComposedFinetuneEngine,
        SentenceTransformersFinetuneEngine,
    )
    from llama_index_embeddings_adapted.corpus import EmbeddedCorpus, embed_corpus
    from llama_index_embeddings_adapted.engines import EmbeddingAdapterFinetuneEngine
    from llama_index_embeddings_adapted.estimation import Estimate, estimate
    from llama_index_embeddings_adapted.evaluation import RetrievalScores, evaluate_retrieval
    from llama_index_embeddings_adapted.generation import (
        agenerate_qa_embedding_pairs,
        generate_qa_embedding_pairs,
    )
    from llama_index_embeddings_adapted.local_llama import LocalLlama
    from llama_index_embeddings_adapted.moves import (
        MoveReport,
        bound_nudges,
        moved_documents,
        undo_nudges,
    )
    from llama_index_embeddings_adapted.negatives import mine_hard_negatives
    from llama_index_embeddings_adapted.passages import hold_out_documents
    from llama_index_embeddings_adapted.pool import AdapterPool
    from llama_index_embeddings_adapted.question_report import QuestionReport
    from llama_index_embeddings_adapted.rebuild import adapt_index
    from llama_index_embeddings_adapted.report import FinetuneReport
    from llama_index_embeddings_adapted.retriever import MemoryRetriever
    from llama_index_embeddings_adapted.similarity import SimilarityCheck, check_similarity
    from llama_index_embeddings_adapted.streaming import adapt_nodes, adapt_vectors
    from llama_index_embeddings_adapted.structure import pairs_from_structure
    from llama_index_embeddings_adapted.upgrade import (
        Upgrade,
        UpgradeScores,
        evaluate_upgrade,
        upgrade_adapter,
    )
    from llama_index_embeddings_adapted.watching import DriftReport, inspect_queries

__all__ = [
    "AdaptedEmbedding",
    "AdaptedError",
    "Adapter",
    "AdapterPool",
    "Candidate",
    "Comparison",
    "ComposedEmbedding",
    "ComposedFinetuneEngine",
    "DriftReport",
    "EmbeddedCorpus",
    "EmbeddingAdapterFinetuneEngine",
    "EmbeddingQAFinetuneDataset",
    "Estimate",
    "FinetuneReport",
    "LinearAdapter",
    "LocalLlama",
    "LowRankAdapter",
    "MemoryRetriever",
    "MoveReport",
    "QuestionReport",
    "RetrievalScores",
    "SentenceTransformersFinetuneEngine",
    "SimilarityCheck",
    "TwoLayerAdapter",
    "Upgrade",
    "UpgradeScores",
    "adapt_index",
    "adapt_nodes",
    "adapt_vectors",
    "agenerate_qa_embedding_pairs",
    "bound_nudges",
    "check_similarity",
    "compare_retrieval",
    "embed_corpus",
    "estimate",
    "evaluate_retrieval",
    "evaluate_upgrade",
    "generate_qa_embedding_pairs",
    "hold_out_documents",
    "inspect_queries",
    "mine_hard_negatives",
    "moved_documents",
    "pairs_from_structure",
    "resolve_embed_model",
    "undo_nudges",
    "upgrade_adapter",
]

_LAZY = {
    "AdapterPool": "pool",
    "Candidate": "candidates",
    "Comparison": "comparison",
    "ComposedFinetuneEngine": "composed_engine",
    "DriftReport": "watching",
    "EmbeddedCorpus": "corpus",
    "EmbeddingAdapterFinetuneEngine": "engines",
    "Estimate": "estimation",
    "FinetuneReport": "report",
    "LocalLlama": "local_llama",
    "MemoryRetriever": "retriever",
    "MoveReport": "moves",
    "QuestionReport": "question_report",
    "RetrievalScores": "evaluation",
    "SentenceTransformersFinetuneEngine": "composed_engine",
    "SimilarityCheck": "similarity",
    "Upgrade": "upgrade",
    "UpgradeScores": "upgrade",
    "adapt_index": "rebuild",
    "adapt_nodes": "streaming",
    "adapt_vectors": "streaming",
    "agenerate_qa_embedding_pairs": "generation",
    "bound_nudges": "moves",
    "check_similarity": "similarity",
    "compare_retrieval": "comparison",
    "embed_corpus": "corpus",
    "estimate": "estimation",
    "evaluate_retrieval": "evaluation",
    "evaluate_upgrade": "upgrade",
    "generate_qa_embedding_pairs": "generation",
    "hold_out_documents": "passages",
    "inspect_queries": "watching",
    "mine_hard_negatives": "negatives",
    "moved_documents": "moves",
    "pairs_from_structure": "structure",
    "undo_nudges": "moves",
    "upgrade_adapter": "upgrade",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register(loading: Any) -> None:
    for ours in (AdaptedEmbedding, ComposedEmbedding):
        loading.RECOGNIZED_EMBEDDINGS[ours.class_name()] = ours


# load_embed_model knows us from the moment it exists. Its module is not imported here: it would
# import every provider's package that is installed.
wrapt.register_post_import_hook(_register, "llama_index.core.embeddings.loading")
