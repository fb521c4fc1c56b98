"""Dividing the queries at hand in those that train and those that decide when to stop."""

from __future__ import annotations

import warnings

import numpy as np

from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.errors import DatasetError
from llama_index_embeddings_adapted.validation import (
    HeldOut,
    Validation,
    hold_out,
    known_documents,
)

_HELD_OUT_QUERIES = 0.1
_HELD_OUT_DOCUMENTS = 0.1
_SCORES_PER_JUDGEMENT = 1_000_000_000  # of each kind: half a minute on one core, every epoch
_FEWEST_JUDGES = 500
_ENOUGH_NEW = 100  # new-document queries in a validation set that make holding out more needless


def divide(
    data: EncodedDataset, given: EncodedDataset | None, *, expect: float | None, seed: int
) -> tuple[EncodedDataset, Validation]:
    """Decide what to train on and what to validate on."""
    parts: list[HeldOut] = []
    most = _most_held_out(data)
    by_query = min(_HELD_OUT_QUERIES, most) if given is None else 0.0
    by_document = min(_HELD_OUT_DOCUMENTS, most)
    if expect == 1.0 or (
        given is not None and (~known_documents(data, given)).sum() >= _ENOUGH_NEW
    ):
        by_document = 0.0
    refuse_one_vector(data)
    rows, held = hold_out(data, queries=by_query, documents=by_document, seed=seed)
    train = data.take(rows)
    if given is not None:
        parts.append(HeldOut(given, known_documents(train, given)))
    if len(held):
        own = data.take(held)
        parts.append(HeldOut(own, known_documents(train, own)))
    if not len(rows) or not parts:
        raise DatasetError(
            f"Training needs queries to learn from and queries to validate on; "
            f"{len(data.relevance)} leave {len(rows)} and {len(held)}. Add queries, or pass "
            "val_dataset."
        )
    return train, Validation(*parts, expect=expect)


def _most_held_out(data: EncodedDataset) -> float:
    """Return the share of queries worth holding out: judging takes queries times documents."""
    queries = max(_FEWEST_JUDGES, _SCORES_PER_JUDGEMENT // max(1, len(data.documents)))
    return queries / max(1, len(data.relevance))


def refuse_one_vector(data: EncodedDataset) -> None:
    """Refuse a base model that tells no query from another.

    Raises:
        DatasetError: All queries have the same vector.
    """
    if len(data.relevance) > 1 and (data.queries == data.queries[0]).all():
        raise DatasetError(
            f"The base model gives all {len(data.relevance)} queries the same vector. Is it a mock?"
        )


def without_shared_questions(train: EncodedDataset, given: EncodedDataset) -> EncodedDataset:
    """Leave out training queries that are also in the validation set: they would prove nothing."""
    judged = {vector.tobytes() for vector in given.queries}
    own = [row for row, vector in enumerate(train.queries) if vector.tobytes() not in judged]
    shared = len(train.queries) - len(own)
    if shared:
        warnings.warn(
            f"{shared} training queries are also in val_dataset; they are not trained on.",
            stacklevel=5,
        )
    return train.take(np.array(own, dtype=np.int64))
