"""How an LLM is asked for questions: few-shot turns, several styles, or a prompt of the user's."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import OptionError, check_whole, quote_some, truncate

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

#: Characters of a passage that a model which completes is shown, and of the passage of an example.
SHOWN = 400
_LEAST_SHOWN = 100  # of what is left of a passage, to ask about it again
_IMITATE = (
    "You write what people type into a search engine. Each example shows a passage and a query "
    "that it answers. Write queries for the last passage that could come from the same people: as "
    "long, in the same form and language. One query per line, and nothing else."
)


@dataclass(frozen=True)
class Example:
    """A query of a user and the passage that answers it; ``judged`` is False for a stand-in."""

    passage: str
    query: str
    judged: bool = True


class Request(NamedTuple):
    """One call to an LLM."""

    turns: tuple[tuple[str, str], ...]  #: (role, text) of a chat.
    #: Of its questions, in order; None where a prompt of the user's or examples decide.
    styles: tuple[str | None, ...]
    frame: str  #: What is sent besides the passage, to recognise in an answer.
    piece: str | None = None  #: Of a passage, where its line is to be gone on with; else None.
    others: tuple[str, ...] = ()  #: Then, the queries of the examples above it.

    @property
    def text(self) -> str:
        """The turns as one text, for models that only complete."""
        parts = [text + ("\n" if role == "assistant" else "") for role, text in self.turns]
        return "\n".join(parts) + ("\n" if len(parts) > 1 else "")


@dataclass(frozen=True)
class PromptConfig:
    """What is asked about each passage; what is out of range or unknown is an OptionError."""

    questions: int = 2  #: Per passage, ``>= 1``.
    styles: tuple[str, ...] = tuple(STYLES)  #: Passages take turns, so that all are used.
    questions_per_call: int | None = None  #: A passage is sent, and paid for, once per call.
    template: Any | None = None  #: Of the user; replaces styles and examples, asks for all at once.
    examples: tuple[Example, ...] = ()  #: Of the user, which replace the styles and our examples.
    labels: tuple[str, str] = ("Passage", "Query")  #: What stands before those of examples.
    #: Ask by a text to go on with instead of turns: about the first :data:`SHOWN` characters of a
    #: passage, then the next, as far as it goes.
    completes: bool = False

    def __post_init__(self) -> None:
        check_whole("num_questions_per_chunk", self.questions)
        if self.questions_per_call is not None:
            check_whole("questions_per_call", self.questions_per_call)
        unknown = [style for style in self.styles if style not in STYLES]
        if unknown or not self.styles:
            raise OptionError(
                f"styles: expected some of {', '.join(STYLES)}, "
                f"got {quote_some(unknown) or 'none'}."
            )
        if self.template is not None:
            self._filled("passage")

    def requests(self, passage: str, turn: int) -> list[Request]:
        """Return the calls for a passage."""
        if self.template is not None:
            turns = (("user", self._filled(passage)),)
            return [Request(turns, (None,) * self.questions, self._filled(""))]
        if self.examples and self.completes:
            return [self._to_complete(piece) for piece in pieces(passage)[: self.questions]]
        if self.examples:
            return [self._like_examples(passage)]
        count, size = self.questions, self.questions_per_call or self.questions
        styles = [self.styles[(turn * count + i) % len(self.styles)] for i in range(count)]
        return [few_shot(passage, styles[i : i + size]) for i in range(0, count, size)]

    def _to_complete(self, passage: str) -> Request:
        """Return the examples as lines, the same for every passage, and the passage last."""
        above, below = self.labels
        shown = (f"{above}: {pieces(e.passage)[0]}\n{below}: {e.query}\n\n" for e in self.examples)
        text = "".join((*shown, f"{above}: {passage}\n{below}:"))
        others = tuple(example.query for example in self.examples)
        return Request((("user", text),), (None,), "", passage, others)

    def _like_examples(self, passage: str) -> Request:
        above = self.labels[0]
        turns = [("system", _IMITATE)]
        for example in self.examples:
            shown = f"{above}: {pieces(example.passage)[0]}"
            turns += [("user", shown), ("assistant", example.query)]
        more = f"\n\nWrite {self.questions} different queries." if self.questions > 1 else ""
        turns.append(("user", f"{above}: {passage}{more}"))
        return Request(tuple(turns), (None,) * self.questions, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON knows them; examples stand in the requests."""
        if self.examples and self.template is None:
            from .local_llama import one_line  # which costs a command line half a second

            line = one_line("", ()) if self.completes else None
            return {"completes": self.completes, "line": line}
        return {
            "questions": self.questions,
            "styles": list(self.styles) if self.template is None else None,
            "questions_per_call": self.questions_per_call,
            "template": None if self.template is None else self._filled("{context_str}"),
        }

    def _filled(self, passage: str) -> str:
        try:
            given = {"context_str": passage, "num_questions_per_chunk": self.questions}
            filled = str(self.template.format(**given))  # type: ignore[union-attr]
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


def pieces(passage: str) -> list[str]:
    """Cut a passage at words into lines of at most :data:`SHOWN` characters, one at least."""
    lines = textwrap.wrap(passage, SHOWN, break_on_hyphens=False) or [""]
    return lines[:1] + [line for line in lines[1:] if len(line) >= _LEAST_SHOWN]


def few_shot(passage: str, styles: Sequence[str]) -> Request:
    """Return the turns that ask for one query of each style."""
    if len(styles) == 1:
        instruction = f"Write one {STYLES[styles[0]]}, that this passage answers."
    else:
        lines = [f"Line {n}: a {STYLES[style]}." for n, style in enumerate(styles, start=1)]
        instruction = "\n".join([f"Write {len(styles)} queries that this passage answers.", *lines])
    frame = [_SYSTEM, instruction]
    turns = [("system", _SYSTEM)]
    for example, answers in _EXAMPLES:
        answer = "\n".join(answers[style] for style in styles)
        turns += [("user", f"Passage: {example}\n\n{instruction}"), ("assistant", answer)]
        frame += [example, answer]
    turns.append(("user", f"Passage: {passage}\n\n{instruction}"))
    return Request(tuple(turns), tuple(styles), "\n".join(frame))
