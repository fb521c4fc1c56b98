"""``resolve_embed_model`` that also knows ``"adapted:<folder>"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve

from llama_index_embeddings_adapted.composed import ComposedEmbedding
from llama_index_embeddings_adapted.composed_store import is_composed
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding

PREFIX = "adapted:"


def resolve_embed_model(
    embed_model: Any = None, callback_manager: CallbackManager | None = None
) -> BaseEmbedding:
    """Resolve an embedding model as LlamaIndex does, and saved adapters besides.

    Args:
        embed_model: ``"adapted:<folder>"`` loads that folder with
            :meth:`AdaptedEmbedding.from_pretrained`, or :meth:`ComposedEmbedding.from_pretrained`
            where it holds a composed model. Anything else goes to LlamaIndex unchanged.
        callback_manager: As in LlamaIndex.
    """
    if isinstance(embed_model, str) and embed_model.startswith(PREFIX):
        folder = Path(embed_model.removeprefix(PREFIX))
        kind = ComposedEmbedding if is_composed(folder) else AdaptedEmbedding
        embed_model = kind.from_pretrained(folder)
    return core_resolve(embed_model, callback_manager)
