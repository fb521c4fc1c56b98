"""What is in a dataset: what it is refused for, its lengths, its parts.

Every message counts and names what is wrong. No split leaks: queries of one text stay together.
"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from itertools import islice
from numbers import Integral, Real
from statistics import median
from typing import Any, TypeVar

from ..core.arrays import alike
from ..errors import DatasetError, OptionError, check_choice, check_whole, quote_some
from .formats import FLAGS, SOURCES

Lists = Mapping[str, Sequence[str]]
MOST_MEASURED = 10_000  # texts whose words are counted; beyond, every n-th
Query = TypeVar("Query", bound=Hashable)
Document = TypeVar("Document", bound=Hashable)

#: Fields of a dataset that are dicts by query, beside the queries.
PER_QUERY = ("relevant_docs", "grades", "hard_negatives", "provenance")


def check(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Lists,
    grades: Any,
    hard_negatives: Any,
    provenance: Any,
) -> None:
    """Refuse, by a DatasetError, parts of a dataset that do not fit together."""
    _check_texts("queries", queries)
    _check_texts("corpus", corpus)
    _check_lists("relevant_docs", relevant_docs, queries, corpus)
    repeated = [query for query, docs in relevant_docs.items() if len(set(docs)) < len(docs)]
    _refuse(repeated, "relevant_docs: {} queries name a document twice")
    if grades is not None:
        _check_dict("grades", grades, "query id → dict of document id → grade")
        for query, graded in grades.items():
            _check_dict(f"grades of {query}", graded, "document id → grade")
        pairs = [(query, d, grade) for query, own in grades.items() for d, grade in own.items()]
        other = [f"{query} → {d}" for query, d, _ in pairs if d not in relevant_docs.get(query, ())]
        _refuse(other, "grades: {} pairs of query and document are not among relevant_docs")
        odd = [f"{query} → {d}: {grade!r}" for query, d, grade in pairs if not _is_grade(grade)]
        _refuse(odd, "grades: expected numbers > 0; {} are not")
    if hard_negatives is not None:
        _check_lists("hard_negatives", hard_negatives, queries, corpus)
        negative = [(query, d) for query, docs in hard_negatives.items() for d in docs]
        wrong = [f"{query} → {d}" for query, d in negative if d in relevant_docs.get(query, ())]
        _refuse(wrong, "hard_negatives: {} pairs of query and document are relevant")
    if provenance is not None:
        _check_dict("provenance", provenance, "query id → source")
        strange = [query for query in provenance if query not in queries]
        _refuse(strange, "provenance: {} query ids are not in queries")
        unknown = [str(source) for source in provenance.values() if source not in SOURCES]
        _refuse(unknown, f"provenance: expected one of {', '.join(SOURCES)}; {{}} are not")


def check_judged(
    queries: Mapping[str, str], relevant_docs: Lists, *, what: str = "", hint: str = ""
) -> None:
    """Refuse, by a DatasetError, queries without a relevant document."""
    unjudged = [query for query in queries if not relevant_docs.get(query)]
    told = f"{what}{{}} of {len(queries)} queries have no relevant document"
    _refuse(unjudged, told, f"{hint}Drop them with dataset.judged().")


def _refuse(faults: Sequence[object], told: str, advice: str = "") -> None:
    if faults:
        first = quote_some(dict.fromkeys(faults))
        raise DatasetError(f"{told.format(len(faults))} (first: {first}). {advice}".rstrip())


def _check_dict(what: str, value: object, held: str) -> None:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{what}: expected a dict of {held}, got {type(value).__name__}.")


def _check_texts(what: str, texts: Mapping[str, str]) -> None:
    _check_dict(what, texts, "id → text")
    odd = [k for k, v in texts.items() if not isinstance(k, str) or not isinstance(v, str)]
    _refuse(odd, f"{what}: expected string ids and string texts; {{}} of {len(texts)} are not")
    empty = [key for key, text in texts.items() if not text.strip()]
    _refuse(empty, f"{what}: {{}} of {len(texts)} texts are empty", "Drop them, or give them text.")
    if not texts:
        raise DatasetError(f"{what}: expected at least one text, got none.")


def _check_lists(
    what: str, lists: Lists, queries: Mapping[str, str], corpus: Mapping[str, str]
) -> None:
    _check_dict(what, lists, "query id → list of document ids")
    odd = [query for query, documents in lists.items() if not _are_ids(documents)]
    _refuse(odd, f"{what}: expected lists of document ids; {{}} of {len(lists)} are not")
    strange = [query for query in lists if query not in queries]
    _refuse(strange, f"{what}: {{}} query ids are not in queries")
    unknown = [document for own in lists.values() for document in own if document not in corpus]
    told = f"{what}: {{}} document ids are not in the corpus"
    _refuse(unknown, told, "Add those documents, or drop the ids.")


def _are_ids(documents: object) -> bool:
    listed = isinstance(documents, Sequence) and not isinstance(documents, str)
    return listed and all(isinstance(document, str) for document in documents)  # type: ignore[attr-defined]


def _is_grade(grade: object) -> bool:
    number = isinstance(grade, Real) and not isinstance(grade, bool)
    return number and 0 < grade < math.inf  # type: ignore[operator]


def _lengths(texts: Mapping[str, str]) -> list[float]:
    step = -(-len(texts) // MOST_MEASURED)
    words = [len(text.split()) for text in islice(texts.values(), 0, None, step or 1)]
    return [float(each(words)) for each in (min, median, max)] if words else []


def data_statistics(dataset: Any) -> dict[str, Any]:
    """Return counts and lengths as JSON knows them, without any text of the dataset.

    ``query_words`` and ``document_words`` are least, median and most; ``questions`` is what the
    filters kept and dropped, None where no report is known.
    """
    report, questions = dataset.report, None
    if report is not None:  # its counts: no question, no example of users and no passage id
        told = report if isinstance(report, Mapping) else report.to_dict()
        questions = {key: told[key] for key in told if key not in ("examples", "shown")}
        questions["failed"] = len(questions.get("failed", ()))
    return {
        "queries": len(dataset.queries),
        "documents": len(dataset.corpus),
        "distinct_documents": len(set(dataset.corpus.values())),
        "judgements": sum(map(len, dataset.relevant_docs.values())),
        "documents_asked_for": len(set().union(*dataset.relevant_docs.values())),
        "graded": dataset.grades is not None,
        "synthetic": dataset.synthetic,
        "provenance": dataset.sources,
        "query_words": _lengths(dataset.queries),
        "document_words": _lengths(dataset.corpus),
        "questions": questions,
    }


def split(
    dataset: Any, relevant: Mapping[str, Iterable[str]], test_size: float, *, by: str, seed: int
) -> tuple[Any, Any]:
    """Split as ``train_test_split`` does; no query of the other part asks for ``relevant``."""
    count = len(dataset.queries)
    is_share = not isinstance(test_size, Integral)
    check_whole("seed", seed, least=0)
    is_number = isinstance(test_size, Real) and not isinstance(test_size, bool)
    if not is_number or not (0 < test_size < 1 if is_share else 1 <= test_size < count):
        raise OptionError(
            f"test_size: expected a share between 0 and 1 or a number between 1 and {count - 1}, "
            f"got {test_size!r}."
        )
    wanted = max(1, round(test_size * count)) if is_share else int(test_size)
    check_choice("by", by, ("query", "document"))
    groups: dict[str, list[str]] = defaultdict(list)
    for query, text in dataset.queries.items():
        groups[alike(text)].append(query)
    documents = {
        text: {text} if by == "query" else {d for q in ids for d in relevant[q]}
        for text, ids in groups.items()
    }
    sizes = {text: len(ids) for text, ids in groups.items()}
    chosen = hold_out_documents(documents, sizes=sizes, wanted=wanted, seed=seed)
    test, lost = ({query for text in texts for query in groups[text]} for texts in chosen)
    train = [query for query in dataset.queries if query not in test and query not in lost]
    if not train or not test:
        raise DatasetError(
            f"A split by {by} of {count} queries, {wanted} of them to test on, leaves {len(train)} "
            f"for training and {len(test)} for testing. {_way_out(documents, seed)}"
        )
    if lost:
        told = "queries ask for documents of both parts and were dropped"
        warnings.warn(f"{len(lost)} of {count} {told}.", stacklevel=3)
    return dataset.subset(train), dataset.subset([q for q in dataset.queries if q in test])


def _way_out(documents: Mapping[str, set[str]], seed: int) -> str:
    """Return why a part of a split is empty: it may be, whatever is held out, or too much is."""
    if len(documents) == 1:
        return "More distinct queries are needed."
    taken, lost = hold_out_documents(documents, wanted=1, seed=seed)
    if taken and len(taken) + len(lost) < len(documents):
        return "Choose a smaller part to test on."
    why = "Their documents are shared by too many queries" if taken else "They ask for no document"
    return f'{why}: split by="query" instead.'


def hold_out_documents(
    documents: Mapping[Query, set[Document]],
    *,
    sizes: Mapping[Query, int] | None = None,
    wanted: int,
    seed: int,
) -> tuple[set[Query], set[Query]]:
    """Choose queries whose documents no other query will train on; return them, and those lost.

    Queries are visited in random order. Taking one also takes every query whose documents are
    all held out by then; a query with documents on both sides is lost to either part. The walk
    stops once ``wanted`` queries are taken, of which each counts for its size, by default 1.
    """
    askers = defaultdict[Document, list[Query]](list)
    for query, wants in documents.items():
        for document in wants:
            askers[document].append(query)
    order = sorted(documents, key=str)
    random.Random(int(seed)).shuffle(order)
    held, touched, taken, count = set[Document](), Counter[Query](), set[Query](), 0
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
    return taken, touched.keys() - taken


def as_lists(
    relevant: Any, grades: Mapping[str, Mapping[str, float]] | None
) -> tuple[Any, Mapping[str, Mapping[str, float]] | None]:
    """Return relevance as lists, and the grades, where sets or dicts of grades were given."""
    if not isinstance(relevant, Mapping):
        return relevant, grades
    given = {q: docs for q, docs in relevant.items() if isinstance(docs, Mapping)}
    graded = {q: {d: g for d, g in docs.items() if g > 0} for q, docs in given.items()}
    lists = {
        q: list(graded[q]) if q in graded else sorted(docs) if isinstance(docs, Set) else docs
        for q, docs in relevant.items()
    }
    return lists, {**graded, **(grades or {})} if graded else grades


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataset of both; see ``EmbeddingQAFinetuneDataset.merged``."""
    clash = [d for d, text in second["corpus"].items() if first["corpus"].get(d, text) != text]
    _refuse(clash, "{} document ids stand for different texts in the two datasets")
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
    found: dict[str, Any] = {}
    for query, own in (by_query or {}).items():
        kept = [document for document in own if document in corpus]
        found[query] = {d: own[d] for d in kept} if isinstance(own, Mapping) else kept
    return found if by_query is not None else None
