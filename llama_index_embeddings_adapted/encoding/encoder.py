"""Texts become vectors here, each distinct one exactly once, and nowhere else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from tqdm import tqdm

from ..core.arrays import Role, Rows, Vectors, alike, allocate_vectors, content_hashes
from ..core.encoded import EncodedDataset, Qrels
from ..data.dataset import EmbeddingQAFinetuneDataset, answered
from ..errors import EncodeError, is_fatal, is_passing, quote_some, truncate
from . import base_model
from .base_model import BaseModelCalls, check_base, fingerprint_of, is_unchanged, keeps_order
from .cache import CacheDir, VectorCache, cache_folder
from .serialize import base_name, without_keys

MOST_FAILURES = 8  # texts that fail alone, one after the other, before the rest is not tried
#: Texts between two looks at whether the model is still the same; fewer are not worth one at all.
_MOST_UNCHECKED, LEAST_CHECKED = 256, 64
_LOOKED_UP = 65_536  # texts at a time
UNTRIED = "not tried after other failures"


class Encoder(ExitStack):
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
        super().__init__()
        self.folder = cache_folder(cache_dir)
        model = check_base(model, "model")  # last: a string loads a model
        self._name, self._model = base_name(model), model
        self._calls = BaseModelCalls(model, batch_size=batch_size)
        self._show_progress = show_progress
        self.fingerprint = fingerprint_of(model, self._calls)
        self.cache = VectorCache(self.folder, self.fingerprint)
        self.callback(self.cache.close)  # by close(), or where a ``with`` block ends
        self._unchecked: defaultdict[str, list[str]] = defaultdict(list)
        self._in_order: set[Role] = set()  # as whose batches are known to come back in order

    @property
    def spent(self) -> dict[str, Any]:
        """Calls to the base model so far, texts sent and, about, their tokens, probes included."""
        asked = self._calls
        sent = {"base_calls": asked.calls, "base_texts": asked.texts}
        return {**sent, "base_tokens": asked.characters // 4}  # a token for four characters

    def encode(self, texts: Sequence[str], role: Role) -> Vectors:
        """Embed texts, repeated or not: ``(len(texts), dim)``, as the base model gives them.

        More than 256 MiB lie in a nameless file of the cache folder, mapped, which goes when the
        array goes. A vector that is missing, has NaN or another length is an EncodeError that names
        the text, and so is a model that is no longer the same; what came before is kept.
        """
        first: dict[str, int] = {}
        rows_of_first = [first.setdefault(text, row) for row, text in enumerate(texts)]
        origin = np.array(rows_of_first, dtype=int)
        distinct = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        vectors = allocate_vectors((len(texts), self.fingerprint.dim), self.folder)
        missing: list[int] = []
        for start in range(0, len(distinct), _LOOKED_UP):
            rows = distinct[start : start + _LOOKED_UP]
            known, found = self.cache.get(role, [texts[row] for row in rows])
            vectors[rows[known]] = found
            missing += np.delete(rows, known).tolist()
        # Longest first: batches of like length waste no padding, and the estimate errs upwards.
        missing.sort(key=lambda row: -len(texts[row]))
        refused = self._ask(texts, np.array(missing, dtype=np.int64), role, vectors, False)
        self._check_model(role, after=LEAST_CHECKED)
        if refused:
            bad, why = tuple(texts[row] for row in refused), next(iter(refused.values()))
            raise EncodeError(
                f"{self._name} refuses {len(bad)} of {len(distinct)} texts (first: of "
                f"{len(bad[0]):,} characters; it says: {why}). The vectors of the "
                "others are kept. Shorten these texts or leave them out: dataset.without(ids).",
                text=bad[0],
                texts=bad,
            )
        repeated = np.flatnonzero(origin != np.arange(len(texts)))
        vectors[repeated] = vectors[origin[repeated]]
        return vectors

    def embed_tolerant(
        self, texts: Sequence[str], role: Role
    ) -> tuple[Rows, Vectors, dict[int, str]]:
        """Ask the base model for all of these texts, past those it fails on; keeps nothing.

        Returns the rows of the texts that have a vector, ``(k,)``, those vectors, ``(k, dim)``, and
        for each other row what the model said. After eight in a row that fail alone it is the model
        that is broken: the rest is not tried. One that still answers is looked at in the end; an
        EncodeError says that it has changed, so none of these vectors should be kept.
        """
        everything = np.arange(len(texts))
        vectors = np.empty((len(texts), self.fingerprint.dim), dtype=np.float32)
        failures = self._ask(texts, everything, role, vectors, True)
        rows = np.delete(everything, list(failures))
        if UNTRIED not in failures.values():
            self._check_model(role, after=LEAST_CHECKED)
        return rows, vectors[rows], failures

    def dataset(self, dataset: EmbeddingQAFinetuneDataset) -> EncodedDataset:
        """Embed the queries and documents of a dataset, or raise a DatasetError or EncodeError."""
        dataset, vectors = answered(dataset, "dataset"), []
        sides: tuple[tuple[dict[str, str], Role], ...]
        sides = (dataset.queries, "query"), (dataset.corpus, "document")
        for texts, role in sides:
            try:
                vectors.append(self.encode(list(texts.values()), role))
            except EncodeError as error:
                concerned = set(error.texts or (error.text,))
                error.ids = tuple(key for key, text in texts.items() if text in concerned)
                if error.ids:
                    error.args = (f"{error} Ids: {quote_some(error.ids)}.",)
                raise
        return with_rows(dataset, *vectors)

    def _ask(
        self, texts: Sequence[str], missing: Rows, role: Role, vectors: Vectors, tolerant: bool
    ) -> dict[int, str]:
        """Fill in the rows that are missing; return those that are refused, and why."""
        size, in_a_row = self._calls.batch_size, 0
        refused: dict[int, str] = {}
        what = "queries" if role == "query" else "documents"
        quiet = tolerant or not self._show_progress or not len(missing)
        with tqdm(total=len(missing), desc=f"Embedding {what}", unit="text", disable=quiet) as bar:
            for start in range(0, len(missing), size):
                rows = missing[start : start + size]
                batch = [texts[row] for row in rows]
                for low, good, fault in self._answers(batch, role, tolerant):
                    high = low + len(good)
                    if good:
                        vectors[rows[low:high]] = good
                        self._unchecked[role] += batch[low:high]
                        in_a_row = 0
                    if fault is not None:
                        why = without_keys(f"{type(fault).__name__}: {fault}")
                        refused[int(rows[high])] = truncate(why, 300)
                        in_a_row += 1
                    if in_a_row >= MOST_FAILURES:  # it is the model that is at fault
                        if fault is not None and not tolerant:
                            raise fault
                        rest = [*rows[high + 1 :], *missing[start + size :]]
                        return refused | dict.fromkeys(map(int, rest), UNTRIED)
                bar.update(len(rows))
                if not tolerant:
                    self._check_model(role, after=_MOST_UNCHECKED)
        return refused

    def _answers(
        self, texts: list[str], role: Role, tolerant: bool
    ) -> Iterator[tuple[int, list[Vectors], Exception | None]]:
        """Yield a row, the vectors from there on, and the error of the text after them, if any.

        A batch that fails is halved until the text stands alone. Unless tolerant, answers are kept
        as they come, and an error that other texts would meet, too, is raised.
        """
        waiting = [(0, len(texts))]
        while waiting:
            low, high = waiting.pop()
            good: list[Vectors] = []
            fault: Exception | None = None
            try:
                for answer in self._calls.embed(role, texts[low:high]):
                    good.append(self._checked(answer, texts[low + len(good)]))
            except Exception as cause:  # models raise what they like
                at = low + len(good)  # which is refused, if it is known which
                alone = high - low == 1 or (bool(good) and not tolerant)
                general = isinstance(cause, EncodeError) or is_fatal(cause)
                if not tolerant and (general or (alone and is_passing(cause))):
                    raise
                middle = at + 1 if good or alone else (low + high) // 2
                waiting += [(middle, high)] if middle < high else []
                waiting += [] if alone else [(at, middle)]
                fault = cause if alone else None
            finally:
                if good and not tolerant:
                    self.cache.put(role, texts[low : low + len(good)], np.stack(good))
            yield low, good, fault

    def _checked(self, answer: Any, text: str) -> Vectors:
        """Return an answer as a vector, ``(dim,)``, or raise an EncodeError."""
        vector: Vectors = np.asarray(answer, dtype=np.float32)  # LlamaIndex checked its numbers
        expected = (self.fingerprint.dim,)
        wrong = ""
        if vector.shape != expected:
            wrong = f"of shape {vector.shape}, expected {expected}"
        elif not np.isfinite(vector).all():
            wrong = "with NaN or infinity"
        elif not vector.any() and self.fingerprint.probes.any(axis=1).all():
            wrong = "of zeros, which is near to nothing"
        if wrong:
            raise EncodeError(f"{self._name} gave a vector {wrong}.", text=text)
        return vector

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
            self.cache.forget(asked_as, texts)
        if same:
            raise EncodeError(
                f"{self._name} gives the vectors of a batch in another order than its texts. The "
                f"last {count} are not kept. Ask it for one text at a time: batch_size=1.",
                text=base_model.PROBE_TEXTS[0],
            )
        raise EncodeError(
            f"The model behind the name {self._name} has changed: a probe text has another vector "
            f"now than before. The vectors of the last {count} texts are not kept. Find out what "
            "answers under this name, and run again; where it is one model that is not bit-stable, "
            "set LLAMA_INDEX_ADAPTED_TOLERANCE, for instance to 0.02.",
            text=base_model.PROBE_TEXTS[0],
        )


def encode(model: BaseEmbedding, texts: Sequence[str], role: Role, **settings: Any) -> Vectors:
    """Embed texts by an :class:`Encoder` of these settings, once."""
    with Encoder(model, **settings) as encoder:
        return encoder.encode(texts, role)


def answers_of(dataset: EmbeddingQAFinetuneDataset) -> Qrels:
    """Return the judgements of all queries, in rows of the corpus; none where a query has none."""
    row = {document: number for number, document in enumerate(dataset.corpus)}
    relevant = {query: dataset.relevant_docs.get(query, []) for query in dataset.queries}
    given = dataset.grades or {}
    grades = [[given.get(query, {}).get(d, 1.0) for d in own] for query, own in relevant.items()]
    return Qrels.from_lists([[row[each] for each in own] for own in relevant.values()], grades)


def with_rows(
    dataset: EmbeddingQAFinetuneDataset, queries: Vectors, documents: Vectors
) -> EncodedDataset:
    """Return the vectors of a dataset with what else is known of their rows."""
    row = {document: number for number, document in enumerate(dataset.corpus)}
    first: dict[str, int] = {}
    twins = [first.setdefault(text, number) for number, text in enumerate(dataset.corpus.values())]
    mined, negatives = dataset.hard_negatives, None
    if mined is not None:
        lists = [[row[each] for each in mined.get(query, ())] for query in dataset.queries]
        negatives = Qrels.from_lists(lists)
    own = _own(dataset, row) if dataset.ignore_identical_ids else None
    rows, keys = np.array(twins, dtype=np.int64), content_hashes([*dataset.corpus.values()])
    found = queries, documents, answers_of(dataset), tuple(dataset.queries), tuple(dataset.corpus)
    asked = content_hashes([alike(query) for query in dataset.queries.values()])
    return EncodedDataset(*found, rows, keys, negatives, own, dataset.twins_count, asked)


def _own(dataset: EmbeddingQAFinetuneDataset, row: dict[str, int]) -> Qrels | None:
    """Return the document of each query's own id, unless it or its text is an answer."""
    corpus, found = dataset.corpus, []
    for query in dataset.queries:
        answers = {corpus[d] for d in dataset.relevant_docs[query]} if query in corpus else ()
        found.append([row[query]] if query in corpus and corpus[query] not in answers else [])
    return Qrels.from_lists(found) if any(found) else None
