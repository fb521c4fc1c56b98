"""What answered similar training queries, as scores of documents.

A memory of answers on disk: ``memory.json`` and ``memory.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..adapters import saving
from ..core import files as folders
from ..core.arrays import Rows, Vectors, as_vectors, l2_normalize, score_blocks
from ..core.encoded import EncodedDataset, Qrels
from ..core.files import atomic_folder, read_json_object
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.base_model import Fingerprint, check_base, fingerprint_of
from ..encoding.cache import CacheDir
from ..encoding.encoder import Adapting, Encoder
from ..errors import DatasetError, FolderError, ShapeError, check_number, truncate
from ..evaluation.retrieval import DEFAULT_KS, RetrievalScores, scores_of

TEMPERATURE, NEIGHBOURS = 0.1, 10

_DEPTH = 100


@dataclass(frozen=True, eq=False)
class AnswerMemory:
    """Queries and the documents that answered them; texts are not kept.

    Args:
        queries: ``(n, dim)``, unit rows, of the base model.
        answers: Of the ``n`` queries, rows into ``document_ids``; the grades are shares in (0, 1].
        document_ids: Distinct.

    Raises:
        ShapeError: Parts that do not fit together.
    """

    queries: Vectors
    answers: Qrels
    document_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(as_vectors(self.queries, what="remembered queries"))
        offsets, rows, shares = (self.answers.offsets, self.answers.documents, self.answers.grades)
        whole = (
            count > 0
            and offsets.shape == (count + 1,)
            and offsets[0] == 0
            and offsets[-1] == len(rows) == len(shares)
            and bool((np.diff(offsets) > 0).all())
        )
        if not whole:
            raise ShapeError(
                "answers", expected=f"some documents for each of {count} queries", actual=offsets
            )
        if rows.min() < 0 or rows.max() >= len(set(self.document_ids)):
            raise ShapeError(
                "answers",
                expected=f"rows of {len(set(self.document_ids))} distinct documents",
                actual=f"rows {rows.min()} to {rows.max()}",
            )
        if not (shares > 0).all() or not (shares <= 1).all():
            raise ShapeError("shares", expected="numbers in (0, 1]", actual=shares)

    @classmethod
    def of(cls, queries: Vectors, relevance: Qrels, document_ids: Sequence[str]) -> AnswerMemory:
        """Remember judged queries; others, and documents that answer none, are left out.

        The best document of a query has the share 1, a lesser grade its fraction of that. A share
        that summed to 1 instead would say that many answers are each worth little.

        Args:
            queries: ``(n, dim)``, of the base model.
            relevance: Of the ``n`` queries, rows into ``document_ids``.
            document_ids: All ids, or more.

        Raises:
            DatasetError: No query has a relevant document.
        """
        judged = np.flatnonzero(relevance.counts > 0)
        if not len(judged):
            raise DatasetError("No query has a relevant document: there is nothing to remember.")
        kept = relevance.take(judged)
        best = np.maximum.reduceat(kept.grades, kept.offsets[:-1])
        documents, rows = np.unique(kept.documents, return_inverse=True)
        shares = kept.grades / best[kept.queries]
        return cls(
            l2_normalize(as_vectors(queries, what="queries")[judged]),
            Qrels(kept.offsets, rows.astype(np.int64), shares),
            tuple(document_ids[row] for row in documents),
        )

    @classmethod
    def of_encoded(cls, data: EncodedDataset) -> AnswerMemory:
        """Remember the queries of an encoded dataset."""
        return cls.of(data.queries, data.relevance, data.document_ids)

    @classmethod
    def from_dataset(
        cls,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        *,
        batch_size: int | None = None,
        cache_dir: CacheDir = None,
        show_progress: bool = True,
    ) -> AnswerMemory:
        """Embed each distinct query of a dataset once, and none of its documents.

        Arguments and errors as of :meth:`MemoryRetriever.from_dataset`. Of an adapted model, the
        base model is asked.
        """
        rows = {document: row for row, document in enumerate(dataset.corpus)}
        answers = [dataset.relevant_docs.get(query, []) for query in dataset.queries]
        relevance = Qrels.from_lists(
            [[rows[document] for document in documents] for documents in answers],
            [
                [dataset.grade(query, document) for document in documents]
                for query, documents in zip(dataset.queries, answers, strict=True)
            ],
        )
        with Encoder(
            base_of(embed_model),
            batch_size=batch_size,
            cache_dir=cache_dir,
            show_progress=show_progress,
        ) as encoder:
            queries = encoder.encode(list(dataset.queries.values()), "query")
        return cls.of(queries, relevance, tuple(rows))

    @property
    def dim(self) -> int:
        """Dimension of the base model's vectors."""
        return int(self.queries.shape[1])

    def lookup(
        self, query: Vectors, *, temperature: float = TEMPERATURE, neighbours: int = NEIGHBOURS
    ) -> dict[str, float]:
        """Return what similar queries were answered by: document id → ``Σ w_i y_i``, largest first.

        Args:
            query: ``(dim,)``, of the base model; another dimension is a :class:`ShapeError`.
            temperature: In cosine units, ``> 0``.
            neighbours: How many remembered queries count at most.

        Returns:
            Values in [0, 1], near 0 where no remembered query is similar.
        """
        _, documents, amounts = self._answers(np.atleast_2d(query), temperature, neighbours)
        rows, place = np.unique(documents, return_inverse=True)
        total = np.bincount(place, weights=amounts)
        order = np.argsort(-total, kind="stable")
        return {self.document_ids[rows[at]]: float(total[at]) for at in order}

    def scores(
        self,
        queries: Vectors,
        document_ids: Sequence[str],
        *,
        temperature: float = TEMPERATURE,
        neighbours: int = NEIGHBOURS,
    ) -> Vectors:
        """Return what :meth:`lookup` gives for ``(n, dim)`` queries as a matrix.

        Its columns are ``document_ids``; those that the memory does not know are 0.
        """
        column = {document: at for at, document in enumerate(document_ids)}
        columns = np.array([column.get(document, -1) for document in self.document_ids])
        asked, documents, amounts = self._answers(queries, temperature, neighbours)
        found = np.zeros((len(queries), len(document_ids)), dtype=np.float32)
        here = columns[documents] >= 0
        np.add.at(found, (asked[here], columns[documents[here]]), amounts[here])
        return found

    def _answers(
        self, queries: Vectors, temperature: float, neighbours: int
    ) -> tuple[Rows, Rows, Vectors]:
        """Return query row, document row and ``w_i y_ij``, each ``(entries,)``, not yet summed."""
        vectors = as_vectors(queries, what="Query vectors")
        if vectors.shape[1] != self.dim:
            raise ShapeError(
                "Query vectors",
                expected=f"{self.dim} dimensions, as the remembered queries",
                actual=vectors.shape[1],
                hint="Was this memory made with another model?",
            )
        nearest, attention = attention_weights(
            l2_normalize(vectors), self.queries, temperature, neighbours
        )
        attention = attention / np.maximum(attention.sum(axis=1, keepdims=True), 1.0)
        answers = self.answers.take(nearest.ravel())
        amounts = (attention.ravel()[answers.queries] * answers.grades).astype(np.float32)
        return answers.queries // nearest.shape[1], answers.documents, amounts


