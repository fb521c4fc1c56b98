"""What is in a dataset: what it is refused for, what clicks say, its hash, its lengths, its parts.

Every message counts and names what is wrong. No split leaks: queries of one text stay together.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

from ..errors import DatasetError, OptionError, quote_some
from .formats import FLAGS, SOURCES
from .reading import Omissions

Lists = Mapping[str, Sequence[str]]


def check(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Lists,
    grades: object,
    hard_negatives: Any,
    provenance: object,
) -> None:
    """Refuse texts, judgements, grades, hard negatives and sources that do not fit together.

    Raises:
        DatasetError: The first thing found.
    """
    _check_texts("queries", queries)
    _check_texts("corpus", corpus)
    _check_lists("relevant_docs", relevant_docs, queries, corpus)
    _refuse(
        [query for query, docs in relevant_docs.items() if len(set(docs)) < len(docs)],
        "relevant_docs: {} queries name a document twice",
    )
    if grades is not None:
        _check_grades(relevant_docs, grades)
    if hard_negatives is not None:
        _check_lists("hard_negatives", hard_negatives, queries, corpus)
        _check_negatives(relevant_docs, hard_negatives)
    if provenance is not None:
        _check_provenance(queries, provenance)


def check_judged(
    queries: Mapping[str, str], relevant_docs: Lists, *, what: str = "", hint: str = ""
) -> None:
    """Refuse, by a DatasetError, queries without a relevant document."""
    _refuse(
        [query for query in queries if not relevant_docs.get(query)],
        f"{what}{{}} of {len(queries)} queries have no relevant document",
        f"{hint}Drop them with dataset.judged().",
    )


def _refuse(faults: Iterable[object], told: str, advice: str = "") -> None:
    found = list(faults)
    if found:
        first = quote_some(dict.fromkeys(found))
        raise DatasetError(f"{told.format(len(found))} (first: {first}). {advice}".rstrip())


def _check_texts(what: str, texts: object) -> None:
    if not isinstance(texts, Mapping):
        raise DatasetError(f"{what}: expected a dict of id → text, got {type(texts).__name__}.")
    _refuse(
        [k for k, v in texts.items() if not isinstance(k, str) or not isinstance(v, str)],
        f"{what}: expected string ids and string texts; {{}} of {len(texts)} are not",
    )
    _refuse(
        [key for key, text in texts.items() if not text.strip()],
        f"{what}: {{}} of {len(texts)} texts are empty",
        "Drop them, or give them text.",
    )
    if not texts:
        raise DatasetError(f"{what}: expected at least one text, got none.")


def _check_lists(
    what: str, lists: object, queries: Mapping[str, str], corpus: Mapping[str, str]
) -> None:
    if not isinstance(lists, Mapping):
        raise DatasetError(
            f"{what}: expected a dict of query id → list of document ids, "
            f"got {type(lists).__name__}."
        )
    _refuse(
        [query for query, documents in lists.items() if not _are_ids(documents)],
        f"{what}: expected lists of document ids; {{}} of {len(lists)} are not",
    )
    _refuse(
        [query for query in lists if query not in queries],
        f"{what}: {{}} query ids are not in queries",
    )
    _refuse(
        [
            document
            for documents in lists.values()
            for document in documents
            if document not in corpus
        ],
        f"{what}: {{}} document ids are not in the corpus",
        "Add those documents, or drop the ids.",
    )


def _are_ids(documents: object) -> bool:
    listed = isinstance(documents, Sequence) and not isinstance(documents, str)
    return listed and all(isinstance(document, str) for document in documents)  # type: ignore[attr-defined]


def _check_grades(relevant_docs: Lists, grades: object) -> None:
    if not isinstance(grades, Mapping) or not all(isinstance(g, Mapping) for g in grades.values()):
        raise DatasetError("grades: expected a dict of query id → dict of document id → grade.")
    pairs = [(q, d, grade) for q, graded in grades.items() for d, grade in graded.items()]
    _refuse(
        [f"{q} → {d}" for q, d, _ in pairs if d not in relevant_docs.get(q, ())],
        "grades: {} pairs of query and document are not among relevant_docs",
    )
    _refuse(
        [f"{q} → {d}: {grade!r}" for q, d, grade in pairs if not _is_grade(grade)],
        "grades: expected numbers > 0; {} are not",
    )


def _is_grade(grade: object) -> bool:
    number = isinstance(grade, (int, float)) and not isinstance(grade, bool)
    return number and 0 < grade < math.inf  # type: ignore[operator]


def _check_negatives(relevant_docs: Lists, negatives: Lists) -> None:
    _refuse(
        [
            f"{q} → {d}"
            for q, docs in negatives.items()
            for d in docs
            if d in relevant_docs.get(q, ())
        ],
        "hard_negatives: {} pairs of query and document are relevant",
    )


def _check_provenance(queries: Mapping[str, str], provenance: object) -> None:
    if not isinstance(provenance, Mapping):
        raise DatasetError(
            f"provenance: expected a dict of query id → source, got {type(provenance).__name__}."
        )
    _refuse(
        [query for query in provenance if query not in queries],
        "provenance: {} query ids are not in queries",
    )
    _refuse(
        [source for source in provenance.values() if source not in SOURCES],
        f"provenance: expected one of {', '.join(SOURCES)}; {{}} are not",
    )


#: Position from 1, document, and clicks, or a vote below 0.
Shown = tuple[float, str, float]


@dataclass(frozen=True)
class Feedback:
    """How clicks are read.

    Args:
        bias: η: a document at position k is looked at as often as ``1 / k ** bias``; 0 for lists
            that were shuffled.
        most_weight: Of a click, so that a few at the end of a list do not decide.
        min_clicks: Of a query on a document, or skips of it, below which they say nothing.
        least: Share of the weight of a query's best document from which another is relevant.
    """

    bias: float = 1.0
    most_weight: float = 10.0
    min_clicks: int = 2
    least: float = 0.5

    def __post_init__(self) -> None:
        if self.bias < 0 or self.most_weight < 1 or self.min_clicks < 1 or not 0 <= self.least <= 1:
            raise OptionError(
                "feedback: expected bias >= 0, most_weight >= 1, min_clicks >= 1 and least from 0 "
                f"to 1, got {self}."
            )

    def judged(
        self, shown: Mapping[tuple[str, object], Sequence[Shown]], omissions: Omissions
    ) -> Iterator[tuple[str, dict[str, float], list[str]]]:
        """Yield each query with the weights of its relevant documents, and what was passed over."""
        clicks, weights, skips = (
            defaultdict[str, defaultdict[str, float]](lambda: defaultdict(float)) for _ in range(3)
        )
        for (query, _), documents in shown.items():
            deepest = max((place for place, _, votes in documents if votes > 0), default=0.0)
            for place, document, votes in documents:
                if votes > 0:
                    clicks[query][document] += votes
                    weight = min(max(place, 1.0) ** self.bias, self.most_weight)
                    weights[query][document] += votes * weight
                elif votes < 0 or place < deepest:
                    skips[query][document] += 1
        for query in dict.fromkeys(query for query, _ in shown):
            known = {d: w for d, w in weights[query].items() if clicks[query][d] >= self.min_clicks}
            for document in weights[query].keys() - known.keys():
                omissions.add(f"pairs of fewer than {self.min_clicks} clicks", document)
            best = max(known.values(), default=0.0)
            relevant = {d: w / best for d, w in known.items() if w >= self.least * best}
            often = [d for d, n in skips[query].items() if n >= self.min_clicks]
            yield query, relevant, [d for d in often if d not in clicks[query]]


_HASHED_AT_ONCE = 10_000
MOST_MEASURED = 10_000  # texts whose words are counted; beyond, every n-th


def fingerprint(*parts: Mapping[str, Any] | None) -> str:
    """Return a hash of ids, texts and judgements, to tell datasets apart."""
    hashed = hashlib.sha256(b"[")
    for number, part in enumerate(parts):
        hashed.update(b", " if number else b"")
        for piece in _json_pieces(part):
            hashed.update(piece.encode("ascii"))
    hashed.update(b"]")
    return hashed.hexdigest()[:16]


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


def _lengths(texts: list[str]) -> list[float]:
    step = -(-len(texts) // MOST_MEASURED)
    words = [len(text.split()) for text in texts[:: step or 1]]
    return [float(min(words)), float(median(words)), float(max(words))] if words else []


def _question_counts(report: Any) -> dict[str, Any] | None:
    """Return the counts of a report on questions: no question and no passage id."""
    if report is None:
        return None
    found = dict(report if isinstance(report, Mapping) else report.to_dict())
    found.pop("examples", None)
    found["failed"] = len(found.get("failed", ()))
    return found


def data_statistics(dataset: Any) -> dict[str, Any]:
    """Return counts and lengths as JSON knows them, without any text of the dataset.

    Returns:
        ``queries``, ``documents``, ``distinct_documents``, ``judgements``, ``documents_asked_for``,
        ``graded``, ``synthetic``, ``provenance`` (counts), ``query_words`` and ``document_words``
        (least, median, most), and ``questions``: what the filters kept and dropped, None where no
        report is known.
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
        "provenance": dataset.sources,
        "query_words": _lengths(list(dataset.queries.values())),
        "document_words": _lengths(list(dataset.corpus.values())),
        "questions": _question_counts(dataset.report),
    }


