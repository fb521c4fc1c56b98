"""``resolve_embed_model`` that also knows ``"adapted:<folder>"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve

from llama_index_embeddings_adapted.embedding import AdaptedEmbedding

PREFIX = "adapted:"


class SavedModel(Protocol):
    """A kind of model that a folder can hold."""

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether the folder says that it holds a model of this kind."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Any:
        """Load a folder."""
        ...


_Kind = TypeVar("_Kind", bound=type[SavedModel])
_KINDS: list[type[SavedModel]] = []


def savable(kind: _Kind) -> _Kind:
    """Have :func:`resolve_embed_model` load folders that hold this kind of model."""
    _KINDS.append(kind)
    return kind


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
        kind = next((kind for kind in _KINDS if kind.holds(folder)), AdaptedEmbedding)
        embed_model = kind.from_pretrained(folder)
    return core_resolve(embed_model, callback_manager)
