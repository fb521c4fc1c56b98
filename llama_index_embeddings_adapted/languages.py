"""Is a question in the language of its passage? By script, and by the little words of each."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping

from llama_index_embeddings_adapted.candidates import words

#: Words that are frequent in one language and rare in the others.
_LITTLE_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(text.split())
    for language, text in {
        "en": "the of and is what how does to are was which with for on why when who that by did",
        "es": "el los las qué cuál cómo es son para por una del y con se cuáles dónde cuándo quién",
        "fr": "le les des est quel quelle comment pour une du et dans sont quelles avec où qui",
        "de": "der die das ist was wie und für ein eine den von mit wird welche sind warum wer zu",
        "it": "il gli è quale come per una di che della con sono nel perché dove quando chi cosa",
        "pt": "os qual como é são para uma do da com não quais onde quando quem por que em ao",
        "nl": "het een van is wat hoe voor de zijn met welke waarom wie wordt en op niet naar",
    }.items()
}
_CLEAR = 2  # little words of one language that are no chance


def same_language(text: str, other: str) -> bool:
    """Return whether two texts may be in one language; in doubt, yes.

    They are not where most of their letters belong to different scripts, or where one has little
    words of a language, at least two and more than of any other, of which the other has none.
    """
    if _script(text) != _script(other):
        return not (_script(text) and _script(other))
    mine, theirs = _little_words(text), _little_words(other)
    if not mine or not theirs:
        return True
    language, count = mine.most_common(1)[0]
    expected = theirs.most_common(1)[0][0]
    return count < _CLEAR or language == expected or count <= mine[expected]


def _little_words(text: str) -> Counter[str]:
    counts = Counter(words(text))
    found = Counter(
        {name: sum(counts[word] for word in known) for name, known in _LITTLE_WORDS.items()}
    )
    return +found


def _script(text: str) -> str:
    """Return the script of most letters, such as ``"LATIN"``; Chinese and Japanese are one."""
    names = Counter(
        unicodedata.name(character, "?").split(" ", 1)[0].split("-")[0]
        for character in text[:1000]
        if character.isalpha()
    )
    script = names.most_common(1)[0][0] if names else ""
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script
