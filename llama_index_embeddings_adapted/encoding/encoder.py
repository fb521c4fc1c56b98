"""Texts become vectors here, each distinct one exactly once, and nowhere else.

Batches that outlive a text which a model cannot embed: halved until it stands alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from tqdm import tqdm

from ..core.arrays import Role, Rows, Vectors, allocate_vectors, content_hashes
from ..core.encoded import EncodedDataset, Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset, answered
from ..errors import EncodeError, is_fatal, is_passing, quote_some, truncate
from .base_model import (
    PROBE_TEXTS,
    BaseModelCalls,
    Embedding,
    Fingerprint,
    check_base,
    fingerprint_of,
    is_unchanged,
    keeps_order,
)
from .cache import CacheDir, VectorCache, cache_folder
from .serialize import base_name, without_keys

MOST_FAILURES = 8  # texts that fail alone, one after the other, before the rest is not tried
LEAST_CHECKED = 64  # texts below which a look at whether the model is the same is not worth a call


@dataclass(frozen=True, eq=False)
class PartialResult:
    """What became of some texts.

    Args:
        rows: ``(k,)``, positions of the texts that have a vector.
        vectors: ``(k, dim)``, finite.
        failures: Position of each other text → what its model said.
    """

    rows: Rows
    vectors: Vectors
    failures: dict[int, str]


def checked(answer: Embedding, *, known: Fingerprint, name: str, text: str) -> Vectors:
    """Return an answer as a vector, ``(dim,)``, or raise an EncodeError."""
    dim = known.dim
    vector = np.asarray(answer, dtype=np.float32)  # LlamaIndex checked that it is numbers
    if vector.shape != (dim,):
        raise EncodeError(
            f"{name} gave a vector of shape {vector.shape}, expected ({dim},).", text=text
        )
    if not np.isfinite(vector).all():
        raise EncodeError(f"{name} gave a vector with NaN or infinity.", text=text)
    if not vector.any() and known.probes.any(axis=1).all():
        raise EncodeError(f"{name} gave a vector of zeros, which is near to nothing.", text=text)
    return vector


def model_changed(name: str, count: int) -> EncodeError:
    """Return the error of a model that is another one now than when its texts were embedded."""
    return EncodeError(
        f"The model behind the name {name} has changed: a probe text has another vector now than "
        f"before. The vectors of the last {count} texts are not kept. Find out what answers under "
        "this name, and run again; where it is one model that is not bit-stable, set "
        "LLAMA_INDEX_ADAPTED_TOLERANCE, for instance to 0.02.",
        text=PROBE_TEXTS[0],
    )


def embed_tolerant(
    model: BaseEmbedding,
    calls: BaseModelCalls,
    role: Role,
    texts: Sequence[str],
    *,
    fingerprint: Fingerprint,
    name: str,
) -> PartialResult:
    """Embed texts, and set aside those that fail.

    After eight in a row that fail alone the rest counts as failed without being tried: then it is
    the model that is broken. A model that still answers is looked at in the end.

    Raises:
        EncodeError: The model is no longer the same, so none of these vectors should be kept.
    """
    dim = fingerprint.dim
    vectors = np.empty((len(texts), dim), dtype=np.float32)
    failures: dict[int, str] = {}
    in_a_row = 0
    for start, stop in _pieces(len(texts), calls.batch_size):
        waiting = [(start, stop)]
        while waiting:
            low, high = waiting.pop()
            if in_a_row >= MOST_FAILURES:
                failures.update(dict.fromkeys(range(low, high), "not tried after other failures"))
                continue
            try:
                for row, answer in enumerate(calls.embed(role, texts[low:high]), low):
                    vectors[row] = checked(answer, known=fingerprint, name=name, text=texts[row])
                in_a_row = 0
            except Exception as cause:  # models raise what they like
                if high - low == 1:
                    in_a_row += 1
                    failures[low] = without_keys(f"{type(cause).__name__}: {cause}")
                else:
                    middle = (low + high) // 2
                    waiting += [(middle, high), (low, middle)]
    rows = np.array([row for row in range(len(texts)) if row not in failures], dtype=np.int64)
    worth_it = len(rows) >= LEAST_CHECKED and in_a_row < MOST_FAILURES
    if worth_it and not is_unchanged(model, calls, role, fingerprint):
        raise model_changed(name, len(rows))
    return PartialResult(
        rows, vectors[rows], {row: truncate(why, 300) for row, why in failures.items()}
    )


def _pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


_LOOKED_UP = 65_536  # texts at a time

_MOST_UNCHECKED = 256  # texts between two looks at whether the model is still the same


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
        self._folder = cache_folder(cache_dir)
        model = check_base(model, "model")  # last: a string loads a model
        self._name, self._model = base_name(model), model
        self._calls = BaseModelCalls(model, batch_size=batch_size)
        self._show_progress = show_progress
        self.fingerprint: Fingerprint = fingerprint_of(model, self._calls)
        self._cache = VectorCache(self._folder, self.fingerprint)
        self._unchecked: defaultdict[str, list[str]] = defaultdict(list)
        self._in_order: set[Role] = set()  # as whose batches are known to come back in order
        self._refused: dict[str, str] = {}
        self._refused_in_a_row = 0

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
        vectors = allocate_vectors((len(texts), self.fingerprint.dim), self._folder)
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
        self._tell_refused(len(distinct))
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

    def embed_tolerant(self, texts: Sequence[str], role: Role) -> PartialResult:
        """Ask the base model for all of these texts, past those it fails on; keeps nothing."""
        return embed_tolerant(
            self._model, self._calls, role, texts, fingerprint=self.fingerprint, name=self._name
        )

    def keep(self, texts: Sequence[str], role: Role, vectors: Vectors) -> None:
        """Put vectors of this base model into the cache, whoever computed them."""
        self._cache.put(role, texts, vectors)

    def dataset(self, dataset: EmbeddingQAFinetuneDataset) -> EncodedDataset:
        """Embed the queries and documents of a dataset, or raise a DatasetError or EncodeError."""
        dataset = answered(dataset, "dataset")
        queries, documents = (
            self._encode_named(texts, role)
            for texts, role in ((dataset.queries, "query"), (dataset.corpus, "document"))
        )
        return with_rows(dataset, queries, documents)

    def _encode_named(self, texts: Mapping[str, str], role: Any) -> Vectors:
        """Embed texts; an error about some of them has their ids."""
        try:
            return self.encode(list(texts.values()), role)
        except EncodeError as error:
            concerned = set(error.texts or (error.text,))
            error.ids = tuple(key for key, text in texts.items() if text in concerned)
            if error.ids:
                error.args = (f"{error} Ids: {quote_some(error.ids)}.",)
            raise

    def close(self) -> None:
        """Release the cache's files; leaving a ``with`` block does so too."""
        self._cache.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
                for low, high, vectors in self._ask_batch(batch, role):
                    yield rows[low:high], vectors
                    self._unchecked[role] += batch[low:high]
                bar.update(len(rows))
                self._check_model(role, after=_MOST_UNCHECKED)

    def _ask_batch(self, batch: list[str], role: Role) -> Iterator[tuple[int, int, Vectors]]:
        """Yield from, to and vectors of what is answered; a batch that is refused is halved."""
        waiting = [(0, len(batch))]
        while waiting:
            low, high = waiting.pop()
            good: list[Vectors] = []
            try:
                for answer in self._calls.embed(role, batch[low:high]):
                    text = batch[low + len(good)]
                    good.append(checked(answer, known=self.fingerprint, name=self._name, text=text))
            except Exception as cause:  # models raise what they like
                at = low + len(good)  # which is refused, if it is known which
                if isinstance(cause, EncodeError) or is_fatal(cause):
                    raise
                if good or high - low == 1:
                    if is_passing(cause):
                        raise
                    self._refuse(batch[at], cause)
                    waiting += [(at + 1, high)] if at + 1 < high else []
                else:
                    middle = (low + high) // 2
                    waiting += [(middle, high), (low, middle)]
            finally:
                if good:
                    self._cache.put(role, batch[low : low + len(good)], np.stack(good))
            if good:
                self._refused_in_a_row = 0
                yield low, low + len(good), np.stack(good)

    def _refuse(self, text: str, cause: Exception) -> None:
        """Note a text that the model refuses; of many in a row it is the model that is at fault."""
        self._refused[text] = truncate(without_keys(f"{type(cause).__name__}: {cause}"), 300)
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= MOST_FAILURES:
            raise cause

    def _tell_refused(self, count: int) -> None:
        """Raise if texts were refused."""
        refused, self._refused = self._refused, {}
        if refused:
            text, reason = next(iter(refused.items()))
            raise EncodeError(
                f"{self._name} refuses {len(refused)} of {count} texts (first: of {len(text):,} "
                f"characters; it says: {reason}). The vectors of the others are kept. Shorten "
                "these texts or leave them out: dataset.without(ids).",
                text=text,
                texts=tuple(refused),
            )

    def _check_model(self, role: Role, *, after: int) -> None:
        """Drop what the model gave since it was last known to be the same, if it is another now."""
        unchecked, count = self._unchecked, sum(map(len, self._unchecked.values()))
        if count < after:
            return
        same = is_unchanged(self._model, self._calls, role, self.fingerprint)
        order = role in self._in_order or keeps_order(self._calls, role, self.fingerprint)
        self._in_order.add(role)
        self._unchecked = defaultdict(list)
        if same and order:
            return
        for asked_as, texts in unchecked.items():
            self._cache.forget(asked_as, texts)
        if same:
            raise EncodeError(
                f"{self._name} gives the vectors of a batch in another order than its texts. The "
                f"last {count} are not kept. Ask it for one text at a time: batch_size=1.",
                text=PROBE_TEXTS[0],
            )
        raise model_changed(self._name, count)