# --- parts ----------------------------------------------------------------------------------------

Query = TypeVar("Query", bound=Hashable)
Document = TypeVar("Document", bound=Hashable)


def split(
    dataset: Any, relevant: Mapping[str, Iterable[str]], test_size: float, *, by: str, seed: int
) -> tuple[Any, Any]:
    """Split a dataset in train and test; warn of queries that fit neither part.

    Args:
        dataset: An ``EmbeddingQAFinetuneDataset``.
        relevant: Query id → what no query of the other part may ask for.
        test_size: Share in (0, 1) or number of queries.
        by: ``"query"`` or ``"document"``.
        seed: Of the shuffle.

    Raises:
        OptionError: An argument out of range.
        DatasetError: A part would be empty.
    """
    count = len(dataset.queries)
    wanted = _count(test_size, count)
    if by not in ("query", "document"):
        raise OptionError(f'by: expected "query" or "document", got {by!r}.')
    groups: dict[str, list[str]] = defaultdict(list)
    for query, text in dataset.queries.items():  # case and white space do not count
        groups[" ".join(text.casefold().split())].append(query)
    documents = {
        text: {text} if by == "query" else {d for q in ids for d in relevant[q]}
        for text, ids in groups.items()
    }
    sizes = {text: len(ids) for text, ids in groups.items()}
    chosen = hold_out_documents(documents, sizes=sizes, wanted=wanted, seed=seed)
    test, lost = ({query for text in texts for query in groups[text]} for texts in chosen)
    train = [query for query in dataset.queries if query not in test and query not in lost]
    if not train or not test:
        shared = 'Their documents are shared by too many queries: split by="query" instead.'
        raise DatasetError(
            f"A split by {by} of {count} queries leaves {len(train)} for training and "
            f"{len(test)} for testing. "
            + (shared if by == "document" else "More distinct queries are needed.")
        )
    if lost:
        warnings.warn(
            f"{len(lost)} of {count} queries ask for documents of both parts and were dropped.",
            stacklevel=3,
        )
    return dataset.subset(train), dataset.subset([q for q in dataset.queries if q in test])


