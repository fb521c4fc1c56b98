"""Which questions are no good, told from their text: each filter is a function, its name a reason.

A filter takes a :class:`~llama_index_embeddings_adapted.candidates.Candidate` and returns whether
to drop it. ``generate_qa_embedding_pairs(filters=[*TEXT_FILTERS, mine])`` adds one of your own; its
name is counted in the report.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable

from llama_index_embeddings_adapted import phrases
from llama_index_embeddings_adapted.candidates import QUESTION_MARKS, Candidate, words
from llama_index_embeddings_adapted.languages import same_language

Filter = Callable[[Candidate], bool]

FEWEST_WORDS, MOST_WORDS = 2, 60
MOST_KEYWORDS = 12
MOST_CHARACTERS = 400
_SHINGLE = 5  # words in a row that are no chance
_COPIED_RUN = 6
_COPIED_SHARE = 0.8

_CODE = re.compile(r"[{}<>\\|`=;$^~\[\]]")
_STATEMENT_ENDS = tuple(".。．।!！:：,、;…")


def not_a_query(candidate: Candidate) -> bool:
    """Neither a question nor something one would type into a search box.

    Code, markup, mostly digits or signs, a phrase repeated over and over, and statements: text
    without a question mark that ends like a sentence or is longer than keywords are. A problem
    description may be a statement, if it is long enough to describe one.
    """
    text, tokens = candidate.text, words(candidate.text)
    solid = [character for character in text if not character.isspace()]
    letters = sum(
        character.isalpha() or unicodedata.category(character)[0] == "M" for character in solid
    )
    if not solid or letters < 0.6 * len(solid) or len(_CODE.findall(text)) >= 2:
        return True
    if len(tokens) >= 6 and len(set(tokens)) < 0.6 * len(tokens):
        return True
    if text[-1] in QUESTION_MARKS:
        return False
    if candidate.style == "problem" and len(tokens) >= 8:
        return False
    return text.endswith(_STATEMENT_ENDS) or len(tokens) > MOST_KEYWORDS


def refusal(candidate: Candidate) -> bool:
    """A refusal, an offer to help, or a remark about the task instead of an answer to it."""
    return phrases.is_remark(candidate.text)


def leaked(candidate: Candidate) -> bool:
    """Words of the prompt or of its examples, instead of words about the passage.

    That is five words in a row, two of them longer than four letters, that stand in the prompt and
    not in the passage, or most of the words of one of its lines.
    """
    if not candidate.prompt:
        return False
    lines, runs = _prompt_words(candidate.prompt)
    tokens = words(candidate.text)
    common = (_runs(tokens) & runs) - _runs(words(candidate.passage))
    telling = any(sum(len(word) > 4 for word in run) >= 2 for run in common)
    said = set(tokens)
    return telling or any(len(said & line) > 0.7 * len(said | line) for line in lines)


def copied(candidate: Candidate) -> bool:
    """A sentence of the passage: no user quotes the passage that they are looking for."""
    tokens = words(candidate.text)
    size = max(_COPIED_RUN, math.ceil(_COPIED_SHARE * len(tokens)))
    passage = f" {' '.join(words(candidate.passage))} "
    starts = range(len(tokens) - size + 1)
    return any(f" {' '.join(tokens[start : start + size])} " in passage for start in starts)


def refers_to_passage(candidate: Candidate) -> bool:
    """ "This passage", "the context": nobody who has not seen the passage would ask that."""
    return phrases.refers_to_text(candidate.text)


def other_language(candidate: Candidate) -> bool:
    """Another language than the passage's, as when an example is imitated too closely."""
    return not same_language(candidate.text, candidate.passage)


def too_short(candidate: Candidate) -> bool:
    """Fewer than two words, or five letters."""
    letters = sum(character.isalpha() for character in candidate.text)
    tokens = words(candidate.text)
    return len(tokens) < FEWEST_WORDS or (letters < 5 and len(tokens) < 4)


def too_long(candidate: Candidate) -> bool:
    """More than 60 words or 400 characters; keywords, more than 12 words."""
    most = MOST_KEYWORDS if candidate.style == "keywords" else MOST_WORDS
    return len(candidate.text) > MOST_CHARACTERS or len(words(candidate.text)) > most


#: Applied in this order; the first that objects is the reason.
TEXT_FILTERS: tuple[Filter, ...] = (
    too_long,
    too_short,
    refusal,
    leaked,
    other_language,
    refers_to_passage,
    not_a_query,
    copied,
)


def _runs(tokens: list[str]) -> frozenset[tuple[str, ...]]:
    return frozenset(
        tuple(tokens[start : start + _SHINGLE]) for start in range(len(tokens) - _SHINGLE + 1)
    )


@functools.lru_cache(maxsize=64)
def _prompt_words(prompt: str) -> tuple[list[frozenset[str]], frozenset[tuple[str, ...]]]:
    lines = [frozenset(words(line)) for line in prompt.splitlines()]
    runs = [_runs(words(line)) for line in prompt.splitlines()]
    return [line for line in lines if len(line) > 1], frozenset().union(*runs)
