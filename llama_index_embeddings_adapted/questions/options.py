"""How questions are written and judged; every value is checked before anything is paid for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM

from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import OptionError, check_known, check_whole
from .filters import TEXT_FILTERS, Filter
from .llm import RetryPolicy
from .local_llama import LocalLlama
from .passages import examples_of, fitted, labels_of
from .prompts import STYLES, Example, PromptConfig

_WITH_EXAMPLES = {"round_trip_k": 50, "generic_matches": 100}


@dataclass(frozen=True)
class GenerationOptions:
    """How to write and judge questions; every field is checked on construction.

    Args:
        max_chunks: Ask about this many passages only, drawn evenly from the source documents; None
            for all.
        seed: Of that choice.
        examples: Queries as your users ask them, 3 to 30, and the passages that answer them:
            questions are written and judged in their likeness, and they replace the styles. A
            dataset (of a larger one, eight are drawn), the path of a file, records, or queries
            alone, a list or a text file of lines: then the base model's nearest passage stands in.
        labels: What stands before the passage and the query of an example, such as ``("Abstract",
            "Claim")``; None guesses.
        completion: Show examples as a text to go on with instead of chat turns; None: where the
            model does not chat, or is a :class:`LocalLlama` of a few hundred million weights.
        styles: Kinds of questions, names from
            :data:`STYLES`, mixed over passages. A custom
            prompt decides for itself.
        questions_per_call: How many questions to ask for at once; None for all of a passage's.
            Small models (a few hundred million weights) need 1.
        max_passage_tokens: Send at most this much of a passage, about. The LLM's context and the
            ``max_length`` of ``embed_model``, where it has one, limit it anyway: what is not
            embedded should not be asked about.
        embed_model: The base model, for the filters ``generic`` and ``round_trip``, which are left
            out without it.
        filters: Judge the text of each question. One that objects to over a quarter of the
            examples is left out.
        near_duplicate: Questions that share this share of their words, in (0, 1], are one.
        generic_matches: Drop questions for which more than this many other passages reach 90 % of
            the cosine of their own, 100 with examples; None to keep them.
        round_trip_k: Drop questions whose passage is not among the first so many of the base
            model, 50 with examples; None to keep them. Keep it loose: a strict one leaves only
            what the base model already finds.
        concurrency: Calls under way at once.
        requests_per_minute: None for as many as the server takes. A ``rate_limiter`` of the LLM
            applies besides.
        timeout_s: After which a call counts as failed; None for never.
        cache_dir: Where answers and vectors are kept; ``None`` is LlamaIndex's cache folder,
            ``False`` keeps them in memory only, and an interrupted run starts again.
        show_progress: Show bars with an estimate.

    Raises:
        OptionError: A value outside its range.
    """

    max_chunks: int | None = None
    seed: int = 0
    examples: Any = None
    labels: tuple[str, str] | None = None
    completion: bool | None = None
    styles: Sequence[str] = tuple(STYLES)
    questions_per_call: int | None = None
    max_passage_tokens: int | None = None
    embed_model: BaseEmbedding | None = None
    filters: Sequence[Filter] = TEXT_FILTERS
    near_duplicate: float = 0.8
    generic_matches: int | None = 20
    round_trip_k: int | None = 20
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout_s: float | None = 300.0
    cache_dir: CacheDir = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        for name in ("max_chunks", "max_passage_tokens", "generic_matches", "round_trip_k"):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value)
        if not 0.0 < self.near_duplicate <= 1.0:
            raise OptionError(
                f"near_duplicate: expected a share in (0, 1], got {self.near_duplicate!r}."
            )
        if isinstance(self.styles, str):
            raise OptionError(f"styles: expected a list of names, got {self.styles!r}.")
        if self.embed_model is not None:
            object.__setattr__(self, "embed_model", check_base(self.embed_model, "embed_model"))
        odd = [each for each in self.filters if not callable(each)]
        if odd:
            raise OptionError(f"filters: expected functions of a Candidate, got {odd[0]!r}.")
        self.policy(attempts=1)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationOptions:
        """Build from keyword arguments, or raise an OptionError."""
        if {"executor", "actors"} & set(options):
            warnings.warn(
                "executor and actors have no effect any more: an LLM is bound by the network, and "
                "one process asks as fast as many. Raise concurrency instead.",
                DeprecationWarning,
                stacklevel=4,
            )
            options = {k: v for k, v in options.items() if k not in ("executor", "actors")}
        check_known(options, (field.name for field in fields(cls)), what="Generation")
        loose = _WITH_EXAMPLES if options.get("examples") is not None else {}
        return cls(**{**loose, **options})

    def shown(self, corpus: Mapping[str, str]) -> tuple[Example, ...]:
        """Return the examples, with passages of the corpus where none are known."""
        encoder = None if self.embed_model is None else self.encoder
        return examples_of(self.examples, corpus, encoder, seed=self.seed)

    def prompts(
        self, questions: int, template: Any | None, examples: tuple[Example, ...], llm: LLM
    ) -> PromptConfig:
        """Return what is asked about each passage; examples that do not fit are left out."""
        completes = self.completion
        if completes is None and examples:
            small = isinstance(llm, LocalLlama) and llm.is_small
            completes = small or not llm.metadata.is_chat_model
        asked = (questions, tuple(self.styles), self.questions_per_call, template, examples)
        labels = self.labels or labels_of(examples)
        return fitted(PromptConfig(*asked, labels, bool(completes)), llm.metadata)

    def encoder(self) -> Encoder:
        """Open the base model, which must be given."""
        assert self.embed_model is not None
        return Encoder(self.embed_model, cache_dir=self.cache_dir, show_progress=self.show_progress)

    def policy(self, *, attempts: int) -> RetryPolicy:
        """Return how hard to try."""
        return RetryPolicy(attempts, self.concurrency, self.requests_per_minute, self.timeout_s)
