"""Questions, documents and which answers which: the text side of the house.

Queries and documents of two datasets put together, so that no id stands for two things.

What a dataset consists of, in numbers that go into a report.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.data import formats, splits
from llama_index_embeddings_adapted.errors import DatasetError, OptionError, quote_some


class Parts(Protocol):
    """What of a dataset is merged."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]
    hard_negatives: dict[str, list[str]] | None

    def grade(self, query_id: str, document_id: str) -> float:
        """Return how relevant a document is."""
        ...


def merged(first: Parts, second: Parts) -> dict[str, Any]:
    """Return the arguments of a dataset of both; see ``EmbeddingQAFinetuneDataset.merged``.

    Raises:
        DatasetError: A document id stands for two texts.
    """
    clash = [d for d, text in second.corpus.items() if first.corpus.get(d, text) != text]
    if clash:
        raise DatasetError(
            f"{len(clash)} document ids stand for different texts in the two datasets "
            f"(first: {clash[0]!r})."
        )
    queries, relevant = dict(first.queries), dict(first.relevant_docs)
    grades = {query: _grades(first, query) for query in relevant}
    negatives = dict(first.hard_negatives or {})
    for query, text in second.queries.items():
        name = _free(query, (text, second.relevant_docs[query]), queries, relevant)
        queries[name], relevant[name] = text, second.relevant_docs[query]
        grades[name] = _grades(second, query)
        if query in (second.hard_negatives or {}):
            negatives[name] = (second.hard_negatives or {})[query]
    return {
        "queries": queries,
        "corpus": {**first.corpus, **second.corpus},
        "relevant_docs": relevant,
        "grades": grades,
        "hard_negatives": negatives or None,
    }


def _grades(dataset: Parts, query: str) -> dict[str, float]:
    return {document: dataset.grade(query, document) for document in dataset.relevant_docs[query]}


def _free(
    query: str,
    judged: tuple[str, Sequence[str]],
    queries: Mapping[str, str],
    relevant: Mapping[str, Sequence[str]],
) -> str:
    """Return an id that is nobody else's: the query's own, with as many primes as it takes."""
    while query in queries and (queries[query], relevant[query]) != judged:
        query += "'"
    return query


_HASHED_AT_ONCE = 10_000


