"""Batches that survive a text which a model cannot embed: halved until it stands alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.base_model import BaseModelCalls, Embedding, still_is
from llama_index_embeddings_adapted.errors import EncodeError, shorten
from llama_index_embeddings_adapted.fingerprint import PROBE_TEXTS, Fingerprint
from llama_index_embeddings_adapted.redaction import without_keys
from llama_index_embeddings_adapted.vectors import Role, Rows, Vectors

MOST_FAILURES = 8  # texts that fail alone, one after the other, before the rest is not tried
LEAST_CHECKED = 64  # texts below which a look at whether the model is the same is not worth a call


@dataclass(frozen=True, eq=False)
class Answered:
    """What became of some texts.

    Args:
        rows: ``(k,)``, positions of the texts that have a vector.
        vectors: ``(k, dim)``, finite.
        failures: Position of each other text → what its model said.
    """

    rows: Rows
    vectors: Vectors
    failures: dict[int, str]


def checked(answer: Embedding, *, dim: int, name: str, text: str) -> Vectors:
    """Return an answer as a vector, ``(dim,)``.

    Raises:
        EncodeError: Another length, NaN or infinity.
    """
    vector = np.asarray(answer, dtype=np.float32)  # LlamaIndex checked that it is numbers
    if vector.shape != (dim,):
        raise EncodeError(
            f"{name} gave a vector of shape {vector.shape}, expected ({dim},).", text=text
        )
    if not np.isfinite(vector).all():
        raise EncodeError(f"{name} gave a vector with NaN or infinity.", text=text)
    return vector


def exchanged(name: str, count: int) -> EncodeError:
    """Return the error of a model that is another one now than when its texts were embedded."""
    return EncodeError(
        f"{name} was exchanged while it was asked: a probe text has another vector now than "
        f"before. The vectors of the last {count} texts are not kept. Find out what answers under "
        "this name, and run again.",
        text=PROBE_TEXTS[0],
    )


def embed_surviving(
    model: BaseEmbedding,
    calls: BaseModelCalls,
    role: Role,
    texts: Sequence[str],
    *,
    fingerprint: Fingerprint,
    name: str,
) -> Answered:
    """Embed texts, and set aside those that fail.

    After eight in a row that fail alone the rest counts as failed without being tried: then it is
    the model that is broken. A model that still answers is looked at in the end.

    Args:
        model: The base model.
        calls: To it.
        role: Of the texts.
        texts: Any number.
        fingerprint: What the model is known to give.
        name: Of the model, for messages.

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
                    vectors[row] = checked(answer, dim=dim, name=name, text=texts[row])
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
    if worth_it and not still_is(model, calls, role, fingerprint):
        raise exchanged(name, len(rows))
    return Answered(rows, vectors[rows], {row: shorten(why, 300) for row, why in failures.items()})


def _pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))
