"""Adapters for LlamaIndex embedding models: train, judge, serve.

Importing this package loads nothing: names are found on first use, and only training loads torch.
"""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from typing import Any

import wrapt

from llama_index_embeddings_adapted.errors import AdaptedError as AdaptedError

# What is exported, and from where, is said once, where type checkers read it.
_EXPORTS = (pkgutil.get_data(__name__, "__init__.pyi") or b"").decode()
_LAZY = {
    name: module for module, name in re.findall(r"from \.(\w+\.\w+) import[\s(]+(\w+)", _EXPORTS)
}
__all__ = sorted(["AdaptedError", *_LAZY])
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
    return list(__all__)


def _register(loading: Any) -> None:
    from llama_index_embeddings_adapted.composed.embedding import ComposedEmbedding
    from llama_index_embeddings_adapted.serving.embedding import AdaptedEmbedding

    for ours in (AdaptedEmbedding, ComposedEmbedding):
        loading.RECOGNIZED_EMBEDDINGS[ours.class_name()] = ours


# load_embed_model knows us from the moment it exists. Its module is not imported here: it would
# import every provider's package that is installed.
wrapt.register_post_import_hook(_register, "llama_index.core.embeddings.loading")
