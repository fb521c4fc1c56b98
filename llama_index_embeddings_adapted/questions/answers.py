"""What an LLM answered, as a list of questions: never an error, whatever the answer."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

#: Characters of an answer that are read; more is not an answer to what was asked.
MOST_READ = 20_000

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*(?:```|~~~)[\w+-]*\s*$")
_LABELS = (
    "questions?|quer(?:y|ies)|q|keywords?|search (?:query|keywords?)|paraphrase|problem|output"
    "|answer|pregunta|pergunta|frage|domanda|vraag|fråga|spørgsmål|pytanie|вопрос|запрос"
    "|prompt|问题|問題|質問|질문|سؤال|السؤال|שאלה|प्रश्न"
)
_LIST_MARKS = re.compile(
    r"""\A\s*(?:
        [-*+•‣◦▪●·–—]\s+                                            # bullets
      | \#{1,6}\s+ | >\s+                                           # headings, quotations
      | [(（\[]?\d{1,3}\s*(?:[.)）\]:：、．]|\s-\s)(?!\d)\s*          # 1. 1) (1) ١. 1、, any digits
      | [一二三四五六七八九十]{1,3}[、.．:：]\s*
      | [(（][a-zA-Z一二三四五六七八九十][)）]\s* | [a-zA-Z]\)\s+
      | (?:\*\*|__)?(?:LABELS)(?:\s*\#?\d{1,3})?(?:\*\*|__)?\s*[:：.)](?:\*\*|__)?\s*
    )""".replace("LABELS", _LABELS),
    re.VERBOSE | re.IGNORECASE,
)
_QUOTES = "\"'`“”„‟‘’‚«»‹›「」『』*_ "
_PAIRED = tuple(zip("([{（【《", ")]}）】》", strict=True))
_QUESTION_KEY = re.compile(r"quest|quer|text|prompt|pregunt|frag|keyword", re.IGNORECASE)


def read_questions(answer: object, *, limit: int, wanted: int = 0) -> list[str]:
    """Return the lines of an answer that may be questions, cleaned, in order.

    JSON (bare, fenced, with or without names), Markdown and numbered lists in several languages,
    quotes, labels and the thoughts of a reasoning model are taken off. Whether a line is a question
    is not judged here.

    Args:
        answer: What the LLM gave; anything but text counts as empty.
        limit: Most lines returned, ``>= 0``.
    """
    if not isinstance(answer, str):
        return []
    text = _THOUGHT.sub(" ", answer[:MOST_READ])
    lines = _from_json(text)
    if lines is None:
        lines = [line for line in text.splitlines() if not _FENCE.match(line)]
    cleaned = (clean(line) for line in lines)
    return [line for line in cleaned if line][: max(limit, 0)]


def clean(line: str) -> str:
    """Return a line without list marks, labels, quotes, emphasis and invisible characters."""
    line = " ".join("".join(map(_visible, unicodedata.normalize("NFC", line))).split())
    for _ in range(4):  # "- **Question 1:** …" has several
        shorter = _LIST_MARKS.sub("", line, count=1).strip()
        if shorter == line:
            break
        line = shorter
    return _unwrapped(line)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    # Joiners spell words in Persian and Indic scripts; direction marks and the like spell nothing.
    return (
        ""
        if category in ("Cf", "Co", "Cs", "Cn") and character not in "\u200c\u200d"
        else character
    )


def _unwrapped(line: str) -> str:
    line = line.strip().rstrip(",").strip(_QUOTES)
    for left, right in _PAIRED:
        if line.startswith(left) and line.endswith(right):
            return line[1:-1].strip(_QUOTES)
    return line


def _from_json(text: str) -> list[str] | None:
    """Return the strings of a JSON answer, None where it is not JSON."""
    body = "\n".join(line for line in text.splitlines() if not _FENCE.match(line)).strip()
    start = re.search(r"[\[{]", body)
    if start is None or (start.start() > 0 and not _introduces(body[: start.start()])):
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(body[start.start() :])
    except (ValueError, RecursionError):
        return None
    found: list[str] = []
    _collect(value, found, named=True)
    return [line for item in found for line in item.splitlines()]


def _introduces(text: str) -> bool:
    """Return whether the text before a bracket announces a list."""
    return text.rstrip().endswith(":")


def _collect(value: Any, found: list[str], *, named: bool, depth: int = 0) -> None:
    """Gather strings of lists, and those of objects under keys that name a question."""
    if depth > 6:
        return
    if isinstance(value, str):
        if named:
            found.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found, named=named, depth=depth + 1)
    elif isinstance(value, dict):
        single = len(value) == 1
        for key, item in value.items():
            named = single or _QUESTION_KEY.search(str(key)) is not None
            _collect(item, found, named=named, depth=depth + 1)


_KEYWORDS_KEPT = 8  # small models do not stop
_DANGLING = frozenset(
    word
    for language in (
        "a an and as at by for from if in is it its of on or our that the their there to we with",
        "y o de del la el los las en por para con que et ou le les des du au un une dans pour avec",
        "und oder der die das den dem des im in am von mit für zu ein eine",
    )
    for word in language.split()
)


def first_keywords(line: str) -> str:
    """Return the beginning of a line that was to be a few keywords."""
    first = line.replace(".", ";").split(";")[0].strip()
    line = first if len(first.split()) > 1 else line
    kept = line.split()[:_KEYWORDS_KEPT]
    while len(kept) > 2 and kept[-1].casefold() in _DANGLING:
        kept.pop()
    return " ".join(kept)
