"""What an LLM answered, as a list of questions: never an error, whatever the answer.

Structure is read first (JSON however broken, tables, tags, pairs of questions and answers, lists),
then lines, then sentences.
"""

from __future__ import annotations

import csv
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress

#: Characters of an answer that are read; more is not an answer to what was asked.
MOST_READ = 20_000

QUESTION_MARKS = "?？؟՞፧⁇‽"

_TAGS = "think(?:ing)?|reason(?:ing)?|reflection|scratchpad|analysis"
_THOUGHT = re.compile(
    rf"<({_TAGS})>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)",
    re.DOTALL | re.IGNORECASE,
)
#: Its beginning is in the prompt, or another channel of the answer.
_THOUGHT_BEFORE = re.compile(
    rf"\A.*(?:</(?:{_TAGS})>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>)",
    re.DOTALL | re.IGNORECASE,
)
_CONTROL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|\[/?INST\]")
_FENCE = re.compile(r"^[^\S\n]*(?:```|~~~)[\w+-]*[^\S\n]*$", re.MULTILINE)
_LABELS = (
    "questions?|quer(?:y|ies)|q|keywords?|search (?:query|keywords?)|paraphrase|problem|output"
    "|pregunta|pergunta|frage|domanda|vraag|fråga|spørgsmål|spørsmål|pytanie|soru|câu hỏi|вопрос"
    "|запрос|питання|ερώτηση|prompt|问题|問題|問|问|質問|질문|سؤال|السؤال|שאלה|प्रश्न|คำถาม"
)
#: What comes with questions and is none.
_OTHER_LABELS = (
    "answers?|ans|a|explanations?|rationale|reason(?:ing)?|justification|difficulty|type|category"
    "|source|context|respuesta|resposta|réponse|risposta|antwort|antwoord|svar|odpowiedź|cevap"
    "|trả lời|ответ|відповідь|απάντηση"
    "|答案|答|回答|解答|답변|답|الجواب|الإجابة|جواب|תשובה|उत्तर|คำตอบ"
)
_LABEL = r"(?:\*\*|__)?(?:{})(?:[ _]*\#?\d{{1,3}})?(?:\*\*|__)?\s*[:：.)](?:\*\*|__)?\s*"
_QUESTION_LABEL = re.compile(rf"\A{_LABEL.format(_LABELS)}", re.IGNORECASE)
_OTHER_LABEL = re.compile(rf"\A{_LABEL.format(_OTHER_LABELS)}", re.IGNORECASE)
_BARE_LABEL = re.compile(rf"\A(?:{_LABELS})\s*\#?\d{{0,3}}\s*[:：]?\Z", re.IGNORECASE)
_NUMBER = (
    r"[(（\[]?\d{1,3}\s*(?:[.)）\]:：、．။។]|\s-\s)(?!\d)\s*"
    r"|[一二三四五六七八九十]{1,3}[、.．:：]\s*"
)
_BULLET = r"[-*+•‣◦▪●·–—]\s+"
_LIST_MARKS = re.compile(
    rf"""\A\s*(?:
        {_BULLET} | \#{{1,6}}\s+ | >\s+                    # bullets, headings, quotations
      | {_NUMBER}                                        # 1. 1) (1) ١. 1、 一、 in any digits
      | [(（][a-zA-Z一二三四五六七八九十][)）]\s* | [a-zA-Z]\)\s+
      | {_LABEL.format(_LABELS)}
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_NUMBERED = re.compile(rf"\A\s*(?:\*\*|__)?(?:{_NUMBER})", re.IGNORECASE)
_ITEM = re.compile(rf"\A\s{{0,3}}(?:{_BULLET})")
_OPTION = re.compile(r"\A\s*[(（]?[A-Fa-f][.)）]\s+")
_TITLE = re.compile(r"\A(?:\*\*|__)[^*_?]{1,40}(?::(?:\*\*|__)|(?:\*\*|__)\s*:)\s*(?=\S)")
_QUOTES = "\"'`“”„‟‘’‚«»‹›「」『』"
_PAIRED = tuple(zip("([{（【《\"'`“‘„«‹「『*_", ")]}）】》\"'`”’“»›」』*_", strict=True))
_INLINE = re.compile(r"(`{1,3})([^`]+)\1|(?P<bold>\*\*|~~)(?=\S)(?P<text>[^*~]+)(?<=\S)(?P=bold)")
_LINK = re.compile(r"!?\[([^\[\]]{1,200})\]\([^()\s]{0,500}\)")


def read_questions(answer: object, *, limit: int, wanted: int = 0) -> list[str]:
    """Return the parts of an answer that may be questions, cleaned, in order.

    Marks of lists, labels, quotes, emphasis and thoughts are taken off; answers and explanations
    are left out. Anything but text counts as empty; at most ``limit`` parts are returned. A line of
    several questions is taken apart where there are fewer lines than were ``wanted``.
    """
    if not isinstance(answer, str):
        return []
    text = _THOUGHT_BEFORE.sub("", _THOUGHT.sub(" ", answer[:MOST_READ]))
    text = _CONTROL.sub("\n", text)
    bare = _FENCE.sub("", text).strip()
    for reader in (_from_table, _from_json, _from_tags):
        found = reader(bare)
        if found:
            return _cleaned(found, limit)
    with suppress(ValueError, RecursionError):
        if not isinstance(json.loads(bare), str):
            return []  # JSON that holds no question
    found = _cleaned(_from_lines(bare.splitlines()), limit)
    if 0 < len(found) < wanted:
        found = [part for line in found for part in _sentences(line)]
    return found[: max(limit, 0)]


def _cleaned(lines: Sequence[str], limit: int) -> list[str]:
    cleaned = (clean(line) for text in lines for line in text.splitlines())
    return [line for line in cleaned if line and not _BARE_LABEL.match(line)][: max(limit, 0)]


def clean(line: str) -> str:
    """Return a line without list marks, labels, quotes, markup and invisible characters."""
    line = " ".join("".join(map(_visible, unicodedata.normalize("NFC", line))).split())
    for _ in range(4):  # "- **Question 1:** …" has several
        shorter = _TITLE.sub("", _LIST_MARKS.sub("", line, count=1)).strip()
        if shorter == line:
            break
        line = shorter
    line = _LINK.sub(r"\1", line)
    return _unwrapped(_INLINE.sub(lambda m: m[2] or m["text"], line))


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    # Joiners spell words in Persian and Indic scripts; direction marks and the like spell nothing.
    spells = category not in ("Cf", "Co", "Cs", "Cn") or character in "\u200c\u200d"
    return character if spells else ""


def _unwrapped(line: str) -> str:
    """Take off pairs around the line, and a quote at one end that has no partner."""
    line = line.strip().rstrip(",").strip()
    while len(line) > 1 and any(
        line[0] == left and line[-1] == right and (left in "*_" or right not in line[1:-1])
        for left, right in _PAIRED
    ):
        line = line[1:-1].strip()
    for mark in _QUOTES:
        if line.count(mark) == 1:
            line = line.strip(mark).strip()
    return line.strip("* ")


def is_question(line: str) -> bool:
    """Return whether a text ends as a question does in its script."""
    bare = line.rstrip(_QUOTES + "*_)） ")
    if bare.endswith(";"):  # as the Greek mark is normalised
        return any("\u0370" <= character <= "\u03ff" for character in bare)
    return bare.endswith(tuple(QUESTION_MARKS)) or _SPOKEN_MARK.search(bare) is not None


#: Words that ask at the end of a sentence, where a full stop or nothing may follow.
_SPOKEN_MARK = re.compile(
    r"(?:か|까|나요|가요|吗|嗎|呢|လား|လဲ|နည်း|ไหม|หรือไม่|อะไร|อย่างไร|ที่ไหน|เท่าไร|เมื่อไร|ทำไม)[.。．။]?\Z"
)


def _sentences(line: str) -> list[str]:
    """Return the questions of a line that consists of questions; any other line as it is."""
    parts = [part for part in re.split(r"(?<=[?？؟])(?:\s+|(?<=？))(?=\S)", line) if part]
    cleaned = [clean(part) for part in parts]
    return cleaned if len(parts) > 1 and all(map(is_question, parts)) else [line]


def _from_lines(lines: Sequence[str]) -> list[str]:
    lines = list(_without_answers([line.strip() for line in lines]))
    for mark in (_NUMBERED, _ITEM):
        items = _items(lines, mark)
        if len(items) > 1:
            return items
    return lines


def _without_answers(lines: Sequence[str]) -> Iterator[str]:
    """Leave out answers, explanations and choices, and how they go on."""
    unmarked = [re.sub(r"\A[*_\s]*", "", _ITEM.sub("", line)) for line in lines]
    labelled = [bool(_OTHER_LABEL.match(line)) and not is_question(line) for line in unmarked]
    asks = [bool(_QUESTION_LABEL.match(line) or is_question(line)) for line in unmarked]
    choices = [bool(_OPTION.match(line)) and not asks[row] for row, line in enumerate(unmarked)]
    if not any(asks):  # keywords, for example
        yield from lines
        return
    inside = False
    for row, line in enumerate(lines):
        if labelled[row] or choices[row]:
            inside = labelled[row]
        elif not line or asks[row] or _NUMBERED.match(line):
            inside = inside and not line
            yield line
        elif not inside:
            yield line


def _items(lines: Sequence[str], mark: re.Pattern[str]) -> list[str]:
    """Return the items of a list; a line below one that is no question yet belongs to it."""
    items: list[str] = []
    open_ = False
    for line in lines:
        if mark.match(line):
            items.append(line)
            open_ = True
        elif line and open_ and not is_question(items[-1]) and not _QUESTION_LABEL.match(line):
            # A heading above its question is no part of it.
            heading = is_question(line) and len(items[-1].split()) <= 6
            items[-1] = line if heading else f"{items[-1]} {line}"
        else:
            open_ = open_ and not line and not is_question(items[-1])
    return items


_ASKS = re.compile(
    r"quest|quer|prompt|pregunt|pergunt|frag|domand|keyword|问题|問題|質問", re.IGNORECASE
)
_CSV_HEAD = re.compile(
    rf"(?=[^\n]*(?:{_ASKS.pattern}))\"?\w+\"?(?:, ?\"?\w+\"?)+ *\n", re.IGNORECASE
)
_RULE = re.compile(r"\A\|?\s*:?-{2,}:?\s*(?:\|\s*:?-{2,}:?\s*)*\|?\Z")


def _from_table(text: str) -> list[str]:
    """Return the column of questions of a Markdown or CSV table."""
    lines = [line.strip() for line in text.splitlines()]
    rule = next((row for row, line in enumerate(lines) if "|" in line and _RULE.match(line)), 0)
    rows: list[list[str]] = []
    if rule:
        kept = (line for line in (lines[rule - 1], *lines[rule + 1 :]) if "|" in line)
        rows = [re.split(r"\s*(?<!\\)\|\s*", line.strip("|").strip()) for line in kept]
    elif _CSV_HEAD.match(text):
        rows = list(csv.reader(filter(None, lines), skipinitialspace=True))
    if not rows:
        return []
    head, *body = rows
    named = [column for column, name in enumerate(head) if _ASKS.search(name)]

    def asked(column: int) -> int:
        return sum(is_question(row[column]) for row in body if column < len(row))

    column = named[0] if named else max(range(len(head)), key=asked)
    return [row[column] for row in body if column < len(row)]


_TAGGED = re.compile(
    r"<(?P<tag>li|question|query|q|question[_-]?\d+|q\d+|item|dt|p)(?:\s[^<>]{0,200})?>"
    r"(?P<text>.{0,2000}?)(?=</?(?P=tag)\b|</?(?:[uo]l|a|answer|dd)\d*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)


def _from_tags(text: str) -> list[str]:
    """Return what stands in tags of HTML or XML that hold questions."""
    if not re.search(r"^[^\S\n]*<\w+[^<>\n]{0,200}>", text, re.MULTILINE):
        return []
    found = (re.sub(r"<[^<>]*>", " ", match["text"]) for match in _TAGGED.finditer(text))
    return [" ".join(html.unescape(each).split()) for each in found if each.strip()]


_OPENING = re.compile(
    r"""(?:^|:)[^\S\n]*(?=[\[{]\s*(?://.*\s+)?(?:[\[{"'“‘]|\w+\s*:))|^[^\S\n]*(?=["“][^"“”\n]*["”]\s*,)""",
    re.MULTILINE,
)
_NAMES_QUESTION = re.compile(rf"{_ASKS.pattern}|text|\Aq\d*\Z", re.IGNORECASE)
_NAMES_OTHER = re.compile(
    r"answ|respuest|antwort|expla|ration|reason|difficult|type|categ|sourc|context|passage|chunk|id\Z"
    r"|\Aerror\Z|\Aa\d*\Z",
    re.IGNORECASE,
)
_BARE_NAME = re.compile(r"\b([^\W\d]\w{0,40})\s{0,9}:")
#: A string ends at its quote, unless that is escaped, followed by what may follow a string.
_CLOSING = {
    left: re.compile(rf"(?<!\\)(?:\\\\)*{right}(?=\s*(?:[,\]}}:]|\Z)|\s+[\"'“‘]|\s{{79}})")
    for left, right in zip("\"'“‘", "\"'”’", strict=True)
}


def _from_json(text: str) -> list[str]:
    """Return the questions of JSON, JSON lines or a Python literal, whole or cut off.

    Strings under a name that says question are taken; where there is none, all but those whose name
    says something else. A name may be the question itself.
    """
    start = _OPENING.search(text)
    if start is None:
        return []
    found = list(_strings(text[start.end() :]))
    keys = [path[-1] for path, _ in found if path and is_question(path[-1])]
    if keys:
        return list(dict.fromkeys(keys))
    asked = [value for path, value in found if path and _NAMES_QUESTION.search(path[-1])]
    others = [pair for pair in found if not pair[0] or not _NAMES_OTHER.search(pair[0][-1])]
    below = [value for path, value in others if any(map(_NAMES_QUESTION.search, path))]
    return asked or below or [value for _, value in others]


def _strings(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (names that lead to it, string) of every string that is closed."""
    names: list[str] = []  # of what is open; empty where it has none
    name, place = "", 0
    while place < len(text):
        character = text[place]
        if character in "[{":
            names.append(name)
            name = ""
        elif character in "]}":
            if names:
                names.pop()
            name = ""
        elif character in _CLOSING:
            end = _CLOSING[character].search(text, place + 1)
            if end is None:
                return  # cut off
            value, place = _unescaped(text[place + 1 : end.end() - 1]), end.end() - 1
            if text[place + 1 :].lstrip()[:1] == ":":
                name = value
            else:
                yield tuple(each for each in (*names, name) if each), value
        elif bare := _BARE_NAME.match(text, place):
            name, place = bare[1], bare.end() - 1
        place += 1


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text.replace("\\'", "'").replace('\\"', '"').replace("\\n", "\n")


_KEYWORDS_KEPT = 8  # small models do not stop
_DANGLING = (
    "a an and as at by for from if in is it its of on or our that the their there to we with "
    "y o de del la el los las en por para con que et ou le les des du au un une dans pour avec "
    "und oder der die das den dem des im in am von mit für zu ein eine"
)


def first_keywords(line: str) -> str:
    """Return the beginning of a line that was to be a few keywords."""
    first = line.replace(".", ";").split(";")[0].strip()
    line = first if len(first.split()) > 1 else line
    kept = line.split()[:_KEYWORDS_KEPT]
    while len(kept) > 2 and kept[-1].casefold() in _DANGLING.split():
        kept.pop()
    return " ".join(kept)
