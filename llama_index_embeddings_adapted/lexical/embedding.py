"""Words as a dense vector, for stores and code that take nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from ..core import files
from ..core.arrays import Floats, Role, Rows, Vectors
from ..errors import DatasetError, OptionError, check_number, check_whole
from .bm25 import K1, B, idf_of, numbered_tokens, usual_words

CONFIG, ARRAYS = "lexical.json", "lexical.safetensors"
FORMAT_VERSION = 1
_BUCKETS = 2**18
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)


class LexicalEmbedding(BaseEmbedding):
    """BM25 as inner products of unit vectors, approximately; no text and no word is kept.

    A token adds ± its weight to four of the dimensions, chosen by its hash: ``√idf`` in a query,
    ``√idf`` times the saturated count of BM25 in a document. So the inner product of two vectors
    is the BM25 of their texts, and noise. Two more dimensions make all vectors equally long: in
    documents the first, so that length counts as BM25 has it; in queries the second, so that
    BM25 is divided by the idf of all of the query's words, see :meth:`BM25Index.shares`. How rare
    a word is, is learnt from a corpus, and from queries how usual; documents and words that come
    later are welcome.

    Alone it is a poor model: put it beside another with :class:`ComposedEmbedding`.

    Args:
        idf: ``(262144,)``, by hash.
        usual: Likewise: what is left of a word's weight in queries, see :class:`BM25Index`.
        mean_length: Tokens of a document.
        scale: Length of the longest document vector before it is scaled to 1.
        dimensions: Of the vectors, the two that even lengths out included.

    Source: Weinberger et al. 2009, arXiv:0902.2206 (signed hashing); Kane and Nelson 2014, DOI
    10.1145/2559902 (several dimensions per word).
    """

    dimensions: int = Field(default=2048, description="Of the vectors.")
    mean_length: float = Field(default=1.0, description="Tokens of a document.")
    scale: float = Field(default=1.0, description="Of documents.")
    _idf: Vectors = PrivateAttr()
    _usual: Vectors = PrivateAttr()

    def __init__(self, idf: Vectors, usual: Vectors | None = None, **fields: Any) -> None:
        super().__init__(**{"model_name": "words", "embed_batch_size": 256, **fields})
        self._idf = np.asarray(idf, dtype=np.float32)
        self._usual = np.ones_like(self._idf) if usual is None else np.asarray(usual, np.float32)
        for name, found in (("idf", self._idf), ("usual", self._usual)):
            if found.shape != (_BUCKETS,) or not (found > 0).all():
                raise OptionError(f"{name}: expected {_BUCKETS} numbers > 0, got {found.shape}.")

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex knows this class by."""
        return "LexicalEmbedding"

    @classmethod
    def of(
        cls, texts: Iterable[str], queries: Iterable[str] = (), *, dimensions: int = 2048
    ) -> LexicalEmbedding:
        """Learn from a corpus how rare words are, and how long documents.

        Args:
            texts: Of the documents; none are a DatasetError.
            queries: Such as users ask, to learn which words are usual in them.
            dimensions: Of the vectors, at least 8. More are more exact: the noise of a score falls
                with their square root.
        """
        check_whole("dimensions", dimensions)
        check_number("dimensions", dimensions, least=8)
        given = list(texts)
        if not given:
            raise DatasetError("texts: expected at least one document, got none.")
        vocabulary, tokens, starts = numbered_tokens(given)
        buckets = _buckets(_hashes(vocabulary))
        rows = np.repeat(np.arange(len(given)), np.diff(starts))
        there = np.unique(rows * _BUCKETS + buckets[tokens]) % _BUCKETS
        found = np.bincount(there, minlength=_BUCKETS)
        words, usual = usual_words(queries), np.ones(_BUCKETS, dtype=np.float32)
        usual[_buckets(_hashes(list(words)))] = list(words.values())
        idf = idf_of(found, len(given))
        new = cls(idf, usual, dimensions=dimensions, mean_length=max(1.0, len(tokens) / len(given)))
        some = given[:: max(1, len(given) // 1_000)]
        new.scale = max(1e-6, float(np.linalg.norm(new._words(some, "document"), axis=1).max()))
        return new

    def vectors(self, texts: Sequence[str], role: Role) -> Vectors:
        """Return unit vectors, ``(n, dimensions)``; what has no word is the same for all words."""
        words = self._words(texts, role)
        # Queries are no longer than 1, which words that fall together could make them.
        longest = self.scale if role == "document" else 1.0
        words = words / np.maximum(longest, np.linalg.norm(words, axis=1, keepdims=True))
        rest = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("ij,ij->i", words, words)))[:, None]
        none = np.zeros_like(rest)
        pads = [rest, none] if role == "document" else [none, rest]
        return np.concatenate([words, *pads], axis=1).astype(np.float32)

    def _words(self, texts: Sequence[str], role: Role) -> Floats:
        """Return the sums over tokens, ``(n, dimensions - 2)``."""
        width = self.dimensions - 2
        vocabulary, tokens, starts = numbered_tokens(texts)
        if not len(tokens):
            return np.zeros((len(texts), width))
        lengths = np.diff(starts)
        rows = np.repeat(np.arange(len(texts)), lengths)
        pairs, counts = np.unique(rows * len(vocabulary) + tokens, return_counts=True)
        rows, tokens = pairs // len(vocabulary), pairs % len(vocabulary)
        hashes = _hashes(vocabulary)
        idf, usual = (each[_buckets(hashes)][tokens] for each in (self._idf, self._usual))
        if role == "document":
            norm = K1 * (1.0 - B + B * lengths / self.mean_length)
            weights = np.sqrt(idf) * counts / (counts + norm[rows])
        else:
            highest = np.bincount(rows, idf * usual * counts, minlength=len(texts))
            weights = np.sqrt(idf) * usual * counts / highest[rows]
        mixed = hashes[:, None] * _MULTIPLIERS  # modulo 2⁶⁴
        places = ((mixed >> np.uint64(33)) % np.uint64(width)).astype(np.int64)[tokens]
        signs = np.where((mixed >> np.uint64(32)) & np.uint64(1), 0.5, -0.5)[tokens]
        flat = (rows[:, None] * width + places).ravel()
        values = (signs * weights[:, None]).ravel()
        total = np.bincount(flat, weights=values, minlength=len(texts) * width)
        return np.asarray(total.reshape(len(texts), width))

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self.vectors([query], "query")[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.vectors(texts, "document").tolist()
        return vectors

    def parts(self) -> tuple[dict[str, Any], files.Arrays]:
        """Return the numbers and arrays that vectors depend on, as a folder holds them."""
        config = {name: getattr(self, name) for name in ("dimensions", "mean_length", "scale")}
        return config, {"idf": self._idf, "usual": self._usual}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it, atomically, without texts, words or pickle; or raise a FolderError."""
        target = Path(folder)
        files.check_target_folder(target, frozenset({CONFIG, ARRAYS}))
        config, arrays = self.parts()
        with files.atomic_folder(target) as temporary:
            (temporary / ARRAYS).write_bytes(files.to_bytes(arrays))
            text = json.dumps({"format_version": FORMAT_VERSION, **config})
            (temporary / CONFIG).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LexicalEmbedding:
        """Load what :meth:`save_pretrained` wrote, or raise a FolderError."""
        path = Path(folder)
        config = files.read_format(path / CONFIG, FORMAT_VERSION)
        with files.legible(f"{path}: not a saved model of words"):
            return cls(**files.read_arrays(path / ARRAYS), **config)


def _buckets(hashes: Any) -> Rows:
    """Return where the weights of tokens with such hashes stand, ``(n,)``."""
    return np.asarray(hashes % np.uint64(_BUCKETS), dtype=np.int64)


def _hashes(tokens: Sequence[str]) -> Any:
    """Return 64 bits of each token, the same on every machine, ``(n,)``."""
    return np.array([_hash(token) for token in tokens], dtype=np.uint64)


@lru_cache(maxsize=65_536)
def _hash(token: str) -> int:
    digest = hashlib.blake2b(token.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1