def with_rows(
    dataset: EmbeddingQAFinetuneDataset, queries: Vectors, documents: Vectors
) -> EncodedDataset:
    """Return the vectors of a dataset with what else is known of their rows."""
    row = {document: number for number, document in enumerate(dataset.corpus)}
    first: dict[str, int] = {}
    twins = [first.setdefault(text, number) for number, text in enumerate(dataset.corpus.values())]
    relevant = [dataset.relevant_docs[query] for query in dataset.queries]
    grades = [[dataset.grade(q, d) for d in dataset.relevant_docs[q]] for q in dataset.queries]
    return EncodedDataset(
        queries,
        documents,
        Qrels.from_lists([[row[document] for document in own] for own in relevant], grades),
        tuple(dataset.queries),
        tuple(dataset.corpus),
        np.array(twins, dtype=np.int64),
        content_hashes(list(dataset.corpus.values())),
        _negatives(dataset, row),
        _own(dataset, row) if dataset.ignore_identical_ids else None,
        dataset.twins_count,
    )


def _own(dataset: EmbeddingQAFinetuneDataset, row: dict[str, int]) -> Qrels | None:
    """Return the document of each query's own id, unless it or its text is an answer."""
    corpus, found = dataset.corpus, []
    for query in dataset.queries:
        answers = {corpus[d] for d in dataset.relevant_docs[query]} if query in corpus else ()
        found.append([row[query]] if query in corpus and corpus[query] not in answers else [])
    return Qrels.from_lists(found) if any(found) else None


def _negatives(dataset: EmbeddingQAFinetuneDataset, document_row: dict[str, int]) -> Qrels | None:
    mined = dataset.hard_negatives
    if mined is None:
        return None
    return Qrels.from_lists(
        [[document_row[document] for document in mined.get(q, ())] for q in dataset.queries]
    )
