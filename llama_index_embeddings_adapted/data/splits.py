"""Which queries train and which judge, without leaks; two datasets put together."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from ..errors import DatasetError, OptionError
from .formats import FLAGS

Query = TypeVar("Query", bound=Hashable)
Document = TypeVar("Document", bound=Hashable)


def normalise(text: str) -> str:
    """Return the text as the leak check compares it: case and white space do not count."""
    return " ".join(text.casefold().split())


def split(
    texts: Mapping[str, str],
    relevant: Mapping[str, Iterable[str]],
    *,
    test_size: float | int,
    by: str,
    seed: int,
) -> tuple[list[str], list[str], int]:
    """Split query ids in train and test; queries of one text stay together.

    Args:
        texts: Query id → normalised text.
        relevant: Query id → ids of its relevant documents.
        test_size: Share in (0, 1) or number of queries.
        by: ``"query"`` or ``"document"``.
        seed: Of the shuffle.

    Returns:
        Train ids and test ids in their given order, and how many queries fit neither part.

    Raises:
        OptionError: An argument out of range.
        DatasetError: A part would be empty.
    """
    wanted = _count(test_size, len(texts))
    if by == "query":
        groups = _group_by_text(texts)
        documents = {text: {text} for text in groups}  # nothing shared: only the text binds
    elif by == "document":
        groups = _group_by_text(texts)
        documents = {t: {d for q in ids for d in relevant[q]} for t, ids in groups.items()}
    else:
        raise OptionError(f'by: expected "query" or "document", got {by!r}.')
    sizes = {text: len(ids) for text, ids in groups.items()}
    test_texts, lost_texts = hold_out_documents(documents, sizes=sizes, wanted=wanted, seed=seed)
    test = {query for text in test_texts for query in groups[text]}
    lost = {query for text in lost_texts for query in groups[text]}
    train = [query for query in texts if query not in test and query not in lost]
    if not train or not test:
        raise DatasetError(
            f"A split by {by} of {len(texts)} queries leaves {len(train)} for training and "
            f"{len(test)} for testing. "
            + (
                'Their documents are shared by too many queries: split by="query" instead.'
                if by == "document"
                else "More distinct queries are needed."
            )
        )
    return train, [query for query in texts if query in test], len(lost)


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


def _group_by_text(texts: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for query, text in texts.items():
        groups[text].append(query)
    return groups


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
