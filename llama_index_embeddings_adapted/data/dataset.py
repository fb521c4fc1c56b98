"""Queries, documents and which answers which; what a dataset consists of, in numbers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from typing_extensions import Self

from ..core import files
from ..errors import DatasetError, OptionError
from . import contents, formats, records
from .contents import data_statistics as data_statistics
from .reading import Omissions, decode, read_file


class EmbeddingQAFinetuneDataset(BaseModel):
    """Queries, a corpus, and the documents that answer each query.

    The successor of the class of the same name in ``llama-index-finetuning``: same fields, same
    JSON. Unlike it, every relevant document counts, grades are kept, and bad data is refused here
    rather than found in the scores.

    Args:
        queries: Query id → text.
        corpus: Document id → text.
        relevant_docs: Query id → its relevant documents, at least one: a list or set of ids, or
            ids with their grades, of which 0 and less count as not relevant.
        mode: Kept for the JSON of the old class; always ``"text"``.
        grades: Query id → document id → grade ``> 0``, where relevance is graded. Documents
            without a grade count 1.
        hard_negatives: Query id → ids of documents that look relevant and are not, where they were
            mined.
        provenance: Query id → where the query is from: ``"human"``, ``"llm"``, ``"structure"`` (of
            the documents) or ``"feedback"`` (of users), as far as known.
        ignore_identical_ids: A document with the id of a query does not compete for it, unless it
            is relevant: where queries stand in the corpus, as in ArguAna and Quora, they would find
            themselves. As BEIR and MTEB score.
        twins_count: A document of the same text as a relevant one counts as relevant in scores.
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
    provenance: dict[str, str] | None = None
    ignore_identical_ids: bool = True
    twins_count: bool = True
    _report: Any = PrivateAttr(default=None)

    def __init__(
        self,
        queries: Mapping[str, str],
        corpus: Mapping[str, str],
        relevant_docs: Mapping[str, Iterable[str] | Mapping[str, float]],
        mode: str = "text",
        *,
        grades: Mapping[str, Mapping[str, float]] | None = None,
        hard_negatives: Mapping[str, Sequence[str]] | None = None,
        provenance: Mapping[str, str] | None = None,
        ignore_identical_ids: bool = True,
        twins_count: bool = True,
        allow_unjudged: bool = False,
    ) -> None:
        lists, grades = contents.as_lists(relevant_docs, grades)
        if not isinstance(mode, str):
            raise DatasetError(f"mode: expected a string such as 'text', got {mode!r}.")
        contents.check(queries, corpus, lists, grades, hard_negatives, provenance)
        if not allow_unjudged:
            contents.check_judged(queries, lists, hint="Read the data with allow_unjudged=True. ")
        super().__init__(
            queries=dict(queries),
            corpus=dict(corpus),
            relevant_docs={query: list(docs) for query, docs in lists.items()},
            mode=mode,
            grades=grades and {query: dict(own) for query, own in grades.items()},
            hard_negatives=hard_negatives and {q: list(own) for q, own in hard_negatives.items()},
            provenance=dict(provenance) if provenance else None,
            ignore_identical_ids=ignore_identical_ids,
            twins_count=twins_count,
        )

    def __len__(self) -> int:
        return len(self.queries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.queries)} queries, {len(self.corpus)} documents)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Return whether queries, corpus and judgements are the same; the report does not count."""
        if not isinstance(other, EmbeddingQAFinetuneDataset):
            return NotImplemented
        return self.model_dump() == other.model_dump()

    @property
    def report(self) -> Any:
        """What became of every question that was written for this dataset.

        A :class:`QuestionReport` where the dataset comes from ``generate_qa_embedding_pairs`` or
        ``pairs_from_structure``; None for any other, for parts and for what was read from a file.
        """
        return self._report

    @property
    def synthetic(self) -> bool:
        """Whether an LLM wrote all queries: such ones held out do not prove a gain for users."""
        return bool(self.sources) and set(self.sources) == {"llm"}

    @property
    def sources(self) -> dict[str, int]:
        """How many queries come from where; ``"unknown"`` where nothing was said of some."""
        if not self.provenance:
            return {}
        return dict(Counter(self.provenance.get(query, "unknown") for query in self.queries))

    def with_provenance(self, source: str) -> Self:
        """Return the same dataset, all queries from ``source``.

        A DatasetError where that is not one of :data:`formats.SOURCES`.
        """
        return self._but(provenance=dict.fromkeys(self.queries, source)).reported(self._report)

    def scored(self, *, ignore_identical_ids: bool = True, twins_count: bool = True) -> Self:
        """Return the same dataset, to be scored and trained on otherwise, see the class."""
        same = self._but(ignore_identical_ids=ignore_identical_ids, twins_count=twins_count)
        return same.reported(self._report)

    def reported(self, report: object, *, synthetic: bool = False) -> Self:
        """Return the same dataset with a report; ``synthetic`` marks all queries as by an LLM."""
        found = self.with_provenance("llm") if synthetic else self.model_copy()
        found._report = report
        return found

    def _but(self, **changes: Any) -> Self:
        return type(self)(**{**vars(self), "allow_unjudged": True, **changes})

    @property
    def query_docid_pairs(self) -> list[tuple[str, list[str]]]:
        """Each query's text with the ids of its relevant documents."""
        return [(text, self.relevant_docs[query]) for query, text in self.queries.items()]

    @property
    def fingerprint(self) -> str:
        """A hash of all ids, texts and judgements, to tell datasets apart."""
        hashed = hashlib.sha256()
        parts = (self.queries, self.corpus, self.relevant_docs, self.grades)
        for piece in json.JSONEncoder(sort_keys=True).iterencode(parts):  # all may be gigabytes
            hashed.update(piece.encode("ascii"))
        return hashed.hexdigest()[:16]

    def grade(self, query_id: str, document_id: str) -> float:
        """Return how relevant the document is to the query: 0 when it is not."""
        if document_id not in self.relevant_docs.get(query_id, ()):
            return 0.0
        return (self.grades or {}).get(query_id, {}).get(document_id, 1.0)

    def save_json(self, path: str | Path) -> None:
        """Write the old class's JSON, atomically, with grades, negatives and provenance if any."""
        usual = {flag for flag in formats.FLAGS if getattr(self, flag)}
        files.write_json(Path(path), self.model_dump(exclude_none=True, exclude=usual))

    @classmethod
    def from_json(
        cls, path: str | Path, *, strict: bool = False, allow_unjudged: bool = False
    ) -> Self:
        """Read a dataset that this class, or its predecessor, has written.

        Args:
            path: Of the file, in any encoding.
            strict: Refuse what does not fit together, instead of leaving it out with a warning
                that counts it.
            allow_unjudged: Keep queries without a relevant document.

        Raises:
            DatasetError: Not JSON, JSON of another shape, or nothing is left.
        """
        omissions = Omissions(path, strict=strict)
        text_of = partial(decode, omissions=omissions)
        data = files.read_json_object(Path(path), error=DatasetError, decode=text_of)
        parts = formats.mended_qa(data, omissions, allow_unjudged=allow_unjudged)
        omissions.tell()
        return cls(**parts, allow_unjudged=allow_unjudged)

    @classmethod
    def from_beir(
        cls,
        folder: str | Path,
        split: str = "train",
        *,
        strict: bool = False,
        allow_unjudged: bool = False,
    ) -> Self:
        """Read one split of a BEIR folder, as they are published; files may be gzipped.

        A document's text is its title and text joined by a space. Only queries with a judgement in
        ``qrels/<split>.tsv`` (also TREC's four columns, or JSON lines) are kept; a grade of 0 means
        judged irrelevant.

        Args:
            folder: With ``corpus.jsonl``, ``queries.jsonl`` and ``qrels``.
            split: Such as ``"train"`` or ``"test"``.
            strict, allow_unjudged: See :meth:`from_json`.

        Raises:
            DatasetError: A file is missing or damaged, or nothing is left.
        """
        omissions = Omissions(folder, strict=strict)
        parts = formats.read_beir(Path(folder), split, omissions, allow_unjudged=allow_unjudged)
        omissions.tell()
        return cls(**parts, allow_unjudged=allow_unjudged)

    @classmethod
    def from_records(cls, rows: Any, *, strict: bool = False, **options: Any) -> Self:
        """Read rows as people have them; columns are found by their usual names, or named.

        Pairs; triplets (anchor, positive, negative); ``{query, pos, neg}``; graded rows, where 0
        and less make hard negatives; logs with a column of clicks or thumbs, which add up; test
        sets of Ragas; LlamaIndex's labelled RAG dataset; qrels; dicts of query → documents. Equal
        texts are one query or one document.

        Args:
            rows: Dicts, tuples, or what holds them: a data frame, an Arrow table, an object with a
                list or columns in it, the :class:`~pathlib.Path` of a file.
            strict: Refuse rows that cannot be used, instead of leaving them out with a warning.
            options: ``query=``, ``document=``, ``negative=``, ``grade=``, ``query_id=``,
                ``document_id=``: the column of the query's text, of the relevant passages (texts or
                ids; or several columns), of passages that look relevant and are not (likewise), of
                how relevant the passage is, of ids. ``queries=``, ``corpus=``: id → text, where
                rows name them by id, and others to search in. ``provenance=`` of all queries, see
                the class; by default what the rows say of it.

        Raises:
            DatasetError: No column is known to hold queries or documents, or nothing is left.
        """
        omissions = Omissions(rows if isinstance(rows, Path) else "rows", strict=strict)
        table = read_file(rows, omissions) if isinstance(rows, Path) else rows
        parts = records.parts_of(table, omissions=omissions, **options)
        omissions.tell()
        return cls(**parts)

    @classmethod
    def from_file(cls, path: str | Path, **arguments: Any) -> Self:
        """Read rows from a file, whatever it is by what is inside: JSON, JSON lines, CSV, parquet.

        The JSON of this class is read, too, and a BEIR folder; encodings are found out. For
        arguments and errors see :meth:`from_records` and :meth:`from_beir`; parquet needs pyarrow.
        """
        read = cls.from_beir if Path(path).is_dir() else cls.from_records
        return read(Path(path), **arguments)

    @classmethod
    def from_feedback(cls, rows: Any, *, strict: bool = False, **options: Any) -> Self:
        """Read a log of what users were shown and clicked, or voted for: a row per document shown.

        What stands first is looked at most, so a click at position k, counted from 1, weighs
        ``k ** bias``. Documents of at least half the weight of a query's best are relevant; those
        that stood above a click and were never clicked are hard negatives, as are those voted down.

        Args:
            rows: See :meth:`from_records`.
            strict: Likewise.
            options: Those of :meth:`from_records`, the columns ``position=`` and ``session=``
                (where a query is shown several lists), and fields of :class:`Feedback`:
                ``bias``, ``min_clicks``, ….

        Source: Joachims, Swaminathan and Schnabel 2017, arXiv:1608.04468, section 3 (inverse
        propensity); Joachims 2002, section 3 (skipped above a click).
        """
        return cls.from_records(rows, strict=strict, feedback=True, **options)

    from_csv = from_jsonl = from_parquet = from_file  # one reader, which looks inside
    from_dataframe = from_records

    def to_beir(self, folder: str | Path, split: str = "train") -> None:
        """Write ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

        Grades are written as integers when all of them are whole.
        """
        relevant = self.relevant_docs.items()
        qrels = {query: {d: self.grade(query, d) for d in docs} for query, docs in relevant}
        formats.write_beir(Path(folder), split, self.queries, self.corpus, qrels, self.provenance)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        queries: Mapping[str, str],
        relevant_docs: Mapping[str, Sequence[str]],
    ) -> Self:
        """Take the corpus from LlamaIndex nodes, with the text an index would embed.

        That is ``MetadataMode.EMBED``: content with its metadata, as ``VectorStoreIndex`` sends it
        to the embedding model. Two nodes with one id are a DatasetError.
        """
        pairs = [(node.node_id, node.get_content(MetadataMode.EMBED)) for node in nodes]
        return cls(queries, files.unique(pairs, what="node", error=DatasetError), relevant_docs)

    def judged(self) -> Self:
        """Drop the queries without a relevant document, and warn how many that were."""
        kept = [query for query in self.queries if self.relevant_docs.get(query)]
        if dropped := len(self) - len(kept):
            told = f"Dropped {dropped} of {len(self)} queries: no relevant document."
            warnings.warn(told, stacklevel=2)
        return self.subset(kept)

    def subset(self, query_ids: Iterable[str]) -> Self:
        """Keep these queries, in this order, and the whole corpus."""
        chosen = list(query_ids)
        found = {
            name: (part := getattr(self, name))
            and {query: part[query] for query in chosen if query in part}
            for name in ("queries", *contents.PER_QUERY)
        }
        return self._but(**found, allow_unjudged=False)

    def without(self, ids: Iterable[str]) -> Self:
        """Drop documents and queries, and queries that are left without a relevant document."""
        gone = set(ids)
        corpus = {document: text for document, text in self.corpus.items() if document not in gone}
        lists = ("relevant_docs", "grades", "hard_negatives")
        left = {name: contents.kept_of(getattr(self, name), corpus) for name in lists}
        smaller = self._but(corpus=corpus, **left)
        relevant = smaller.relevant_docs
        return smaller.subset([q for q in self.queries if relevant.get(q) and q not in gone])

    def with_hard_negatives(self, negatives: Mapping[str, Sequence[str]]) -> Self:
        """Return the same dataset with documents that look relevant and are not, by query.

        Unknown ids, or a document that is relevant to its query, are a DatasetError.
        """
        return self._but(hard_negatives=negatives).reported(self._report)

    def merged(self, other: EmbeddingQAFinetuneDataset) -> Self:
        """Return a dataset of the queries and documents of both.

        Documents of equal id must have equal text, else it is a DatasetError. Queries of equal id
        are the same query if their text and documents are equal; else that of ``other`` gets a new
        id.
        """
        if not isinstance(other, EmbeddingQAFinetuneDataset):
            other = answered(other, "other")
        return type(self)(**contents.merged(vars(self), vars(other)))

    def train_test_split(
        self,
        test_size: float | int = 0.2,
        *,
        by: Literal["query", "document"] = "query",
        seed: int = 0,
    ) -> tuple[Self, Self]:
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
        # Equal texts are one document, whatever their ids.
        asked = {q: [self.corpus[d] for d in docs] for q, docs in self.relevant_docs.items()}
        return contents.split(self, asked, test_size, by=by, seed=seed)


def answered(value: Any, name: str) -> EmbeddingQAFinetuneDataset:
    """Return a dataset, ours or the old package's, of answered queries; else a DatasetError."""
    if not isinstance(value, EmbeddingQAFinetuneDataset):
        try:
            value = EmbeddingQAFinetuneDataset(value.queries, value.corpus, value.relevant_docs)
        except AttributeError:
            what = f"expected an EmbeddingQAFinetuneDataset, got {type(value).__name__}"
            raise OptionError(f"{name}: {what}.") from None
    dataset: EmbeddingQAFinetuneDataset = value
    contents.check_judged(dataset.queries, dataset.relevant_docs, what=f"{name}: ")
    return dataset