def attention_weights(
    queries: Vectors, keys: Vectors, temperature: float, neighbours: int
) -> tuple[Rows, Vectors]:
    """Return the nearest keys of each query and ``exp((cosine - 1) / temperature)``, ``(n, k)``.

    Args:
        queries: ``(n, dim)``, unit rows.
        keys: ``(m, dim)``, unit rows.
        temperature: In cosine units, ``> 0``.
        neighbours: ``k``, at most ``m`` come back.
    """
    similar = queries @ keys.T
    k = min(neighbours, similar.shape[1])
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k].astype(np.int64)
    cosines = np.take_along_axis(similar, nearest, axis=1)
    return nearest, np.exp((cosines - 1.0) / np.float32(temperature)).astype(np.float32)


def search_with_memory(
    data: EncodedDataset,
    queries: Vectors,
    documents: Vectors,
    memory: AnswerMemory,
    *,
    weight: float = 0.1,
    temperature: float = TEMPERATURE,
    neighbours: int = NEIGHBOURS,
    ks: tuple[int, ...] = DEFAULT_KS,
) -> RetrievalScores:
    """Search exactly by cosine plus memory: the way to choose ``weight`` on a dev set.

    As :func:`search`, with every document a candidate.

    Args:
        data: Ids, relevance, and the base vectors of the queries, by which the memory goes.
        queries: ``(n, dim)``, adapted or not, in the order of ``data.query_ids``.
        documents: ``(m, dim)``, adapted or not, in the order of ``data.document_ids``.
        memory: Of other queries than these: a query that is remembered finds itself.
        weight: As for :class:`MemoryRetriever`, like ``temperature`` and ``neighbours``.
        temperature: In cosine units.
        neighbours: At most.
        ks: Cut-offs that tables show.

    Raises:
        OptionError: A setting out of range.
    """
    check_settings(weight, temperature, neighbours)
    left, right = l2_normalize(queries), l2_normalize(documents)
    depth = min(max(_DEPTH, *ks), len(right))
    ranked = np.empty((len(left), depth), dtype=np.int64)
    for rows, _, scores in score_blocks(left, right, width=len(right)):
        remembered = memory.scores(
            data.queries[rows], data.document_ids, temperature=temperature, neighbours=neighbours
        )
        scores += np.float32(weight) * remembered
        ranked[rows] = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return scores_of(data, ranked, ks)


