"""The same work on Ray: actors ask the base model, the process that called collects.

Ray Data moves texts to actors and vectors back, gives the pieces of an actor that dies to another,
and keeps no order; nothing but the caller writes to the cache.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.base_model import BaseModelCalls, base_name, fingerprint_of
from llama_index_embeddings_adapted.errors import (
    BaseModelMismatchError,
    EncodeError,
    OptionError,
    need,
)
from llama_index_embeddings_adapted.fingerprint import Fingerprint
from llama_index_embeddings_adapted.redaction import without_keys
from llama_index_embeddings_adapted.surviving import Answered, embed_surviving
from llama_index_embeddings_adapted.vectors import Role

PIECE = 1024  # texts that go to an actor, and come back, together, at most
_DEATHS = 3  # of actors over one piece, before it is what kills them
_PIECES = 4  # for each actor, at least: none should wait long for the last

Batch = dict[str, Any]
Model = BaseEmbedding | Callable[[], BaseEmbedding]


class RayExecutor:
    """Embeds texts with actors of Ray Data.

    Args:
        model: The base model, or a function that builds it.
        fingerprint: Of the base model; an actor whose model has another refuses to work.
        role: Of the texts.
        actors: How many.
        batch_size: Texts per call to the model; its own by default.
        options: Of an actor, such as ``{"num_gpus": 1}``.

    Raises:
        MissingExtraError: Ray is not installed.
        OptionError: The model is an object that cannot be pickled.
    """

    def __init__(
        self,
        model: Model,
        fingerprint: Fingerprint,
        role: Role,
        *,
        actors: int,
        batch_size: int | None,
        options: Mapping[str, Any],
    ) -> None:
        need("ray.data", extra="ray")
        self._arguments = {
            "model": packed(model),
            "fingerprint": fingerprint,
            "role": role,
            "batch_size": batch_size,
        }
        self._actors, self._options = actors, dict(options)

    def embed(self, texts: Sequence[str]) -> Generator[tuple[Sequence[str], Answered]]:
        """Yield pieces as actors finish them.

        Raises:
            EncodeError: The work cannot go on, such as when the model cannot be built in actors.
        """
        if not texts:
            return
        arrow = need("pyarrow", extra="ray")
        tables = [
            arrow.table({"row": range(start, start + len(piece)), "text": piece})
            for start, piece in _pieces(texts, self._actors)
        ]
        for batch in results(
            tables,
            EmbeddingActor,
            self._arguments,
            self._actors,
            error=lambda why: EncodeError(why, text=texts[0]),
            options=self._options,
        ):
            yield _answered(texts, batch)


def results(
    tables: Sequence[Any],
    actor: type[Any],
    arguments: Mapping[str, Any],
    actors: int,
    *,
    error: Callable[[str], Exception],
    options: Mapping[str, Any] | None = None,
) -> Iterator[Batch]:
    """Yield what actors make of Arrow tables, a table at a time, as they finish them.

    Args:
        tables: At least one.
        actor: A class whose objects map a batch to a batch.
        arguments: Of its constructor.
        actors: How many, at most.
        error: Makes the error to raise where Ray cannot go on.
        options: Of an actor; see ``ray.data``'s ``map_batches``.
    """
    data, exceptions = need("ray.data", extra="ray"), need("ray.exceptions", extra="ray")
    answers = data.from_arrow(list(tables)).map_batches(
        actor,
        fn_constructor_kwargs=dict(arguments),
        batch_size=None,
        compute=data.ActorPoolStrategy(size=min(actors, len(tables))),
        **{"max_task_retries": _DEATHS, **(options or {})},
    )
    try:
        yield from answers.iter_batches(batch_size=None, batch_format="numpy")
    except exceptions.RayError as cause:
        last = without_keys(str(cause).strip().splitlines()[-1])
        raise error(f"Ray cannot go on ({last})") from cause


class EmbeddingActor:
    """Lives in a Ray worker with a base model of its own; arguments are those of the executor."""

    def __init__(
        self, model: bytes, fingerprint: Fingerprint, role: Role, batch_size: int | None
    ) -> None:
        self._fingerprint, self._role = fingerprint, role
        built = unpacked(model, BaseEmbedding)
        self._model, self._name = built, base_name(built)
        self._calls = BaseModelCalls(built, batch_size=batch_size)
        found = fingerprint_of(built, self._calls)
        if not found.agrees_with(fingerprint):
            raise BaseModelMismatchError(
                f"The model in the actor, {self._name}, gives other vectors for the probe texts "
                f"than {fingerprint.name} where the work was started (least cosine "
                f"{found.cosine(fingerprint):.4f}). Pass a function that builds the model."
            )

    def __call__(self, batch: Batch) -> Batch:
        """Embed a piece; a text that failed has a reason and zeros."""
        texts = [str(text) for text in batch["text"]]
        answered = embed_surviving(
            self._model,
            self._calls,
            self._role,
            texts,
            fingerprint=self._fingerprint,
            name=self._name,
        )
        vectors = np.zeros((len(texts), self._fingerprint.dim), dtype=np.float32)
        vectors[answered.rows] = answered.vectors
        reasons = [answered.failures.get(row, "") for row in range(len(texts))]
        return {"row": batch["row"], "vector": vectors, "failure": np.array(reasons)}


def packed(value: object) -> bytes:
    """Return an object, or a function, as bytes for another process.

    Raises:
        OptionError: It cannot be pickled.
    """
    try:
        return bytes(need("ray.cloudpickle", extra="ray").dumps(value))
    except (TypeError, AttributeError, pickle.PicklingError) as cause:
        raise OptionError(
            f"{type(value).__name__} cannot be sent to other processes ({cause}). Pass a function "
            "that builds it."
        ) from cause


def unpacked(content: bytes, kind: type[Any]) -> Any:
    """Return the object again; what a function builds, where it was one."""
    value = need("ray.cloudpickle", extra="ray").loads(content)
    return value if isinstance(value, kind) else value()


def _pieces(texts: Sequence[str], actors: int) -> Iterator[tuple[int, Sequence[str]]]:
    size = min(PIECE, -(-len(texts) // (_PIECES * actors)))
    return ((start, texts[start : start + size]) for start in range(0, len(texts), size))


def _answered(texts: Sequence[str], batch: Batch) -> tuple[Sequence[str], Answered]:
    piece = [texts[row] for row in batch["row"]]
    reasons = [str(reason) for reason in batch["failure"]]
    good = np.array([row for row, reason in enumerate(reasons) if not reason], dtype=np.int64)
    failures = {row: reason for row, reason in enumerate(reasons) if reason}
    return piece, Answered(good, np.asarray(batch["vector"], dtype=np.float32)[good], failures)
