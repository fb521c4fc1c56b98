"""What embeds documents for an adapted model, so that no new adapter makes anybody embed again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.base_model import Embedding, fingerprint_of
from llama_index_embeddings_adapted.base_vectors import BaseVectors
from llama_index_embeddings_adapted.cache import VectorCache
from llama_index_embeddings_adapted.encode import CacheDir, cache_folder
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.fingerprint import Fingerprint
from llama_index_embeddings_adapted.folder import from_bytes, to_bytes
from llama_index_embeddings_adapted.vectors import Vectors, as_vectors, content_keys


class DocumentEmbedding(BaseEmbedding):
    """The document side of an adapted model, for ``IngestionPipeline`` and for building indexes.

    A pipeline keeps nodes by the dict of the transformation that made them. That of an adapted
    model names the adapter; this one's names what document vectors depend on, and nothing else.
    Vectors of the base model are kept on disk, by model and text, and taken from there.

    Made by :meth:`AdaptedEmbedding.for_documents`.

    Args:
        base: The base model.
        adapter: What moves its document vectors; None leaves them as they are.
        description: The dict that names both.
        cache_dir: Where the base model's vectors are kept; ``False`` keeps them in memory.
    """

    _vectors: BaseVectors = PrivateAttr()
    _adapter: Adapter | None = PrivateAttr()
    _cache: VectorCache = PrivateAttr()
    _description: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        base: BaseEmbedding,
        adapter: Adapter | None,
        description: dict[str, Any],
        *,
        cache_dir: CacheDir = None,
    ) -> None:
        super().__init__(
            model_name=base.model_name,
            embed_batch_size=base.embed_batch_size,
            callback_manager=base.callback_manager,
            num_workers=base.num_workers,
        )
        fingerprint, folder = fingerprint_of(base), cache_folder(cache_dir)
        self._vectors, self._adapter = BaseVectors(base), adapter
        self._cache = VectorCache(folder, fingerprint)
        self._description = dict(description)
        if adapter is not None or not _is_first(description, fingerprint, folder):
            self._description["fingerprint"] = fingerprint.digest

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return "DocumentEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the dict of the base model, where the adapter leaves documents alone.

        A second base model with the dict of the first but with other vectors has its fingerprint in
        it, too; so has every adapter that moves documents.
        """
        return dict(self._description)

    def close(self) -> None:
        """Release the files of the vector cache."""
        self._cache.close()

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors, missing = self._known(texts)
        if missing:
            answers = self._vectors.documents(missing, self.embed_batch_size)
            self._learn(vectors, missing, answers)
        return self._moved(vectors, texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        vectors, missing = self._known(texts)
        if missing:
            answers = await self._vectors.adocuments(missing, self.embed_batch_size)
            self._learn(vectors, missing, answers)
        return self._moved(vectors, texts)

    def _get_query_embedding(self, query: str) -> Embedding:
        raise OptionError("This model embeds documents only; ask the adapted model for queries.")

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return self._get_query_embedding(query)

    def _known(self, texts: list[str]) -> tuple[dict[str, Vectors], list[str]]:
        distinct = list(dict.fromkeys(texts))
        rows, found = self._cache.get("document", distinct)
        vectors = {distinct[row]: vector for row, vector in zip(rows, found, strict=True)}
        return vectors, [text for text in distinct if text not in vectors]

    def _learn(
        self, vectors: dict[str, Vectors], texts: list[str], answers: list[Embedding]
    ) -> None:
        rows = as_vectors(np.array(answers), what="document vectors of the base model")
        self._cache.put("document", texts, rows)
        vectors.update(zip(texts, rows, strict=True))

    def _moved(self, vectors: dict[str, Vectors], texts: list[str]) -> list[Embedding]:
        if not texts:
            return []
        rows = np.stack([vectors[text] for text in texts])
        if self._adapter is not None:
            rows = self._adapter.apply(rows, "document", content_keys(texts))
        answers: list[Embedding] = rows.tolist()
        return answers


_first_seen: dict[str, Fingerprint] = {}


def _is_first(description: dict[str, Any], model: Fingerprint, folder: Path | None) -> bool:
    """Return whether a model is the first with this dict, or has the vectors of the first."""
    key = hashlib.sha256(str(description).encode(errors="surrogatepass")).hexdigest()
    if folder is None:
        return model.agrees_with(_first_seen.setdefault(key, model))
    path = folder / "ingestion" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _claim(path, to_bytes({"probes": model.probes}))
    probes: Any = from_bytes(path.read_bytes(), where=str(path))["probes"]
    return model.agrees_with(Fingerprint(model.name, probes))


def _claim(path: Path, content: bytes) -> None:
    """Write a file, whole, unless somebody else was first."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(name)
