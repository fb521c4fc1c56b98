"""A corpus into the vector cache, on this machine or on many."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from llama_index.core.base.embeddings.base import BaseEmbedding
from tqdm import tqdm

from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encode import CacheDir, Encoder
from llama_index_embeddings_adapted.errors import EncodeError, OptionError
from llama_index_embeddings_adapted.surviving import Answered
from llama_index_embeddings_adapted.vectors import Role

EXECUTORS = ("local", "ray")
_COMMITTED_LOCALLY = 1024  # texts

Model = BaseEmbedding | Callable[[], BaseEmbedding]


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


class Executor(Protocol):
    """Asks a base model for vectors."""

    def embed(self, texts: Sequence[str]) -> Generator[tuple[Sequence[str], Answered]]:
        """Yield pieces of the texts, in any order, with what became of them."""
        ...


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

    Texts are read a window at a time; those whose vectors are cached, under any id, are passed
    over. This process alone writes, a piece of 1,024 texts at a time, so after an error, an
    interrupt or a kill the same call goes on where it ended. A text on which the base model fails
    does not stop the others; a base model that is exchanged behind its name does, and nothing of
    the piece that was under way is kept.

    With ``executor="ray"`` actors of Ray Data embed, on the cluster of ``ray.init()`` or a local
    one that is started. An actor loads the model once per window. An actor that dies is replaced
    and its piece embedded again, up to three times.

    Args:
        texts: A dataset, of which the corpus is taken; a mapping of id → text; or texts, also from
            a generator.
        embed_model: The base model, or a function without arguments that builds it. Actors build
            their own: they get the function, or else a pickled copy of the model.
        role: ``"document"`` or ``"query"``.
        executor: ``"local"`` or ``"ray"``.
        actors: Ray actors, ``>= 1``; of no effect with ``"local"``.
        batch_size: Texts per call to the model; its ``embed_batch_size`` by default.
        window: Texts in memory at a time.
        on_failure: ``"raise"`` raises after all texts are tried, ``"continue"`` reports them.
        cache_dir: Folder of the vector cache; ``None`` is LlamaIndex's cache folder.
        show_progress: Show a bar.
        ray_options: Of an actor, such as ``{"num_gpus": 1}``; see ``ray.data``'s ``map_batches``.

    Returns:
        Counts, seconds and failures.

    Raises:
        OptionError: An argument out of range, or ``cache_dir=False``.
        EncodeError: Texts failed, and the message counts them; the model is no longer the same; or
            Ray cannot go on. What succeeded before is kept.
        MissingExtraError: ``executor="ray"`` without Ray.
    """
    _check(role, executor, actors, window, on_failure, cache_dir)
    began = time.perf_counter()
    model = embed_model if isinstance(embed_model, BaseEmbedding) else embed_model()
    encoder = Encoder(
        model, batch_size=batch_size, cache_dir=cache_dir, show_progress=show_progress
    )
    try:
        work: Executor = _Local(encoder, role)
        if executor == "ray":
            from llama_index_embeddings_adapted.scaling import RayExecutor

            work = RayExecutor(
                embed_model,
                encoder.fingerprint,
                role,
                actors=actors,
                batch_size=batch_size,
                options=ray_options or {},
            )
        given, embedded, failures = _embedded(
            _texts_of(texts), encoder, work, role, window, show_progress
        )
    finally:
        encoder.close()
    if failures and on_failure == "raise":
        text, reason = next(iter(failures.items()))
        raise EncodeError(
            f"{len(failures):,} of {given:,} texts have no vector (first: {reason}). The others "
            'are kept; call again to try these, or pass on_failure="continue".',
            text=text,
        )
    seconds = time.perf_counter() - began
    used = actors if executor == "ray" else 1
    return EmbeddedCorpus(given, embedded, seconds, executor, used, failures)


class _Local:
    """Asks in this process."""

    def __init__(self, encoder: Encoder, role: Role) -> None:
        self._encoder, self._role = encoder, role

    def embed(self, texts: Sequence[str]) -> Generator[tuple[Sequence[str], Answered]]:
        for start in range(0, len(texts), _COMMITTED_LOCALLY):
            piece = texts[start : start + _COMMITTED_LOCALLY]
            yield piece, self._encoder.embed_surviving(piece, self._role)


def _embedded(
    texts: Iterator[str],
    encoder: Encoder,
    work: Executor,
    role: Role,
    window: int,
    show_progress: bool,
) -> tuple[int, int, dict[str, str]]:
    """Embed what is missing; return texts given, texts embedded and failures."""
    given, embedded = 0, 0
    failures: dict[str, str] = {}
    with tqdm(desc="Embedding a corpus", unit="text", disable=not show_progress) as bar:
        while part := list(itertools.islice(texts, window)):
            given += len(part)
            # Of like length together: batches waste no padding.
            missing = sorted(encoder.missing(part, role), key=len, reverse=True)
            bar.update(len(part) - len(missing))
            with contextlib.closing(work.embed(missing)) as pieces:
                for piece, answered in pieces:
                    encoder.keep([piece[row] for row in answered.rows], role, answered.vectors)
                    embedded += len(answered.rows)
                    failures.update({piece[row]: why for row, why in answered.failures.items()})
                    bar.update(len(piece))
    return given, embedded, failures


def _texts_of(given: Any) -> Iterator[str]:
    if isinstance(given, EmbeddingQAFinetuneDataset):
        given = given.corpus
    if isinstance(given, str):
        raise OptionError("texts: expected a dataset, a mapping or texts, got one string.")
    return iter(given.values() if isinstance(given, Mapping) else given)


def _check(
    role: str, executor: str, actors: int, window: int, on_failure: str, cache_dir: CacheDir
) -> None:
    for name, value, known in (
        ("role", role, ("document", "query")),
        ("executor", executor, EXECUTORS),
        ("on_failure", on_failure, ("raise", "continue")),
    ):
        if value not in known:
            raise OptionError(f"{name}: expected one of {', '.join(known)}, got {value!r}.")
    for name, number in (("actors", actors), ("window", window)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise OptionError(f"{name}: expected a whole number >= 1, got {number!r}.")
    if cache_dir is False:
        raise OptionError(
            "cache_dir: expected a folder or None, got False. The cache is where the vectors go."
        )
