"""Adapters for LlamaIndex embedding models: train, judge, serve.

Importing this package loads neither torch nor transformers: what trains is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.errors import AdaptedError
from llama_index_embeddings_adapted.maps import LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.resolve import resolve_embed_model

if TYPE_CHECKING:
    from llama_index_embeddings_adapted.comparison import Comparison, compare_retrieval
    from llama_index_embeddings_adapted.engines import EmbeddingAdapterFinetuneEngine
    from llama_index_embeddings_adapted.evaluation import RetrievalScores, evaluate_retrieval
    from llama_index_embeddings_adapted.report import FinetuneReport
    from llama_index_embeddings_adapted.retriever import MemoryRetriever

__all__ = [
    "AdaptedEmbedding",
    "AdaptedError",
    "Adapter",
    "Comparison",
    "EmbeddingAdapterFinetuneEngine",
    "EmbeddingQAFinetuneDataset",
    "FinetuneReport",
    "LinearAdapter",
    "MemoryRetriever",
    "RetrievalScores",
    "TwoLayerAdapter",
    "compare_retrieval",
    "evaluate_retrieval",
    "resolve_embed_model",
]

_LAZY = {
    "Comparison": "comparison",
    "EmbeddingAdapterFinetuneEngine": "engines",
    "FinetuneReport": "report",
    "MemoryRetriever": "retriever",
    "RetrievalScores": "evaluation",
    "compare_retrieval": "comparison",
    "evaluate_retrieval": "evaluation",
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
    loading.RECOGNIZED_EMBEDDINGS[AdaptedEmbedding.class_name()] = AdaptedEmbedding


# load_embed_model knows us from the moment it exists. Its module is not imported here: it would
# import every provider's package that is installed.
wrapt.register_post_import_hook(_register, "llama_index.core.embeddings.loading")
