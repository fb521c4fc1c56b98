"""Texts become vectors here, each distinct one exactly once, and nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from tqdm import tqdm

from llama_index_embeddings_adapted.base_model import (
    BaseModelCalls,
    base_name,
    fingerprint_of,
    still_is,
)
from llama_index_embeddings_adapted.cache import VectorCache
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset, answered
from llama_index_embeddings_adapted.fingerprint import Fingerprint
from llama_index_embeddings_adapted.mapped import empty_vectors
from llama_index_embeddings_adapted.relevance import Relevance
from llama_index_embeddings_adapted.surviving import (
    LEAST_CHECKED,
    Answered,
    checked,
    embed_surviving,
    exchanged,
)
from llama_index_embeddings_adapted.vectors import Keys, Role, Rows, Vectors, content_keys

CacheDir = str | Path | None | Literal[False]
_LOOKED_UP = 65_536  # texts at a time

_MOST_UNCHECKED = 256  # texts between two looks at whether the model is still the same


@runtime_checkable
class Adapting(Protocol):
    """A model that maps the vectors of another one, which is all we need to embed with."""

    @property
    def base_embed_model(self) -> BaseEmbedding:
        """The model whose vectors are mapped."""
        ...

    def adapt(self, vectors: Vectors, role: Role, keys: Keys | None = None) -> Vectors:
        """Map ``(n, dim)`` vectors of the base model; documents may come with content keys."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedDataset:
    """A dataset as arrays; what learns and what judges sees nothing else.

    Args:
        queries: ``(n, dim)``, as the base model gave them.
        documents: ``(m, dim)``, likewise.
        relevance: Over the rows of both.
        query_ids: ``n`` ids.
        document_ids: ``m`` ids.
        twins: ``(m,)``, the row of the first document with the same text, mostly its own.
        keys: ``(m,)``, the content keys of the documents.
        negatives: Documents mined as hard negatives, over the rows of both; None where none were.
    """

    queries: Vectors
    documents: Vectors
    relevance: Relevance
    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    twins: Rows
    keys: Keys
    negatives: Relevance | None = None

    def take(self, queries: Rows) -> EncodedDataset:
        """Keep these queries and all documents."""
        return EncodedDataset(
            self.queries[queries],
            self.documents,
            self.relevance.take(queries),
            tuple(self.query_ids[row] for row in queries),
            self.document_ids,
            self.twins,
            self.keys,
            None if self.negatives is None else self.negatives.take(queries),
        )


