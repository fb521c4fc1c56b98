"""Which questions say the same as an earlier one, in nearly the same words."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from llama_index_embeddings_adapted.candidates import words


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> dict[int, int]:
    """Find texts that share most of their words with an earlier one that stays.

    Two texts are near-duplicates when their sets of words have a Jaccard similarity of at least
    ``threshold``. A text that differs in a number is another question, however long it is.

    Args:
        texts: In order of precedence.
        threshold: In (0, 1].

    Returns:
        Row of a near-duplicate → row of the text it repeats. Rows that are not keys have pairwise
        similarity below ``threshold``.

    Source:
        Candidates by prefix filtering, Chaudhuri et al. 2006: of two sets that overlap enough, the
        rarest words cannot all differ. Work grows about linearly with the number of texts.
    """
    sets = [frozenset(words(text)) for text in texts]
    frequency = Counter(word for each in sets for word in each)
    index: dict[tuple[frozenset[str], str], list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for row, mine in enumerate(sets):
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(mine) - math.ceil(threshold * len(mine)) + 1]
        numbers = _numbers(mine)
        candidates = sorted({other for word in prefix for other in index[numbers, word]})
        twin = next((o for o in candidates if _same(mine, sets[o], threshold)), None)
        if twin is not None:
            found[row] = twin
            continue
        for word in prefix:
            index[numbers, word].append(row)
    return found


def _same(one: frozenset[str], other: frozenset[str], threshold: float) -> bool:
    return len(one & other) >= threshold * len(one | other)


def _numbers(tokens: frozenset[str]) -> frozenset[str]:
    return frozenset(t for t in tokens if any(character.isdecimal() for character in t))
