"""Fitting the gate: which queries ask for documents that training knows."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.folds import folds
from llama_index_embeddings_adapted.gate import FEATURES, Features, Gate
from llama_index_embeddings_adapted.vectors import Rows, Vectors, unit

_MOST_QUERIES = 4096
_MOST_DOCUMENTS = 2048  # with training queries, and as many without
_REGULARISATION = 1.0
# scikit-learn sets the warning filters of the whole process while it checks its input, and puts
# back those it found: out of turn, other threads would leave theirs.
_one_at_a_time = threading.Lock()


def fit_gate(train: EncodedDataset, *, seed: int = 0) -> Gate:
    """Learn to tell queries about documents with training queries from queries about others.

    The gate learns from folds of the training set: a query held out alone is about a known
    document, one held out with its documents about a new one. It compares base vectors only, so
    no map has to be trained for it. Both kinds weigh the same; shift the result by the log odds of
    the share of live queries about known documents with :meth:`Gate.with_odds`.

    Args:
        train: What the maps behind the gate are trained on.
        seed: Of the folds, and of the sample where there are more queries (4,096) or documents
            (2,048 with and 2,048 without training queries) than a gate carries.
    """
    features, known = [], []
    for fold in folds(train, seed=seed):
        features.append(Gate(**_memory(fold.train, seed)).features(unit(fold.judged.queries)))
        known.append(fold.judged.known)
    seen = np.concatenate(features)
    return Gate(
        **{
            **_memory(train, seed),
            "coefficients": _logistic(seen, np.concatenate(known)),
            "low": seen.min(axis=0),
            "high": seen.max(axis=0),
        }
    )


def _memory(train: EncodedDataset, seed: int) -> dict[str, Vectors]:
    """Return what a gate remembers of a training set, with coefficients of zero."""
    random = np.random.default_rng(seed)
    asked = np.unique(train.twins[train.relevance.documents])
    others = np.setdiff1d(np.unique(train.twins), asked)
    documents = unit(train.documents)
    kept_asked, share_asked = _sample(asked, _MOST_DOCUMENTS, random)
    kept_others, share_others = _sample(others, _MOST_DOCUMENTS, random)
    kept_queries, _ = _sample(np.arange(len(train.queries)), _MOST_QUERIES, random)
    zero = np.zeros(len(FEATURES) + 1, dtype=np.float32)
    return {
        "queries": unit(train.queries[kept_queries]),
        "asked": documents[kept_asked],
        "others": documents[kept_others],
        "shares": np.array([share_asked, share_others], dtype=np.float32),
        "coefficients": zero,
        "low": zero[1:],
        "high": zero[1:],
    }


def _sample(rows: Rows, most: int, random: np.random.Generator) -> tuple[Rows, float]:
    if len(rows) <= most:
        return rows, 1.0
    return np.sort(random.choice(rows, size=most, replace=False)), most / len(rows)


def _logistic(features: Features, known: NDArray[np.bool_]) -> Vectors:
    """Return coefficients of a logistic regression with both classes weighing the same."""
    from sklearn.linear_model import LogisticRegression  # a second to import

    zero = np.zeros(len(FEATURES) + 1, dtype=np.float32)
    if known.all() or not known.any():
        return zero  # nothing to tell apart: one half for every query
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 1e-6, deviation, 1.0)
    model = LogisticRegression(C=_REGULARISATION, class_weight="balanced", max_iter=1000)
    with _one_at_a_time:
        model.fit((features - mean) / deviation, known)
    slopes = model.coef_[0] / deviation
    return np.append(slopes, model.intercept_[0] - slopes @ mean).astype(np.float32)