class Encoder:
    """Embeds texts with a base model, asking it only for what no cache holds.

    Vectors are kept the moment the model gives them: after an error, an interrupt or a kill the
    next run continues where this one ended. A model may be exchanged behind its name while it is
    asked: after every few hundred texts it is asked for a probe text again, and what it gave since
    the last time is dropped if that has another vector now.

    Args:
        model: Any LlamaIndex embedding model.
        batch_size: Texts per call; the model's ``embed_batch_size`` by default.
        cache_dir: Folder of the vector cache, shared by any number of models and processes.
            ``None`` is LlamaIndex's cache folder; ``False`` keeps vectors in memory only.
        show_progress: Show a bar with an estimate.
    """

    def __init__(
        self,
        model: BaseEmbedding,
        *,
        batch_size: int | None = None,
        cache_dir: CacheDir = None,
        show_progress: bool = True,
    ) -> None:
        self._name, self._model = base_name(model), model
        self._calls = BaseModelCalls(model, batch_size=batch_size)
        self._show_progress = show_progress
        self.fingerprint: Fingerprint = fingerprint_of(model, self._calls)
        self._folder = cache_folder(cache_dir)
        self._cache = VectorCache(self._folder, self.fingerprint)
        self._unchecked: defaultdict[str, list[str]] = defaultdict(list)

    @property
    def base_calls(self) -> int:
        """Calls made to the base model so far, the probes that identify it included."""
        return self._calls.calls

    @property
    def base_texts(self) -> int:
        """Texts sent to the base model so far, the probes included."""
        return self._calls.texts

    @property
    def base_tokens(self) -> int:
        """Tokens of those texts, about: a token for every four characters."""
        return self._calls.characters // 4

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """Embed texts, repeated or not.

        Returns:
            ``(len(texts), dim)``, the vectors of the base model as they are. More than 256 MiB lie
            in a nameless file of the cache folder, mapped, which goes when the array goes.

        Raises:
            EncodeError: A vector is missing, has NaN or another length; the message names the
                text. What came before it is kept. Or the model is no longer the same.
        """
        first: dict[str, int] = {}
        origin = np.array(
            [first.setdefault(text, row) for row, text in enumerate(texts)], dtype=int
        )
        distinct = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        vectors = empty_vectors((len(texts), self.fingerprint.dim), self._folder)
        missing: list[int] = []
        for start in range(0, len(distinct), _LOOKED_UP):
            rows = distinct[start : start + _LOOKED_UP]
            known, found = self._cache.get(role, [texts[row] for row in rows])
            vectors[rows[known]] = found
            missing += np.delete(rows, known).tolist()
        # Longest first: batches of like length waste no padding, and the estimate errs upwards.
        missing.sort(key=lambda row: -len(texts[row]))
        for asked, answers in self._ask(texts, np.array(missing, dtype=np.int64), role):
            vectors[asked] = answers
        self._check_model(role, after=LEAST_CHECKED)
        repeated = np.flatnonzero(origin != np.arange(len(texts)))
        vectors[repeated] = vectors[origin[repeated]]
        return vectors

    def known(self, texts: Sequence[str], role: Role) -> tuple[Rows, Vectors]:
        """Look texts up in the cache, without asking the base model.

        Returns:
            Positions in ``texts`` of those that are known, ``(k,)``, and their vectors,
            ``(k, dim)``.
        """
        return self._cache.get(role, texts)

    def missing(self, texts: Sequence[str], role: Role) -> list[str]:
        """Return the distinct texts that the cache does not hold."""
        return self._cache.missing(role, list(dict.fromkeys(texts)))

    def embed_surviving(self, texts: Sequence[str], role: Role) -> Answered:
        """Ask the base model for all of these texts, past those it fails on; keeps nothing."""
        return embed_surviving(
            self._model, self._calls, role, texts, fingerprint=self.fingerprint, name=self._name
        )

    def keep(self, texts: Sequence[str], role: Role, vectors: Vectors) -> None:
        """Put vectors of this base model into the cache, whoever computed them.

        Args:
            texts: ``n`` distinct texts.
            role: Of the texts.
            vectors: ``(n, dim)``, finite.
        """
        self._cache.put(role, texts, vectors)

    def dataset(self, dataset: EmbeddingQAFinetuneDataset) -> EncodedDataset:
        """Embed the queries and documents of a dataset.

        Raises:
            DatasetError: A query without a relevant document, which can teach and prove nothing.
            EncodeError: See :meth:`encode`.
        """
        dataset = answered(dataset, "dataset")
        document_row = {document: row for row, document in enumerate(dataset.corpus)}
        first_with_text: dict[str, int] = {}
        twins = [
            first_with_text.setdefault(text, row)
            for row, text in enumerate(dataset.corpus.values())
        ]
        relevant = [dataset.relevant_docs[query] for query in dataset.queries]
        return EncodedDataset(
            self.encode(list(dataset.queries.values()), "query"),
            self.encode(list(dataset.corpus.values()), "document"),
            Relevance.from_lists(
                [[document_row[document] for document in documents] for documents in relevant],
                [
                    [dataset.grade(query, document) for document in documents]
                    for query, documents in zip(dataset.queries, relevant, strict=True)
                ],
            ),
            tuple(dataset.queries),
            tuple(dataset.corpus),
            np.array(twins, dtype=np.int64),
            content_keys(list(dataset.corpus.values())),
            _negatives(dataset, document_row),
        )

    def close(self) -> None:
        """Release the cache's files."""
        self._cache.close()

    def _ask(
        self, texts: Sequence[str], missing: Rows, role: Role
    ) -> Iterator[tuple[Rows, Vectors]]:
        size = self._calls.batch_size
        with tqdm(
            total=len(missing),
            desc=f"Embedding {'queries' if role == 'query' else 'documents'}",
            unit="text",
            disable=not self._show_progress or not len(missing),
        ) as bar:
            for start in range(0, len(missing), size):
                rows = missing[start : start + size]
                batch = [texts[row] for row in rows]
                yield rows, self._ask_batch(batch, role)
                bar.update(len(rows))
                self._unchecked[role] += batch
                self._check_model(role, after=_MOST_UNCHECKED)

    def _ask_batch(self, batch: list[str], role: Role) -> Vectors:
        good: list[Vectors] = []
        try:
            for answer in self._calls.embed(role, batch):
                text = batch[len(good)]
                good.append(checked(answer, dim=self.fingerprint.dim, name=self._name, text=text))
        finally:
            if good:
                self._cache.put(role, batch[: len(good)], np.stack(good))
        return np.stack(good)

    def _check_model(self, role: Role, *, after: int) -> None:
        """Drop what the model gave since it was last known to be the same, if it is another now."""
        unchecked, count = self._unchecked, sum(map(len, self._unchecked.values()))
        if count < after:
            return
        same = still_is(self._model, self._calls, role, self.fingerprint)
        self._unchecked = defaultdict(list)
        if not same:
            for asked_as, texts in unchecked.items():
                self._cache.forget(asked_as, texts)
            raise exchanged(self._name, count)


def _negatives(
    dataset: EmbeddingQAFinetuneDataset, document_row: dict[str, int]
) -> Relevance | None:
    mined = dataset.hard_negatives
    if mined is None:
        return None
    return Relevance.from_lists(
        [[document_row[document] for document in mined.get(q, ())] for q in dataset.queries]
    )


def cache_folder(cache_dir: CacheDir) -> Path | None:
    """Return the folder that a ``cache_dir`` stands for; None for memory only."""
    if cache_dir is False:
        return None
    if cache_dir is None:
        from llama_index.core.utils import get_cache_dir

        return Path(get_cache_dir()) / "embeddings_adapted"
    return Path(cache_dir)
