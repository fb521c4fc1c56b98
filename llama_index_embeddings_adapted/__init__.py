"""Adapters for LlamaIndex embedding models: train, judge, serve.

Importing this package loads nothing: names are found on first use, and only training loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from llama_index_embeddings_adapted.errors import AdaptedError

if TYPE_CHECKING:
    from llama_index_embeddings_adapted.adapters.base import Adapter
    from llama_index_embeddings_adapted.adapters.maps import (
        LinearAdapter,
        LowRankAdapter,
        TwoLayerAdapter,
    )
    from llama_index_embeddings_adapted.adapters.prior import DocumentPrior
    from llama_index_embeddings_adapted.composed.embedding import ComposedEmbedding
    from llama_index_embeddings_adapted.composed.engines import (
        ComposedFinetuneEngine,
        SentenceTransformersFinetuneEngine,
    )
    from llama_index_embeddings_adapted.data.dataset import EmbeddingQAFinetuneDataset
    from llama_index_embeddings_adapted.encoding.corpus import EmbeddedCorpus, embed_corpus
    from llama_index_embeddings_adapted.evaluation.comparison import Comparison, compare_retrieval
    from llama_index_embeddings_adapted.evaluation.reports import FinetuneReport
    from llama_index_embeddings_adapted.evaluation.retrieval import (
        RetrievalScores,
        evaluate_retrieval,
        mine_hard_negatives,
    )
    from llama_index_embeddings_adapted.evaluation.verdict import Decision, Verdict
    from llama_index_embeddings_adapted.lexical.bm25 import BM25Index, Mixture
    from llama_index_embeddings_adapted.lexical.embedding import LexicalEmbedding
    from llama_index_embeddings_adapted.operations.folder import ship_candidate
    from llama_index_embeddings_adapted.operations.monitoring import (
        DriftReport,
        MoveReport,
        bound_nudges,
        inspect_queries,
        moved_documents,
        undo_nudges,
    )
    from llama_index_embeddings_adapted.operations.rebuild import (
        adapt_index,
        adapt_nodes,
        adapt_vectors,
    )
    from llama_index_embeddings_adapted.operations.similarity import (
        SimilarityCheck,
        check_similarity,
    )
    from llama_index_embeddings_adapted.operations.unlabelled import adapt_without_labels
    from llama_index_embeddings_adapted.operations.upgrade import (
        Upgrade,
        UpgradeScores,
        evaluate_upgrade,
        upgrade_adapter,
    )
    from llama_index_embeddings_adapted.questions.filters import Candidate
    from llama_index_embeddings_adapted.questions.generate import (
        Estimate,
        agenerate_qa_embedding_pairs,
        estimate,
        generate_qa_embedding_pairs,
    )
    from llama_index_embeddings_adapted.questions.local_llama import LocalLlama
    from llama_index_embeddings_adapted.questions.options import hold_out_documents
    from llama_index_embeddings_adapted.questions.selection import QuestionReport
    from llama_index_embeddings_adapted.questions.structure import pairs_from_structure
    from llama_index_embeddings_adapted.serving.embedding import (
        AdaptedEmbedding,
        resolve_embed_model,
    )
    from llama_index_embeddings_adapted.serving.hybrid import HybridRetriever
    from llama_index_embeddings_adapted.serving.memory import MemoryRetriever
    from llama_index_embeddings_adapted.serving.pool import AdapterPool
    from llama_index_embeddings_adapted.training.engine import EmbeddingAdapterFinetuneEngine

__all__ = [
    "AdaptedEmbedding",
    "AdaptedError",
    "Adapter",
    "AdapterPool",
    "BM25Index",
    "Candidate",
    "Comparison",
    "ComposedEmbedding",
    "ComposedFinetuneEngine",
    "Decision",
    "DocumentPrior",
    "DriftReport",
    "EmbeddedCorpus",
    "EmbeddingAdapterFinetuneEngine",
    "EmbeddingQAFinetuneDataset",
    "Estimate",
    "FinetuneReport",
    "HybridRetriever",
    "LexicalEmbedding",
    "LinearAdapter",
    "LocalLlama",
    "LowRankAdapter",
    "MemoryRetriever",
    "Mixture",
    "MoveReport",
    "QuestionReport",
    "RetrievalScores",
    "SentenceTransformersFinetuneEngine",
    "SimilarityCheck",
    "TwoLayerAdapter",
    "Upgrade",
    "UpgradeScores",
    "Verdict",
    "adapt_index",
    "adapt_nodes",
    "adapt_vectors",
    "adapt_without_labels",
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
    "ship_candidate",
    "undo_nudges",
    "upgrade_adapter",
]

_LAZY = {
    "AdaptedEmbedding": "serving.embedding",
    "Adapter": "adapters.base",
    "AdapterPool": "serving.pool",
    "BM25Index": "lexical.bm25",
    "Candidate": "questions.filters",
    "Comparison": "evaluation.comparison",
    "ComposedEmbedding": "composed.embedding",
    "ComposedFinetuneEngine": "composed.engines",
    "Decision": "evaluation.verdict",
    "DocumentPrior": "adapters.prior",
    "DriftReport": "operations.monitoring",
    "EmbeddedCorpus": "encoding.corpus",
    "EmbeddingAdapterFinetuneEngine": "training.engine",
    "EmbeddingQAFinetuneDataset": "data.dataset",
    "Estimate": "questions.generate",
    "FinetuneReport": "evaluation.reports",
    "HybridRetriever": "serving.hybrid",
    "LexicalEmbedding": "lexical.embedding",
    "LinearAdapter": "adapters.maps",
    "LocalLlama": "questions.local_llama",
    "LowRankAdapter": "adapters.maps",
    "MemoryRetriever": "serving.memory",
    "Mixture": "lexical.bm25",
    "MoveReport": "operations.monitoring",
    "QuestionReport": "questions.selection",
    "RetrievalScores": "evaluation.retrieval",
    "SentenceTransformersFinetuneEngine": "composed.engines",
    "SimilarityCheck": "operations.similarity",
    "TwoLayerAdapter": "adapters.maps",
    "Upgrade": "operations.upgrade",
    "UpgradeScores": "operations.upgrade",
    "Verdict": "evaluation.verdict",
    "adapt_index": "operations.rebuild",
    "adapt_nodes": "operations.rebuild",
    "adapt_vectors": "operations.rebuild",
    "adapt_without_labels": "operations.unlabelled",
    "agenerate_qa_embedding_pairs": "questions.generate",
    "bound_nudges": "operations.monitoring",
    "check_similarity": "operations.similarity",
    "compare_retrieval": "evaluation.comparison",
    "embed_corpus": "encoding.corpus",
    "estimate": "questions.generate",
    "evaluate_retrieval": "evaluation.retrieval",
    "evaluate_upgrade": "operations.upgrade",
    "generate_qa_embedding_pairs": "questions.generate",
    "hold_out_documents": "questions.options",
    "inspect_queries": "operations.monitoring",
    "mine_hard_negatives": "evaluation.retrieval",
    "moved_documents": "operations.monitoring",
    "pairs_from_structure": "questions.structure",
    "resolve_embed_model": "serving.embedding",
    "ship_candidate": "operations.folder",
    "undo_nudges": "operations.monitoring",
    "upgrade_adapter": "operations.upgrade",
}
_MODELS = ("serving.embedding", "composed.embedding")  # which say what their folders hold


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        for module in _MODELS:
            import_module(f"{__name__}.{module}")
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register(loading: Any) -> None:
    from llama_index_embeddings_adapted.composed.embedding import ComposedEmbedding
    from llama_index_embeddings_adapted.serving.embedding import AdaptedEmbedding

    for ours in (AdaptedEmbedding, ComposedEmbedding):
        loading.RECOGNIZED_EMBEDDINGS[ours.class_name()] = ours


# load_embed_model knows us from the moment it exists. Its module is not imported here: it would
# import every provider's package that is installed.
wrapt.register_post_import_hook(_register, "llama_index.core.embeddings.loading")
