"""A corpus into the vector cache, on this machine or on many.

Ray Data moves texts to actors, which ask the base model, and vectors back, gives the pieces of an
actor that dies to another, and keeps no order; nothing but the caller writes to the cache.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.utils import iter_batch
from tqdm import tqdm

from .. import errors
from ..core.arrays import Role, Rows, Vectors
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..errors import EncodeError, OptionError, require_extra
from .base_model import Fingerprint, check_base
from .cache import CacheDir
from .encoder import Encoder
from .serialize import without_keys

PIECE = 1024  # texts that are kept together; that go to an actor, and come back, at most
_DEATHS = 3  # of actors over one piece, before it is what kills them
_PIECES = 4  # for each actor, at least: none should wait long for the last

Batch = dict[str, Any]
Model = BaseEmbedding | Callable[[], BaseEmbedding]
#: Texts, which of them have a vector, those vectors, and why the others have none, by row.
Pieces = Iterator[tuple[Sequence[str], Rows, Vectors, dict[int, str]]]
Work = Callable[[Sequence[str]], Pieces]


def _on_ray(
    given: tuple[Any, ...], actors: int, options: Mapping[str, Any], texts: Sequence[str]
) -> Pieces:
    """Yield pieces as actors of Ray Data, made of ``given``, finish them."""
    if not texts:
        return
    arrow, data = (require_extra(name, extra="ray") for name in ("pyarrow", "ray.data"))
    size = min(PIECE, -(-len(texts) // (_PIECES * actors)))
    pieces = [range(len(texts))[start : start + size] for start in range(0, len(texts), size)]
    tables = [arrow.table({"row": rows, "text": [texts[row] for row in rows]}) for rows in pieces]
    answers = data.from_arrow(tables).map_batches(
        EmbeddingActor,
        fn_constructor_args=given,
        batch_size=None,
        compute=data.ActorPoolStrategy(size=min(actors, len(tables))),
        **{"max_task_retries": _DEATHS, **options},
    )
    try:
        for batch in answers.iter_batches(batch_size=None, batch_format="numpy"):
            why = [str(reason) for reason in batch["failure"]]
            good = np.array([row for row, reason in enumerate(why) if not reason], dtype=np.int64)
            failures = {row: reason for row, reason in enumerate(why) if reason}
            vectors = np.asarray(batch["vector"], dtype=np.float32)[good]
            yield [texts[row] for row in batch["row"]], good, vectors, failures
    except require_extra("ray.exceptions", extra="ray").RayError as cause:
        last = without_keys(str(cause).strip().splitlines()[-1])
        raise EncodeError(f"Ray cannot go on ({last})", text=texts[0]) from cause


class EmbeddingActor:
    """Lives in a Ray worker with a base model of its own, packed as it is sent."""

    def __init__(
        self, model: bytes, fingerprint: Fingerprint, role: Role, batch_size: int | None
    ) -> None:
        sent = require_extra("ray.cloudpickle", extra="ray").loads(model)
        built = sent if isinstance(sent, BaseEmbedding) else sent()
        self._encoder = Encoder(built, batch_size=batch_size, cache_dir=False, show_progress=False)
        self._role, found = role, self._encoder.fingerprint
        if not found.agrees_with(fingerprint):
            raise errors.BaseModelMismatchError(
                f"The model in the actor, {found.name}, gives other vectors for the probe texts "
                f"than {fingerprint.name} where the work was started (least cosine "
                f"{found.cosine(fingerprint):.4f}). Pass a function that builds the model."
            )

    def __call__(self, batch: Batch) -> Batch:
        """Embed a piece; a text that failed has a reason and zeros."""
        texts = [str(text) for text in batch["text"]]
        rows, found, failures = self._encoder.embed_tolerant(texts, self._role)
        vectors = np.zeros((len(texts), self._encoder.fingerprint.dim), dtype=np.float32)
        vectors[rows] = found
        reasons = [failures.get(row, "") for row in range(len(texts))]
        return {"row": batch["row"], "vector": vectors, "failure": np.array(reasons)}


def packed(model: object) -> bytes:
    """Return a model, or a function, as bytes for another process, or raise an OptionError."""
    try:
        return bytes(require_extra("ray.cloudpickle", extra="ray").dumps(model))
    except (TypeError, AttributeError, pickle.PicklingError) as cause:
        raise OptionError(
            f"{type(model).__name__} cannot be sent to other processes ({cause}). Pass a function "
            "that builds it."
        ) from cause


@dataclass(frozen=True)
class EmbeddedCorpus:
    """What :func:`embed_corpus` did.

    Args:
        texts: Texts given, repeated ones included.
        embedded: Distinct texts that the base model was asked for and answered.
        seconds: Wall time.
        executor: Who asked the base model.
        actors: How many of them; 1 for ``"local"``.
        failures: Text that has no vector → what the base model said.
    """

    texts: int
    embedded: int
    seconds: float
    executor: str
    actors: int
    failures: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def texts_per_second(self) -> float:
        """Texts embedded per second."""
        return self.embedded / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON knows them; of failures the count."""
        return {**asdict(self), "failures": len(self.failures)}