def hold_out_documents(
    documents: Mapping[Query, set[Document]],
    *,
    sizes: Mapping[Query, int] | None = None,
    wanted: int,
    seed: int,
) -> tuple[set[Query], set[Query]]:
    """Choose queries whose documents no other query will train on.

    Queries are visited in random order. Taking one also takes every query whose documents are
    all held out by then; a query with documents on both sides is lost to either part. The walk
    stops once ``wanted`` queries are taken.

    Args:
        documents: Query → its relevant documents.
        sizes: Query → how many it counts for, 1 by default.
        wanted: How many queries to hold out, about.
        seed: Of the walk.

    Returns:
        Queries held out, and queries lost.
    """
    askers: dict[Document, list[Query]] = defaultdict(list)
    for query, wants in documents.items():
        for document in wants:
            askers[document].append(query)
    order = sorted(documents, key=str)
    random.Random(seed).shuffle(order)
    held: set[Document] = set()
    touched: dict[Query, int] = defaultdict(int)
    taken: set[Query] = set()
    count = 0
    for query in order:
        if count >= wanted:
            break
        for document in documents[query] - held:
            held.add(document)
            for asker in askers[document]:
                touched[asker] += 1
                if touched[asker] == len(documents[asker]):
                    taken.add(asker)
                    count += sizes[asker] if sizes else 1
    return taken, {query for query in touched if query not in taken}


def _count(test_size: float | int, total: int) -> int:
    valid = (
        0 < test_size < 1 if isinstance(test_size, float) else 1 <= test_size < total
    ) and not isinstance(test_size, bool)
    if not valid:
        raise OptionError(
            f"test_size: expected a share between 0 and 1 or a number between 1 and {total - 1}, "
            f"got {test_size!r}."
        )
    return max(1, round(test_size * total)) if isinstance(test_size, float) else int(test_size)


#: Fields of a dataset that are dicts by query, beside the queries.
PER_QUERY = ("relevant_docs", "grades", "hard_negatives", "provenance")


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataset of both; see ``EmbeddingQAFinetuneDataset.merged``.

    Raises:
        DatasetError: A document id stands for two texts.
    """
    clash = [d for d, text in second["corpus"].items() if first["corpus"].get(d, text) != text]
    if clash:
        raise DatasetError(
            f"{len(clash)} document ids stand for different texts in the two datasets "
            f"(first: {clash[0]!r})."
        )
    queries = dict(first["queries"])
    parts = {name: dict(first[name] or {}) for name in PER_QUERY}
    for query, text in second["queries"].items():
        name, judged = query, (text, second["relevant_docs"][query])
        while name in queries and judged != (queries[name], parts["relevant_docs"][name]):
            name += "'"  # nobody else's id
        queries[name] = text
        for field, part in parts.items():
            if query in (second[field] or {}):
                part[name] = second[field][query]
    corpus = {**first["corpus"], **second["corpus"]}
    optional = {name: part or None for name, part in parts.items()}
    flags = {name: first[name] for name in FLAGS}
    return {"queries": queries, "corpus": corpus, **optional, **flags}


def kept_of(by_query: Mapping[str, Any] | None, corpus: Mapping[str, str]) -> dict[str, Any] | None:
    """Return lists or dicts by document without the documents that are gone."""
    if by_query is None:
        return None
    return {
        query: {d: own[d] for d in own if d in corpus}
        if isinstance(own, Mapping)
        else [d for d in own if d in corpus]
        for query, own in by_query.items()
    }
