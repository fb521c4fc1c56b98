"""What a dataset is refused for; every message counts and names what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llama_index_embeddings_adapted.errors import DatasetError, examples, shorten


def check(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Mapping[str, Sequence[str]],
    grades: object,
    hard_negatives: object,
) -> None:
    """Refuse texts, judgements, grades and hard negatives that do not fit together.

    Raises:
        DatasetError: The first thing found.
    """
    _check_texts("queries", queries)
    _check_texts("corpus", corpus)
    _check_relevance(queries, corpus, relevant_docs)
    _check_grades(relevant_docs, grades)
    _check_negatives(queries, corpus, relevant_docs, hard_negatives)


def check_judged(queries: Mapping[str, str], relevant_docs: Mapping[str, Sequence[str]]) -> None:
    """Refuse queries without a relevant document.

    Raises:
        DatasetError: There are some.
    """
    unjudged = [query for query in queries if not relevant_docs.get(query)]
    if unjudged:
        raise DatasetError(
            f"{len(unjudged)} of {len(queries)} queries have no relevant document "
            f"(first: {examples(unjudged)}). Read the data with allow_unjudged=True and drop them "
            "with dataset.judged()."
        )


def _check_texts(what: str, texts: object) -> None:
    if not isinstance(texts, Mapping):
        raise DatasetError(f"{what}: expected a dict of id → text, got {type(texts).__name__}.")
    odd = [k for k, v in texts.items() if not isinstance(k, str) or not isinstance(v, str)]
    if odd:
        raise DatasetError(
            f"{what}: expected string ids and string texts; {len(odd)} of {len(texts)} are not "
            f"(first: {examples(odd)})."
        )
    empty = [key for key, text in texts.items() if not text.strip()]
    if empty:
        raise DatasetError(
            f"{what}: {len(empty)} of {len(texts)} texts are empty (first: {examples(empty)}). "
            "Drop them, or give them text."
        )
    if not texts:
        raise DatasetError(f"{what}: expected at least one text, got none.")


def _check_relevance(
    queries: Mapping[str, str], corpus: Mapping[str, str], relevant_docs: object
) -> None:
    if not isinstance(relevant_docs, Mapping):
        raise DatasetError(
            "relevant_docs: expected a dict of query id → list of document ids, "
            f"got {type(relevant_docs).__name__}."
        )
    odd = [
        query
        for query, docs in relevant_docs.items()
        if isinstance(docs, str)
        or not isinstance(docs, Sequence)
        or not all(isinstance(doc, str) for doc in docs)
    ]
    if odd:
        raise DatasetError(
            f"relevant_docs: expected lists of document ids; {len(odd)} of {len(relevant_docs)} "
            f"are not (first: {examples(odd)})."
        )
    strangers = [query for query in relevant_docs if query not in queries]
    if strangers:
        raise DatasetError(
            f"relevant_docs: {len(strangers)} query ids are not in queries "
            f"(first: {examples(strangers)})."
        )
    unknown = [doc for docs in relevant_docs.values() for doc in docs if doc not in corpus]
    if unknown:
        raise DatasetError(
            f"relevant_docs: {len(unknown)} document ids are not in the corpus "
            f"(first: {examples(dict.fromkeys(unknown))}). Add those documents, or drop the ids."
        )
    twice = [query for query, docs in relevant_docs.items() if len(set(docs)) < len(docs)]
    if twice:
        raise DatasetError(
            f"relevant_docs: {len(twice)} queries name a document twice (first: {examples(twice)})."
        )


def _check_grades(relevant_docs: Mapping[str, Sequence[str]], grades: object) -> None:
    if grades is None:
        return
    if not isinstance(grades, Mapping) or not all(isinstance(g, Mapping) for g in grades.values()):
        raise DatasetError("grades: expected a dict of query id → dict of document id → grade.")
    for query, by_document in grades.items():
        for document, grade in by_document.items():
            if document not in relevant_docs.get(query, ()):
                raise DatasetError(
                    f"grades: query {examples([query])} grades document {examples([document])}, "
                    "which is not among its relevant_docs."
                )
            if (
                isinstance(grade, bool)
                or not isinstance(grade, (int, float))
                or not (0 < grade < math.inf)
            ):
                raise DatasetError(
                    f'grades: query "{shorten(query)}", document "{shorten(document)}": expected a '
                    f"number > 0, got {shorten(repr(grade))}."
                )


def _check_negatives(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Mapping[str, Sequence[str]],
    negatives: object,
) -> None:
    if negatives is None:
        return
    if not isinstance(negatives, Mapping):
        raise DatasetError("hard_negatives: expected a dict of query id → list of document ids.")
    for query, documents in negatives.items():
        if not isinstance(documents, (list, tuple)) or not all(
            isinstance(document, str) for document in documents
        ):
            raise DatasetError(
                "hard_negatives: expected lists of document ids; that of query "
                f"{examples([query])} is not."
            )
        unknown = [document for document in documents if document not in corpus]
        if query not in queries or unknown:
            raise DatasetError(
                f"hard_negatives: query {examples([query])} or its documents are not in the "
                f"dataset ({examples(unknown) or 'the query'})."
            )
        relevant = [document for document in documents if document in relevant_docs.get(query, ())]
        if relevant:
            raise DatasetError(
                f"hard_negatives: query {examples([query])} names {examples(relevant[:1])}, which "
                "is relevant to it."
            )
