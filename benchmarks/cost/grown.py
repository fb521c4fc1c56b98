"""A corpus of any size, made of real vectors and noise, behind a base model that costs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.core.arrays import l2_normalize

_NOISE = 0.02  # per dimension, so that copies of a real vector differ by .4 in length
_TABLES = (16_381, 16_369)  # primes: two rows of noise added are a third that no other text has


def prepare(data: Path, cache: Path, folder: Path) -> Path:
    """Write the vectors and texts of nl2bash that a grown corpus repeats."""
    from benchmarks import sets  # loads torch, which measured processes may not need

    encoder = sets.encoder(cache)
    train = sets.load(data, "nl2bash").train
    real = encoder.dataset(train)
    encoder.close()
    path = folder / "real.npz"
    asked = [real.relevance.relevant_to(row)[0] for row in range(len(real.relevance))]
    np.savez(path, queries=real.queries, documents=real.documents, asked=np.array(asked))
    texts = {"queries": list(train.queries.values()), "documents": list(train.corpus.values())}
    path.with_suffix(".json").write_text(json.dumps(texts), encoding="utf-8")
    return path


class Grown:
    """Texts of a corpus: document ``i`` answers query ``i``, and the rest answer none.

    ``path`` is what :func:`prepare` wrote; there are as many queries as ``pairs``.
    """

    def __init__(self, path: Path, pairs: int, documents: int) -> None:
        self.real = dict(np.load(path))
        self._texts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.pairs, self.count = pairs, documents

    def documents(self) -> Iterator[str]:
        """Yield texts that name their row, ahead of a real text."""
        texts = self._texts["documents"]
        for row in range(self.count):
            yield f"{row} {texts[self.real_document(row)]}"

    def queries(self, count: int | None = None) -> Iterator[str]:
        """Yield the first queries, likewise."""
        texts = self._texts["queries"]
        for row in range(count or self.pairs):
            yield f"{row} {texts[row % len(texts)]}"

    def dataset(self, queries: int | None = None) -> EmbeddingQAFinetuneDataset:
        """Return everything as one dataset, with the first queries only if asked so."""
        asked = {f"q{row}": text for row, text in enumerate(self.queries(queries))}
        corpus = {f"d{row}": text for row, text in enumerate(self.documents())}
        return EmbeddingQAFinetuneDataset(asked, corpus, {q: [f"d{q[1:]}"] for q in asked})

    def real_document(self, row: int) -> int:
        asked = self.real["asked"]
        if row < self.pairs:
            return int(asked[row % len(asked)])
        return row * 7919 % len(self.real["documents"])


class CheapBase(BaseEmbedding):
    """Gives a text the vector of the real one it repeats, with noise that its number decides."""

    _grown: Grown = PrivateAttr()
    _noise: tuple[Any, Any] = PrivateAttr()

    def __init__(self, grown: Grown, **kwargs: Any) -> None:
        super().__init__(model_name="cheap", embed_batch_size=1024, **kwargs)
        self._grown = grown
        random = np.random.default_rng(0)
        dim = grown.real["queries"].shape[1]
        self._noise = tuple(
            np.float32(_NOISE / 2**0.5) * random.standard_normal((rows, dim), dtype=np.float32)
            for rows in _TABLES
        )

    def vectors(self, rows: list[int], what: str) -> Any:
        """Return the vectors of rows of the corpus, or of the queries."""
        real = self._grown.real
        if what == "queries":
            chosen = [row % len(real["queries"]) for row in rows]
        else:
            chosen = [self._grown.real_document(row) for row in rows]
        numbers = np.array(rows) + (10**9 if what == "queries" else 0)
        first, second = (table[numbers % len(table)] for table in self._noise)
        return l2_normalize(real[what][chosen] + first + second)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.vectors(_rows(texts), "documents").tolist()

    def _get_query_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.vectors(_rows(texts), "queries").tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embeddings([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def _rows(texts: list[str]) -> list[int]:
    """Return the numbers that texts begin with; other texts have numbers of their own."""
    firsts = [text.split(" ", 1)[0] for text in texts]
    return [
        int(first) if first.isdigit() else sum(text.encode())
        for first, text in zip(firsts, texts, strict=True)
    ]
