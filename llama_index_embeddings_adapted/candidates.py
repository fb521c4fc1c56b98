"""A question as an LLM or a document gave it, before it is known to be any good."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Scripts that put no space between words: each character counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

QUESTION_MARKS = "?？؟;՞፧⁇‽"


@dataclass(frozen=True)
class Candidate:
    """One question and where it came from.

    Args:
        text: The question, on one line, without list marks and quotes.
        document: Id of the passage that should answer it.
        passage: The text of that passage as the writer saw it.
        style: The style that was asked for; None where a custom prompt or a document decided.
        prompt: What was sent besides the passage.
    """

    text: str
    document: str
    passage: str
    style: str | None = None
    prompt: str = ""


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case; in scripts without spaces, its characters."""
    return _WORD.findall(text.casefold())