def embed_corpus(
    texts: EmbeddingQAFinetuneDataset | Mapping[str, str] | Iterable[str],
    embed_model: Model,
    *,
    role: Role = "document",
    executor: str = "local",
    actors: int = 2,
    batch_size: int | None = None,
    window: int = 100_000,
    on_failure: str = "raise",
    cache_dir: CacheDir = None,
    show_progress: bool = True,
    ray_options: Mapping[str, Any] | None = None,
) -> EmbeddedCorpus:
    """Put the vectors of a corpus into the cache, from which everything else takes them.

    This process alone writes, 1,024 texts at a time: after an error or a kill the same call goes on
    where it ended. A text on which the model fails does not stop the others. Actors of Ray Data
    embed on the cluster of ``ray.init()``, or a local one; what one dies at is tried again.

    Args:
        texts: A dataset, whose corpus is taken; a mapping of id → text; or texts, of any iterable.
        embed_model: The base model, or a function without arguments that builds it, as actors do.
        role: ``"document"`` or ``"query"``.
        executor: ``"local"`` or ``"ray"``.
        actors: Ray actors, ``>= 1``.
        window: Texts in memory at a time.
        on_failure: ``"raise"`` raises after all texts are tried, ``"continue"`` reports them.
        batch_size, cache_dir, show_progress: See :class:`Encoder`.
        ray_options: Of an actor, such as ``{"num_gpus": 1}``; see ``ray.data``'s ``map_batches``.

    Raises:
        OptionError: An argument out of range, or ``cache_dir=False``.
        DatasetError: A text that is no string; those of windows before it are kept.
        EncodeError: Texts failed, the model has changed, or Ray cannot go on. The rest is kept.
        MissingExtraError: ``executor="ray"`` without Ray.
    """
    _check(texts, role, executor, on_failure, cache_dir, actors=actors, window=window)
    began = time.perf_counter()
    embed_model = embed_model if callable(embed_model) else check_base(embed_model, "embed_model")
    model = embed_model if isinstance(embed_model, BaseEmbedding) else embed_model()
    texts = texts.corpus if isinstance(texts, EmbeddingQAFinetuneDataset) else texts
    settings: Any = {"batch_size": batch_size, "cache_dir": cache_dir}
    with Encoder(model, **settings, show_progress=show_progress) as encoder:
        work: Work = partial(_locally, encoder, role)
        if executor == "ray":  # what cannot be packed is refused before anything is embedded
            known = packed(embed_model), encoder.fingerprint, role, batch_size
            work = partial(_on_ray, known, actors, ray_options or {})
        how = work, role, window, show_progress
        given, embedded, failures = _embedded(_strings(texts), encoder, *how)
    if failures and on_failure == "raise":
        text, reason = next(iter(failures.items()))
        raise EncodeError(
            f"{len(failures):,} of {given:,} texts have no vector (first: {reason}). The others "
            'are kept; call again to try these, or pass on_failure="continue".',
            text=text,
            texts=tuple(failures),
        )
    used, seconds = actors if executor == "ray" else 1, time.perf_counter() - began
    return EmbeddedCorpus(given, embedded, seconds, executor, used, failures)


def _check(
    texts: object, role: str, executor: str, on_failure: str, cache_dir: CacheDir, **sizes: int
) -> None:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        got = "one string" if isinstance(texts, str) else type(texts).__name__
        raise OptionError(f"texts: expected a dataset, a mapping or texts, got {got}.")
    if cache_dir is False:
        why = "The cache is where the vectors go."
        raise OptionError(f"cache_dir: expected a folder or None, got False. {why}")
    errors.check_choice("role", role, ("document", "query"))
    errors.check_choice("executor", executor, ("local", "ray"))
    errors.check_choice("on_failure", on_failure, ("raise", "continue"))
    for name, value in sizes.items():
        errors.check_whole(name, value)


def _strings(texts: Mapping[str, str] | Iterable[str]) -> Iterator[str]:
    """Yield texts; what is no string is a DatasetError that has its id, or its number from 0."""
    for name, text in texts.items() if isinstance(texts, Mapping) else enumerate(texts):
        if not isinstance(text, str):
            got = f"text {name!r} is {type(text).__name__}"
            raise errors.DatasetError(f"texts: expected strings, {got}. Leave it out.")
        yield text


def _locally(encoder: Encoder, role: Role, texts: Sequence[str]) -> Pieces:
    for start in range(0, len(texts), PIECE):
        piece = texts[start : start + PIECE]
        yield piece, *encoder.embed_tolerant(piece, role)


def _embedded(
    texts: Iterator[str], encoder: Encoder, work: Work, role: Role, window: int, shown: bool
) -> tuple[int, int, dict[str, str]]:
    """Embed what is missing; return texts given, texts embedded and failures."""
    given, embedded = 0, 0
    failures: dict[str, str] = {}
    with tqdm(desc="Embedding a corpus", unit="text", disable=not shown) as bar:
        for part in iter_batch(texts, window):
            given += len(part)
            # Of like length together: batches waste no padding.
            missing = sorted(encoder.cache.missing(role, part), key=len, reverse=True)
            bar.update(len(part) - len(missing))
            for piece, rows, vectors, why in work(missing):
                encoder.cache.put(role, [piece[row] for row in rows], vectors)
                embedded += len(rows)
                failures.update({piece[row]: reason for row, reason in why.items()})
                bar.update(len(piece))
    return given, embedded, failures