class EmbeddingQAFinetuneDataset(BaseModel):
    """Queries, a corpus, and the documents that answer each query.

    The successor of the class of the same name in ``llama-index-finetuning``: same fields, same
    JSON. Unlike it, every relevant document counts, grades are kept, and bad data is refused here
    rather than found in the scores.

    Args:
        queries: Query id → text.
        corpus: Document id → text.
        relevant_docs: Query id → ids of its relevant documents, at least one.
        mode: Kept for the JSON of the old class; always ``"text"``.
        grades: Query id → document id → grade ``> 0``, where relevance is graded. Documents
            without a grade count 1.
        hard_negatives: Query id → ids of documents that look relevant and are not, where they were
            mined.
        allow_unjudged: Accept queries without a relevant document, so that :meth:`judged` can drop
            them.

    Raises:
        DatasetError: Unknown document ids, queries without a relevant document, empty texts,
            duplicate ids, values that are not strings. The message counts and names them.
    """

    model_config = ConfigDict(extra="forbid")

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]
    mode: str = "text"
    grades: dict[str, dict[str, float]] | None = None
    hard_negatives: dict[str, list[str]] | None = None
    _report: Any = PrivateAttr(default=None)
    _synthetic: bool = PrivateAttr(default=False)

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant_docs: Mapping[str, Sequence[str]],
        mode: str = "text",
        *,
        grades: Mapping[str, Mapping[str, float]] | None = None,
        hard_negatives: Mapping[str, Sequence[str]] | None = None,
        allow_unjudged: bool = False,
    ) -> None:
        formats.check(queries, corpus, relevant_docs, grades, hard_negatives)
        if not allow_unjudged:
            formats.check_judged(queries, relevant_docs)
        super().__init__(
            queries=dict(queries),
            corpus=dict(corpus),
            relevant_docs={query: list(docs) for query, docs in relevant_docs.items()},
            mode=mode,
            grades=None if grades is None else {q: dict(g) for q, g in grades.items()},
            hard_negatives=None
            if hard_negatives is None
            else {query: list(docs) for query, docs in hard_negatives.items()},
        )

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.queries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.queries)} queries, {len(self.corpus)} documents)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Return whether queries, corpus and judgements are the same; the report does not count."""
        if not isinstance(other, EmbeddingQAFinetuneDataset):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]

    @property
    def report(self) -> Any:
        """What became of every question that was written for this dataset.

        A :class:`QuestionReport` where the dataset
        comes from ``generate_qa_embedding_pairs`` or ``pairs_from_structure``; None for any other,
        parts of such a dataset and what was read from a file included.
        """
        return self._report

    @property
    def synthetic(self) -> bool:
        """Whether an LLM wrote the queries; parts of such a dataset know, files do not.

        Held-out questions of the same writer do not prove a gain on those of users.
        """
        return self._synthetic

    def reported(self, report: object, *, synthetic: bool = False) -> EmbeddingQAFinetuneDataset:
        """Return the same dataset with a report, marked as written by an LLM or not."""
        found = self.model_copy()
        found._report, found._synthetic = report, synthetic
        return found

    @property
    def query_docid_pairs(self) -> list[tuple[str, list[str]]]:
        """Each query's text with the ids of its relevant documents."""
        return [(text, self.relevant_docs[query]) for query, text in self.queries.items()]

    @property
    def fingerprint(self) -> str:
        """A hash of all ids, texts and judgements, to tell datasets apart."""
        hashed = hashlib.sha256(b"[")
        for number, part in enumerate((self.queries, self.corpus, self.relevant_docs, self.grades)):
            hashed.update(b", " if number else b"")
            for piece in _json_pieces(part):
                hashed.update(piece.encode("ascii"))
        hashed.update(b"]")
        return hashed.hexdigest()[:16]

    def grade(self, query_id: str, document_id: str) -> float:
        """Return how relevant the document is to the query: 0 when it is not."""
        if document_id not in self.relevant_docs.get(query_id, ()):
            return 0.0
        return (self.grades or {}).get(query_id, {}).get(document_id, 1.0)

    # --- reading and writing ----------------------------------------------------------------

    def save_json(self, path: str | Path) -> None:
        """Write the JSON of the old class, atomically.

        ``grades`` and ``hard_negatives`` are added where there are any.
        """
        formats.write_qa_json(Path(path), self.model_dump())

    @classmethod
    def from_json(
        cls, path: str | Path, *, allow_unjudged: bool = False
    ) -> EmbeddingQAFinetuneDataset:
        """Read a dataset that this class, or its predecessor, has written.

        Raises:
            DatasetError: Not JSON, JSON of another shape, or bad data (see the class).
        """
        return cls(**formats.read_qa_json(Path(path)), allow_unjudged=allow_unjudged)

    @classmethod
    def from_beir(
        cls, folder: str | Path, split: str = "train", *, allow_unjudged: bool = False
    ) -> EmbeddingQAFinetuneDataset:
        """Read one split of a BEIR folder; files may be gzipped.

        A document's text is its title and text joined by a space. Only queries with a judgement in
        ``qrels/<split>.tsv`` are kept; a grade of 0 means judged irrelevant.

        Raises:
            DatasetError: A file is missing or malformed, or the data is bad (see the class).
        """
        parts = formats.read_beir(Path(folder), split)
        return cls(
            parts.queries,
            parts.corpus,
            parts.relevant_docs,
            grades=parts.grades,
            allow_unjudged=allow_unjudged,
        )

    def to_beir(self, folder: str | Path, split: str = "train") -> None:
        """Write ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

        Grades are written as integers when all of them are whole.
        """
        qrels = {
            query: {document: self.grade(query, document) for document in documents}
            for query, documents in self.relevant_docs.items()
        }
        formats.write_beir(Path(folder), split, self.queries, self.corpus, qrels)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        queries: Mapping[str, str],
        relevant_docs: Mapping[str, Sequence[str]],
    ) -> EmbeddingQAFinetuneDataset:
        """Take the corpus from LlamaIndex nodes, with the text an index would embed.

        That is ``MetadataMode.EMBED``: content with its metadata, as ``VectorStoreIndex`` sends it
        to the embedding model.

        Raises:
            DatasetError: Two nodes with one id, or bad data (see the class).
        """
        pairs = [(node.node_id, node.get_content(MetadataMode.EMBED)) for node in nodes]
        return cls(queries, files.unique(pairs, what="node", error=DatasetError), relevant_docs)

    # --- taking parts -------------------------------------------------------------------------

    def judged(self) -> EmbeddingQAFinetuneDataset:
        """Drop the queries without a relevant document, and warn how many that were."""
        kept = [query for query in self.queries if self.relevant_docs.get(query)]
        dropped = len(self.queries) - len(kept)
        if dropped:
            warnings.warn(
                f"Dropped {dropped} of {len(self.queries)} queries: no relevant document.",
                stacklevel=2,
            )
        return self.subset(kept)

    def subset(self, query_ids: Iterable[str]) -> EmbeddingQAFinetuneDataset:
        """Keep these queries, in this order, and the whole corpus."""
        chosen = list(query_ids)
        grades, negatives = self.grades, self.hard_negatives
        part = type(self)(
            {query: self.queries[query] for query in chosen},
            self.corpus,
            {query: self.relevant_docs[query] for query in chosen},
            self.mode,
            grades=None if grades is None else {q: grades[q] for q in chosen if q in grades},
            hard_negatives=None
            if negatives is None
            else {q: negatives[q] for q in chosen if q in negatives},
        )
        return part.reported(None, synthetic=self._synthetic)

    def with_hard_negatives(
        self, negatives: Mapping[str, Sequence[str]]
    ) -> EmbeddingQAFinetuneDataset:
        """Return the same dataset with documents that look relevant and are not.

        Raises:
            DatasetError: Unknown ids, or a document that is relevant to its query.
        """
        found = type(self)(
            self.queries,
            self.corpus,
            self.relevant_docs,
            self.mode,
            grades=self.grades,
            hard_negatives=negatives,
            allow_unjudged=True,
        )
        return found.reported(self._report, synthetic=self._synthetic)

    def merged(self, other: EmbeddingQAFinetuneDataset) -> EmbeddingQAFinetuneDataset:
        """Return a dataset of the queries and documents of both.

        Documents of equal id must have equal text. Queries of equal id are the same query if
        their text and documents are equal; else that of ``other`` gets a new id.

        Raises:
            DatasetError: A document id stands for two texts.
        """
        return EmbeddingQAFinetuneDataset(**merged(self, other))

    def train_test_split(
        self,
        test_size: float | int = 0.2,
        *,
        by: Literal["query", "document"] = "query",
        seed: int = 0,
    ) -> tuple[EmbeddingQAFinetuneDataset, EmbeddingQAFinetuneDataset]:
        """Split the queries in two; both parts keep the whole corpus to search in.

        ``by="query"`` asks how well the adapter serves new questions about documents it may have
        met in training. ``by="document"`` asks how it serves documents it has never met: no
        relevant document of a test query is relevant to any training query. Queries that touch
        both sides are dropped with a warning. No query text is ever in both parts.

        Args:
            test_size: Share of the queries in (0, 1), or their number.
            by: ``"query"`` or ``"document"``.
            seed: Same seed and same ids, same split; the order of the dicts does not matter.

        Raises:
            OptionError: ``test_size`` or ``by`` out of range.
            DatasetError: A part would be empty, for instance because every document is shared.
        """
        texts = {query: splits.normalise(text) for query, text in self.queries.items()}
        train, test, dropped = splits.split(
            texts, self.relevant_docs, test_size=test_size, by=by, seed=seed
        )
        if dropped:
            warnings.warn(
                f"{dropped} of {len(self.queries)} queries ask for documents of both parts "
                "and were dropped.",
                stacklevel=2,
            )
        return self.subset(train), self.subset(test)


