"""Tokens of a text in any language, and of code: words, parts of identifiers, character n-grams."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..core.arrays import Rows

#: Of longer words, such as hashes and encoded files, this many characters count.
LONGEST = 64
_LONGEST_KEPT = 16  # of words that are perhaps a clause of Chinese, each another

_ASCII_WORDS = re.compile(r"[A-Za-z0-9_]+")
_HUMPS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z0-9]+|[A-Z0-9]+")


def tokenize(text: str) -> list[str]:
    """Return the tokens of a text, in order, repeated as often as they stand there.

    Words are runs of letters, marks, digits and underscores, in lower case; nothing is stemmed, no
    word is left out. ``parseHTTPHeader`` and ``parse_http_header`` give ``parse``, ``http`` and
    ``header`` besides themselves. Scripts that put no spaces between words (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese) give every character and every pair of neighbours.
    """
    if text.isascii():
        words = _ASCII_WORDS.findall(text)
    else:
        words = _patterns()[0].findall(unicodedata.normalize("NFKC", text))
    found: list[str] = []
    for word in words:
        if word.islower() and word.isalnum() and word.isascii():  # most words: nothing to do
            found.append(word[:LONGEST])
        elif len(word) > LONGEST:  # a whole sentence of Chinese, or a file in base64: not kept
            found.extend(_pieces(word))
        else:
            found.extend(_known_pieces(word))
    return found


def numbered_tokens(texts: Iterable[str]) -> tuple[tuple[str, ...], Rows, Rows]:
    """Tokenize many texts, what stands between two spaces once.

    Returns the distinct tokens; those of all texts, one text after the other, as numbers of these;
    and ``(n + 1,)``, where each text begins.
    """
    numbers: dict[str, int] = {}
    pieces, sizes = array("i"), array("i")  # of each distinct word

    class Words(dict[str, int]):
        def __missing__(self, word: str) -> int:
            tokens = tokenize(word)
            pieces.extend([numbers.setdefault(token, len(numbers)) for token in tokens])
            sizes.append(len(tokens))
            if len(word) <= (LONGEST if word.isascii() else _LONGEST_KEPT):
                self[word] = len(sizes) - 1
            return len(sizes) - 1

    number_of = Words().__getitem__
    words, ends = array("i"), array("q", [0])
    for text in texts:
        words.extend(map(number_of, text.split()))
        ends.append(len(words))
    found = _spread(*map(np.array, (words, ends, pieces, sizes)))
    return tuple(numbers), *found


def _spread(words: Rows, ends: Rows, pieces: Rows, sizes: Rows) -> tuple[Rows, Rows]:
    """Put in place of each word its tokens."""
    starts, found = np.cumsum(sizes) - sizes, sizes[words]
    before = np.concatenate([[0], np.cumsum(found)])
    at = np.repeat(starts[words] - before[:-1], found)
    at += np.arange(len(at))
    return pieces[at], before[ends]


@lru_cache(maxsize=65_536)
def _known_pieces(word: str) -> tuple[str, ...]:
    return tuple(_pieces(word))


def _pieces(word: str) -> Iterator[str]:
    if word.isascii():
        yield from _identifier(word[:LONGEST])
        return
    for place, piece in enumerate(_patterns()[1].split(word)):
        if place % 2:  # a run of a script without spaces
            yield from piece
            yield from (piece[at : at + 2] for at in range(len(piece) - 1))
        else:
            yield from (part[:LONGEST].casefold() for part in piece.split("_") if part)


def _identifier(word: str) -> Iterator[str]:
    parts = _HUMPS.findall(word)
    if parts:
        yield word.strip("_").lower()
    if len(parts) > 1:
        yield from (part.lower() for part in parts)


@cache
def _patterns() -> tuple[Any, Any]:
    """Return what finds words, and what splits off runs of scripts without spaces."""
    import regex  # comes with llama-index-core; the standard library knows no scripts

    unspaced = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
    return regex.compile(r"[\p{L}\p{M}\p{N}_]+"), regex.compile(f"([{unspaced}]+)")