def check_settings(
    weight: float, temperature: float, neighbours: int, top_k: int | None = None
) -> None:
    """Refuse, by an :class:`OptionError`, settings out of range."""
    given = {"weight": weight, "neighbours": neighbours, "top_k": 1 if top_k is None else top_k}
    for name, value in given.items():
        check_number(name, _plain(value), least=0.0 if name == "weight" else 1.0)
    check_number("temperature", _plain(temperature), above=0.0)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def base_of(model: BaseEmbedding) -> BaseEmbedding:
    """Return the model whose vectors are remembered: the base of an adapted one.

    Raises:
        OptionError: Not an embedding model.
    """
    model = check_base(model, "embed_model")
    return model.base_embed_model if isinstance(model, Adapting) else model


CONFIG, ARRAYS = "memory.json", "memory.safetensors"


def write(
    folder: Path, memory: AnswerMemory, base: BaseEmbedding, settings: Mapping[str, Any]
) -> None:
    """Write memory, settings and the identity of the base model; atomic, without texts."""
    folders.check_target_folder(folder, frozenset((CONFIG, ARRAYS)))
    fingerprint = fingerprint_of(base)
    config = {
        **saving.provenance(base, fingerprint),
        "settings": dict(settings),
        "document_ids": list(memory.document_ids),
    }
    arrays: folders.Arrays = {
        "queries": memory.queries,
        "offsets": memory.answers.offsets,
        "documents": memory.answers.documents,
        "shares": memory.answers.grades,
        folders.PROBES: fingerprint.probes,
    }
    with atomic_folder(folder) as temporary:
        (temporary / ARRAYS).write_bytes(folders.to_bytes(arrays))
        (temporary / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], AnswerMemory, Fingerprint]:
    """Read what :func:`write` wrote, or raise a :class:`FolderError`."""
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such folder.")
    config = read_json_object(folder / CONFIG, error=FolderError, most=folders.MOST_CONFIG_BYTES)
    folders.check_version(config, folder)
    if not (folder / ARRAYS).is_file():
        raise FolderError(f"{folder}: no {ARRAYS}.")
    arrays = folders.read_arrays(folder / ARRAYS)
    try:
        answers = Qrels(
            arrays["offsets"].astype(np.int64, casting="safe"),
            arrays["documents"].astype(np.int64, casting="safe"),
            arrays["shares"].astype(np.float64, casting="safe"),
        )
        ids = tuple(config["document_ids"])
        if not all(isinstance(name, str) for name in ids):
            raise TypeError("document ids that are no strings")
        memory = AnswerMemory(arrays["queries"], answers, ids)
        base = {**config["base_model"], "dim": memory.dim}
        fingerprint = saving.read_fingerprint(base, arrays.get(folders.PROBES), where=folder)
        _ = config["settings"].keys()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as cause:
        reason = truncate(str(cause), 300)
        raise FolderError(f"{folder}: not a saved memory, or damaged ({reason}).") from cause
    return config, memory, fingerprint