def _json_pieces(part: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the JSON of an object with sorted keys, a part of it at a time."""
    if part is None:
        yield "null"
        return
    yield "{"
    names = sorted(part)
    for start in range(0, len(names), _HASHED_AT_ONCE):
        some = {name: part[name] for name in names[start : start + _HASHED_AT_ONCE]}
        text = json.dumps(some, sort_keys=True, ensure_ascii=True)
        yield (", " if start else "") + text[1:-1]
    yield "}"


def as_dataset(value: Any, name: str) -> EmbeddingQAFinetuneDataset:
    """Accept our dataset, and objects of the old package's class.

    Args:
        value: What was given.
        name: Of the argument, for the error.

    Raises:
        OptionError: Anything else.
        DatasetError: Bad data, see :class:`EmbeddingQAFinetuneDataset`.
    """
    if isinstance(value, EmbeddingQAFinetuneDataset):
        return value
    try:
        return EmbeddingQAFinetuneDataset(value.queries, value.corpus, value.relevant_docs)
    except AttributeError:
        raise OptionError(
            f"{name}: expected an EmbeddingQAFinetuneDataset, got {type(value).__name__}."
        ) from None


def answered(value: Any, name: str) -> EmbeddingQAFinetuneDataset:
    """Return a dataset whose every query has an answer.

    Raises:
        DatasetError: One has none.
        OptionError: No dataset.
    """
    dataset = as_dataset(value, name)
    without = [query for query in dataset.queries if not dataset.relevant_docs.get(query)]
    if without:
        raise DatasetError(
            f"{name}: {len(without)} of {len(dataset.queries)} queries have no relevant document "
            f"(first: {quote_some(without)}). Drop them with dataset.judged()."
        )
    return dataset


MOST_MEASURED = 10_000  # texts whose words are counted; beyond, every n-th


def data_statistics(dataset: EmbeddingQAFinetuneDataset) -> dict[str, Any]:
    """Return counts and lengths as JSON knows them, without any text of the dataset.

    Returns:
        ``queries``, ``documents``, ``distinct_documents``, ``judgements``, ``documents_asked_for``,
        ``graded``, ``synthetic``, ``query_words`` and ``document_words`` (least, median, most), and
        ``questions``: what the filters kept and dropped, None where no report is known.
    """
    asked = {document for documents in dataset.relevant_docs.values() for document in documents}
    return {
        "queries": len(dataset.queries),
        "documents": len(dataset.corpus),
        "distinct_documents": len(set(dataset.corpus.values())),
        "judgements": sum(map(len, dataset.relevant_docs.values())),
        "documents_asked_for": len(asked),
        "graded": dataset.grades is not None,
        "synthetic": dataset.synthetic,
        "query_words": _lengths(list(dataset.queries.values())),
        "document_words": _lengths(list(dataset.corpus.values())),
        "questions": _questions(dataset.report),
    }


def _lengths(texts: list[str]) -> list[float]:
    step = -(-len(texts) // MOST_MEASURED)
    words = [len(text.split()) for text in texts[:: step or 1]]
    return [float(min(words)), float(median(words)), float(max(words))] if words else []


def _questions(report: Any) -> dict[str, Any] | None:
    """Return the counts of a report on questions: no question and no passage id."""
    if report is None:
        return None
    found = dict(report.to_dict())
    found.pop("examples", None)
    found["failed"] = len(found.get("failed", ()))
    return found
