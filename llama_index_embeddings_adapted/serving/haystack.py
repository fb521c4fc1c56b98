"""An adapted model as a text embedder of Haystack, for its query pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from ..encoding.base_model import Embedding, check_base
from ..errors import OptionError, check_kind, require_extra
from .embedding import PREFIX, resolve_embed_model

haystack = require_extra("haystack", extra="haystack")


@haystack.component
class AdaptedTextEmbedder:
    """Embeds the query of a Haystack pipeline; documents keep the embedder they have.

    ``model`` is any LlamaIndex embedding model, such as an :class:`AdaptedEmbedding`; or the folder
    of a saved adapter that knows its base model, which a pipeline can be saved with.
    """

    def __init__(self, model: BaseEmbedding | str) -> None:
        self.folder = model if isinstance(model, str) else None
        if isinstance(model, str):
            model = resolve_embed_model(f"{PREFIX}{Path(model)}")
        self.model = check_base(model, "model")

    @haystack.component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, Embedding]:
        """Embed a query."""
        return {"embedding": self.model.get_query_embedding(_text(text))}

    @haystack.component.output_types(embedding=list[float])  # type: ignore[untyped-decorator]
    async def run_async(self, text: str) -> dict[str, Embedding]:
        """Embed a query, asynchronously."""
        return {"embedding": await self.model.aget_query_embedding(_text(text))}

    def to_dict(self) -> dict[str, Any]:
        """Describe the component by its folder; of a model, with keys, it is an OptionError."""
        if self.folder is None:
            raise OptionError(
                "A pipeline can be saved where its embedder was made of a folder: save the model "
                "with save_pretrained, then AdaptedTextEmbedder(folder)."
            )
        described: dict[str, Any] = haystack.default_to_dict(self, model=self.folder)
        return described


def _text(text: str) -> str:
    check_kind("text", text, str, "one query")
    return text
