"""From everything that was written to what is kept: the filters, in order, each drop counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from llama_index_embeddings_adapted.candidates import Candidate
from llama_index_embeddings_adapted.near_duplicates import near_duplicates
from llama_index_embeddings_adapted.question_options import GenerationOptions
from llama_index_embeddings_adapted.question_report import BaseCost, Dropped
from llama_index_embeddings_adapted.round_trip import round_trip


def select(
    candidates: Sequence[Candidate],
    corpus: Mapping[str, str],
    options: GenerationOptions,
    *,
    most: int,
) -> tuple[list[Candidate], list[Dropped], BaseCost]:
    """Apply the text filters, then near-duplicates, then what the base model says.

    Args:
        candidates: In order of precedence.
        corpus: Document id → text, all documents to search in.
        options: Which filters, and how strict.
        most: Questions kept per document; an LLM that writes more than it was asked for is cut
            short.

    Returns:
        What is kept, in order, what is dropped, and what was asked of the base model.
    """
    kept, dropped = by_text(candidates, options)
    kept = _without(kept, _beyond(kept, most), dropped)
    repeats = near_duplicates([c.text for c in kept], threshold=options.near_duplicate)
    kept = _without(kept, dict.fromkeys(repeats, "near_duplicate"), dropped)
    if options.embed_model is None or not kept:
        return kept, dropped, BaseCost()
    found = round_trip(
        kept,
        corpus,
        options.embed_model,
        cache_dir=options.cache_dir,
        show_progress=options.show_progress,
    )
    reasons: dict[int, str] = {}
    for row, (rank, rivals) in enumerate(zip(found.ranks, found.rivals, strict=True)):
        if options.generic_matches is not None and rivals > options.generic_matches:
            reasons[row] = "generic"
        elif options.round_trip_k is not None and rank >= options.round_trip_k:
            reasons[row] = "round_trip"
    return _without(kept, reasons, dropped), dropped, found.cost


def by_text(
    candidates: Sequence[Candidate], options: GenerationOptions
) -> tuple[list[Candidate], list[Dropped]]:
    """Apply the text filters; the first that objects is the reason."""
    kept: list[Candidate] = []
    dropped: list[Dropped] = []
    for candidate in candidates:
        reason = next((f.__name__ for f in options.filters if f(candidate)), None)
        if reason is None:
            kept.append(candidate)
        else:
            dropped.append(Dropped(candidate, reason))
    return kept, dropped


def _beyond(kept: Sequence[Candidate], most: int) -> dict[int, str]:
    count: Counter[str] = Counter()
    reasons: dict[int, str] = {}
    for row, candidate in enumerate(kept):
        count[candidate.document] += 1
        if count[candidate.document] > most:
            reasons[row] = "more_than_asked"
    return reasons


def _without(
    kept: list[Candidate], reasons: Mapping[int, str], dropped: list[Dropped]
) -> list[Candidate]:
    dropped += [Dropped(kept[row], reason) for row, reason in reasons.items()]
    return [candidate for row, candidate in enumerate(kept) if row not in reasons]
