"""How an LLM is asked for questions: few-shot turns, several styles, or a prompt of the user's.

What an LLM answered, as a list of questions: never an error, whatever the answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index_embeddings_adapted.errors import OptionError, quote_some, truncate

#: Style → what is asked for. Real users do not quote the passage, and few ask in full sentences.
STYLES: Mapping[str, str] = {
    "question": "short, specific question",
    "keywords": "search query of three to six keywords, not a sentence",
    "paraphrase": "question in everyday words that the passage itself does not use",
    "problem": "description of somebody's problem, in two or three sentences on one line",
}

_SYSTEM = (
    "You write what people type into a search engine. For each passage, write what somebody would "
    "search for whom this passage answers. Be specific: name the subject. Write in the language of "
    "the passage, one query per line, and nothing else."
)


# Small models imitate the opening of the last example: it should be no common one.
_EXAMPLES: tuple[tuple[str, Mapping[str, str]], ...] = (
    (
        "El puente de Rialto se reconstruyó en piedra entre 1588 y 1591, después de que el puente "
        "de madera se hundiera dos veces. Antonio da Ponte ganó el encargo con un solo arco de "
        "28,8 metros frente a los proyectos de Palladio y Sansovino.",
        {
            "question": "¿Quién diseñó el puente de Rialto de piedra?",
            "keywords": "puente Rialto arco único metros",
            "paraphrase": "¿Qué arquitectos famosos perdieron el concurso para el cruce del canal "
            "de Venecia?",
            "problem": "Preparo una visita guiada a Venecia y no sé por qué cambiaron la madera "
            "por piedra en Rialto. ¿Qué pasó con el paso anterior?",
        },
    ),
    (
        "The tenant may end the lease before its term with ninety days' written notice and a fee "
        "of two monthly rents. The fee is waived if the landlord finds a new tenant within that "
        "time.",
        {
            "question": "How high is the fee for leaving a flat before the lease ends?",
            "keywords": "early lease termination fee waived",
            "paraphrase": "Can I move out sooner without paying if somebody else takes the flat?",
            "problem": "I have a job in another city and my rental contract runs until December. "
            "How much warning do I have to give, and what will it cost me?",
        },
    ),
    (
        "Bread that is sliced while hot tears, because its starch has not yet set. Let a loaf cool "
        "on a rack for at least two hours. Steam that cannot escape from below makes the crust "
        "soft, so do not leave the loaf in its tin.",
        {
            "question": "Why does bread tear when it is sliced hot?",
            "keywords": "soft crust loaf cooling tin",
            "paraphrase": "How long until fresh baking can be cut without falling apart?",
            "problem": "My loaves are crisp from the oven and leathery an hour later. I leave them "
            "in the pan to cool. What am I doing wrong?",
        },
    ),
)


@dataclass(frozen=True)
class Request:
    """One call to an LLM.

    Args:
        turns: (role, text), roles ``"system"``, ``"user"``, ``"assistant"``.
        styles: What its questions should be, in order; None where a custom prompt decides.
        frame: What is sent besides the passage, to recognise in an answer.
    """

    turns: tuple[tuple[str, str], ...]
    styles: tuple[str | None, ...]
    frame: str

    @property
    def text(self) -> str:
        """The turns as one text, for models that only complete."""
        parts = [text + ("\n" if role == "assistant" else "") for role, text in self.turns]
        return "\n".join(parts) + ("\n" if len(parts) > 1 else "")


@dataclass(frozen=True)
class Prompting:
    """What is asked about each passage.

    Args:
        questions: Questions per passage, ``>= 1``.
        styles: Names from :data:`STYLES`; passages take turns, so that all styles are used even if
            each passage has fewer questions than there are styles.
        questions_per_call: How many to ask for at once; None for all. A passage is sent, and paid
            for, once per call. Small models follow a prompt for one question best.
        template: A prompt of the user's with ``{context_str}`` and, if wanted,
            ``{num_questions_per_chunk}``: a string or a LlamaIndex prompt template. It replaces
            styles and examples, and asks for all questions at once.

    Raises:
        OptionError: A number out of range, an unknown style, a template that cannot be filled in.
    """

    questions: int = 2
    styles: tuple[str, ...] = tuple(STYLES)
    questions_per_call: int | None = None
    template: Any | None = None

    def __post_init__(self) -> None:
        for name in ("questions", "questions_per_call"):
            value = getattr(self, name)
            if value is None and name == "questions_per_call":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                shown = "num_questions_per_chunk" if name == "questions" else name
                raise OptionError(f"{shown}: expected a whole number >= 1, got {value!r}.")
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise OptionError(
                f"styles: expected some of {', '.join(STYLES)}, "
                f"got {quote_some(unknown) or 'none'}."
            )
        if self.template is not None:
            self._filled("passage")

    def requests(self, passage: str, turn: int) -> list[Request]:
        """Return the calls for a passage.

        Args:
            passage: Its text.
            turn: Number that decides whose turn it is among the styles.
        """
        if self.template is not None:
            frame = self._filled("")
            turns = (("user", self._filled(passage)),)
            return [Request(turns, (None,) * self.questions, frame)]
        count = len(self.styles)
        styles = [self.styles[(turn * self.questions + i) % count] for i in range(self.questions)]
        size = self.questions_per_call or self.questions
        return [
            few_shot(passage, styles[start : start + size])
            for start in range(0, self.questions, size)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON knows them."""
        return {
            "questions": self.questions,
            "styles": list(self.styles) if self.template is None else None,
            "questions_per_call": self.questions_per_call,
            "template": None if self.template is None else self._filled("{context_str}"),
        }

    def _filled(self, passage: str) -> str:
        try:
            filled = str(
                self.template.format(  # type: ignore[union-attr]
                    context_str=passage, num_questions_per_chunk=self.questions
                )
            )
        except (AttributeError, IndexError, KeyError, ValueError) as cause:
            raise OptionError(
                "qa_generate_prompt_tmpl: expected a text with {context_str} and, if wanted, "
                "{num_questions_per_chunk}; write other braces twice. It cannot be filled in: "
                f"{type(cause).__name__} {cause}."
            ) from cause
        if passage and passage not in filled:
            raise OptionError(
                "qa_generate_prompt_tmpl: expected {context_str} where the passage goes, got "
                f"{truncate(filled)!r}."
            )
        return filled


def few_shot(passage: str, styles: Sequence[str]) -> Request:
    """Return the turns that ask for one query of each style."""
    wish = _wish(styles)
    frame = [_SYSTEM, wish]
    turns = [("system", _SYSTEM)]
    for example, answers in _EXAMPLES:
        answer = "\n".join(answers[style] for style in styles)
        turns += [("user", f"Passage: {example}\n\n{wish}"), ("assistant", answer)]
        frame += [example, answer]
    turns.append(("user", f"Passage: {passage}\n\n{wish}"))
    return Request(tuple(turns), tuple(styles), "\n".join(frame))


def _wish(styles: Sequence[str]) -> str:
    if len(styles) == 1:
        return f"Write one {STYLES[styles[0]]}, that this passage answers."
    lines = [f"Line {number}: a {STYLES[style]}." for number, style in enumerate(styles, start=1)]
    return "\n".join([f"Write {len(styles)} queries that this passage answers.", *lines])


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


def read_questions(answer: object, *, limit: int) -> list[str]:
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
