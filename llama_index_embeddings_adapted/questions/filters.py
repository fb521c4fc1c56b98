"""Which questions are no good, told from their text: each filter is a function, its name a reason.

A filter takes a :class:`Candidate` and returns whether to drop it.
``generate_qa_embedding_pairs(filters=[*TEXT_FILTERS, mine])`` adds one of your own; its name is
counted in the report. What stands in the passage is never held against a question.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .answers import is_question

#: At the beginning of an answer: refusals, offers to help, introductions.
_OPENINGS = (
    # English
    r"(?:i\s?['’]?\s?a?m|we\s?['’]?\s?a?re) (?:so |very )?(?:sorry|afraid|unable|ready|happy|glad)",
    r"(?:i\s?['’]?\s?a?m) (?:an ai|here to)|sorry[,.! ]|(?:i|we) apologi[sz]e",
    r"(?:i|we) (?:can(?:no|['’])t|can not|could not) (?:\w+ ){0,3}?(?:answer|assist|comply|create"
    r"|do that|fulfil\w*|generate|help|provide|write)\b",
    r"(?:i|we) (?:would need|need more)",
    r"(?:i|we) (?:do not|don['’]t) (?:have|see|know)|as an? (?:ai|language model|assistant)",
    r"(?:sure|certainly|of course|absolutely|okay|ok|yes|no|great)[,!.:](?: |\Z)",
    r"here(?:['’]s| is| are)\b|(?:let me|i['’]ll|i will|i['’]d)\b|(?:hello|hi|hey)(?: there)?[,!.]",
    r"(?:the|these|those) (?:following )?(?:are |questions?|queries|keywords?)\b.*:\Z",
    r"how can i (?:help|assist)|what(?:['’]s| is) your question|note: |thank you",
    r"you(?:['’]ve| have) (?:provided|given)|the answer (?:is|lies|to)\b",
    r"please (?:provide|give|share|let me|specify|clarify)",
    # Spanish, Portuguese, Italian, French
    r"lo siento|no puedo|aquí (?:tienes|están|hay)|claro[,!]|por supuesto|como (?:modelo|ia)",
    r"desculpe|não posso|aqui estão|claro que|mi dispiace|non posso|ecco\b|certo[,!]",
    r"je (?:suis désolée?|ne peux|m['’]excuse)|désolée?\b|voici\b|bien sûr|en tant qu",
    # German, Dutch, Russian
    r"es tut mir leid|ich kann\b.*\bnicht|hier (?:ist|sind)\b|natürlich[,!]|als ki\b|het spijt me",
    r"извините|я не могу|к сожалению|вот |конечно",
    # Chinese, Japanese, Korean
    r"对不起|抱歉|很抱歉|我(?:无法|不能|是一个)|作为(?:一个)?(?:ai|人工智能|语言模型)|以下是|好的[,，!！]",
    r"申し訳|すみません|以下は|以下に|죄송|다음은",
    # Hindi, Arabic, Hebrew
    r"आपकी माफ़|क्षमा|آسف|عذر[اً]|لا أستطيع|إليك|סליחה|אני לא יכול",
)

#: Anywhere: remarks about the task.
_REMARKS = (
    r"\bas an ai\b|language model|\bassist(?:ant|ance)\b.*\b(?:today|you)\b",
    r"your (?:next )?question|(?:this|the) question\b|system prompt",
    r"\bquestions? (?:above|below|that)\b.*\bpassage",
    r"\bmy (?:next )?(?:response|answer|instructions)\b|\bmore concise\b",
    r"\b(?:write|generate|create|rephrase|rewrite|summari[sz]e|translate|paraphrase)\b"
    r".*\b(?:question|query|queries|keyword|sentence|passage|paragraph|text)",
    r"\b(?:avoid|ensure|make sure|focus on|do not|don['’]t)\b.*\b(?:questions?|queries|passage)\b",
)

_ENGLISH_PARTS = (
    "passages?|texts?|contexts?|excerpts?|paragraphs?|articles?|documents?|sections?|snippets?"
    "|chapters?|statements?|tables?|clauses?|reports?|contents?|pages?|materials?|sentences?"
    "|attachments?|information|data|agreements?|contracts?|websites?|study|studies|papers?"
    "|stories|story|abstracts?|definitions?|figures?|lists?|provisions?|appendix|example"
)

#: References to something that only the writer has before their eyes.
_REFERENCES = (
    # English
    rf"\b(?:this|these|that) (?:\w+ )?(?:{_ENGLISH_PARTS})\b",
    rf"\bthe (?:above|given|following|provided|mentioned) (?:\w+ )?(?:{_ENGLISH_PARTS})\b",
    r"\b(?:in|of|from|to|by|does|do|is|can|with|for|about) the"
    r" (?:passage|text|context|excerpt|paragraph|snippet|abstract)\b",
    r"\bthe (?:passage|excerpt|snippet|author(?:['’]?s)?)\b|\bin this context\b",
    r"\bthe (?:\d+\w*|first|second|third|last|next) (?:paragraph|sentence|section)\b",
    r"\baccording to the (?:article|document|author|information|report|study)\b",
    r"\b(?:mentioned|described|discussed|stated|listed) (?:above|below|here)\b",
    r"\bthe purpose of (?:this|it)\b",
    # Spanish, French, Italian, Portuguese
    r"\b(?:est[aeo]|el|del|al) (?:pasaje|texto|contexto|fragmento|párrafo|artículo|documento)\b",
    r"\b(?:cet?|cette|le|du|au|l['’]) ?(?:passage|texte|extrait|paragraphe|contexte|article)\b",
    r"\b(?:questo|il|del|nel|dal) (?:passaggio|testo|brano|contesto|paragrafo|articolo)\b",
    r"\b(?:est[ea]|o|do|no|neste|deste) (?:trecho|texto|contexto|parágrafo|artigo|documento)\b",
    # German, Dutch, Russian
    r"\b(?:diese[rsmn]?|de[rmn]|das|des|im|dem|laut|vorliegende[nrsm]?)"
    r" (?:texte?s?|abschnitte?s?|passage|absatz(?:es)?|kontext|auszugs?|artikels?|dokuments?)\b",
    r"\b(?:deze|de|dit|het) (?:passage|tekst|alinea|artikel|fragment)\b",
    r"(?:этот|этом|этого|данн\w+|приведённ\w+|выше) (?:текст|отрыв|абзац|документ|стать)\w*",
    r"\bв тексте\b",
    # Chinese, Japanese, Korean
    r"(?:本|这|這|该|該|上述|以上|给定)(?:篇|段|个|個)?的?(?:文|段落|文章|文本|上下文|内容)",
    r"文中|根据(?:上文|文本|文章|段落)|(?:この|本|上記の?|次の)(?:文章|文|段落|テキスト|記事|文脈)",
    r"(?:이|본|위) ?(?:글|문장|단락|본문|지문|텍스트)",
    # Arabic, Hebrew, Hindi
    r"(?:هذا|هذه|في) (?:ال)?(?:نص|مقطع|فقرة|سياق|مقال)\w*|(?:הטקסט|הקטע|הפסקה)\b",
    r"(?:इस|उपरोक्त) (?:अनुच्छेद|पाठ|गद्यांश|लेख)",
)

_BEFORE = {"in", "of", "from", "to", "by", "does", "do", "is", "can", "with", "for", "about"}

_OPENING, _REMARK, _REFERENCE = (
    re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    for patterns in (_OPENINGS, _REMARKS, _REFERENCES)
)

#: Scripts that put no space between words, or none that helps: each character counts as one.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_UNSPACED_RUN = re.compile(rf"[{_UNSPACED}]+")


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

    @property
    def query_id(self) -> str:
        """The id of the question: the same for the same text about the same document."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.document}\0{self.text}"))


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case; in scripts without spaces, its characters."""
    return _WORD.findall(text.casefold())


def is_unspaced(text: str) -> bool:
    """Return whether most letters of a text are of scripts without spaces between words."""
    return sum(map(len, _UNSPACED_RUN.findall(text))) > sum(map(str.isalpha, text)) / 2


def _shingles(text: str) -> frozenset[str]:
    """Return the words of a text; in scripts without spaces, runs of three characters."""
    found = set(re.findall(rf"[^\W{_UNSPACED}]+", text.casefold()))
    for run in _UNSPACED_RUN.findall(text):
        found |= {run[start : start + 3] for start in range(max(1, len(run) - 2))}
    return frozenset(found)


#: Frequent words of two letters and more; what two languages share tells nothing between them.
_LITTLE_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(text.split())
    for language, text in {
        "en": "the of and is what how does to are was which with for on why when who that by did "
        "an can be do if must should from where it at not has have or my you in as this these its "
        "into about all so no new only any me us am up but than then will would their they we he "
        "she his her were been one per de la en du des den der die man war era",
        "es": "el los las qué cuál cómo es son para por una del con se cuáles dónde cuándo quién "
        "la de en que un si puede hay no su más al antes lo le como esta este desde entre",
        "fr": "le les des est quel quelle comment pour une du et dans sont quelles avec où qui la "
        "de que un en si peut faut au par sur ne pas on ou il elle ce cette aux plus",
        "de": "der die das ist was wie und für ein eine den von mit wird welche sind warum wer zu "
        "im in dem des man kann wo wann nicht auf es bei nach ich oder aus als an",
        "it": "il gli è quale come per una di che della con sono nel perché dove quando chi cosa "
        "la le un si può in del quanto non da più al dei alla delle lo se",
        "pt": "os qual como é são para uma do da com não quais onde quando quem por que em ao se "
        "um de no na pode as dos mais ou pelo pela seu sua",
        "nl": "het een van is wat hoe voor de zijn met welke waarom wie wordt en op niet naar in "
        "ik waar moet kan of te dan als bij door uit aan om",
        "da": "og er det på hva hvad hvordan hvor med til en et som for av af ikke kan jeg der den "
        "når hvilken skal fra hvis om at de",
        "sv": "och är det på vad hur var med till en ett som för av inte kan jag den när vilken "
        "ska från om att de",
        "pl": "na jak jest co gdzie do się nie kiedy jaki dlaczego czy po od jeśli dla oraz",
        "tr": "ve bir bu ne nasıl nerede için ile mi mı hangi kim neden ise olan da de",
    }.items()
}
_CLEAR = 2  # little words of one language that are no chance


def _script(text: str) -> str:
    """Return the script of most letters, such as ``"LATIN"``; Chinese and Japanese are one."""
    letters = filter(str.isalpha, text[:1000])
    names = Counter(unicodedata.name(each, "?").split(" ", 1)[0].split("-")[0] for each in letters)
    script = names.most_common(1)[0][0] if names else ""
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script


def near_duplicates(texts: Sequence[str], *, threshold: float = 0.8) -> dict[int, int]:
    """Return the rows of near-duplicates of earlier texts → the rows of the first they repeat.

    Their sets of words have a Jaccard similarity of at least ``threshold``, in (0, 1]. A text that
    differs in a number is another question. Source: prefix filtering, Chaudhuri et al. 2006: of
    sets that overlap enough, the rarest words cannot all differ; work grows about linearly.
    """
    sets = [_shingles(text) for text in texts]
    frequency = Counter(word for each in sets for word in each)
    index: dict[tuple[frozenset[str], str], list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for row, mine in enumerate(sets):
        rarest = sorted(mine, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(mine) - math.ceil(threshold * len(mine)) + 1]
        numbers = frozenset(word for word in mine if any(map(str.isdecimal, word)))
        near = sorted({other for word in prefix for other in index[numbers, word]})
        both = ((other, mine & sets[other], mine | sets[other]) for other in near)
        twin = next((o for o, same, either in both if len(same) >= threshold * len(either)), None)
        if twin is not None:
            found[row] = twin
            continue
        for word in prefix:
            index[numbers, word].append(row)
    return found


Filter = Callable[[Candidate], bool]

FEWEST_WORDS, MOST_WORDS, MOST_KEYWORDS, MOST_CHARACTERS = 2, 60, 12, 400
_CHARACTERS_PER_WORD = 5
_SHINGLE = 5  # words in a row that are no chance
_COPIED_RUN, _COPIED_SHARE = 6, 0.8

_CODE = re.compile(r"[{}<>\\|`=;$^~\[\]]")
_SENTENCE_MARKS = ".,:;!?\"'“”„‘’«»()`…。？！؟"
_STATEMENT_ENDS = tuple(".။។。．।!！:：,、;…")


def not_a_query(candidate: Candidate) -> bool:
    """Code, markup, mostly digits or signs not of the passage, or a phrase over and over."""
    text = candidate.text.replace("`", "")
    if not any(character.isalpha() for character in text):
        return True
    parts = [part for part in text.split() if not _stands_in(part, candidate.passage)]
    solid = "".join(parts)
    letters = sum(each.isalpha() or unicodedata.category(each)[0] == "M" for each in solid)
    marked = sum(_CODE.search(part) is not None for part in parts)
    if letters < 0.5 * len(solid) or marked > max(1, len(text.split()) // 3):
        return True
    tokens = words(text)
    return not is_unspaced(text) and len(tokens) >= 6 and len(set(tokens)) < 0.6 * len(tokens)


def statement(candidate: Candidate) -> bool:
    """No question, and ends like a sentence, or is longer than keywords or a problem are."""
    text = candidate.text.replace("`", "")
    told = candidate.style == "problem" and len(words(text)) >= 8
    ends = text.endswith(_STATEMENT_ENDS) or count_words(text) > MOST_KEYWORDS
    return ends and not told and not is_question(text)


def _stands_in(part: str, passage: str) -> bool:
    """Return whether a sign, a number or code of a question is the passage's own."""
    bare = part.strip(_SENTENCE_MARKS)
    return not bare.isalpha() and bool(bare) and bare.casefold() in passage.casefold()


def count_words(text: str) -> float:
    """Return the number of words; in scripts without spaces, about: five characters are one."""
    runs = sum(map(len, _UNSPACED_RUN.findall(text)))
    return len(words(text)) - runs + runs / _CHARACTERS_PER_WORD


def refusal(candidate: Candidate) -> bool:
    """A refusal, an offer to help, or a remark about the task, in words not of the passage."""
    own = set(words(candidate.passage))
    remarks = (words(match[0]) for match in _REMARK.finditer(candidate.text))
    return _OPENING.match(candidate.text) is not None or not all(map(own.issuperset, remarks))


def leaked(candidate: Candidate) -> bool:
    """Words of the prompt or of its examples, instead of words about the passage.

    That is five words in a row, two of them longer than four letters, that stand in the prompt and
    not in the passage, or most of the words of one of its lines.
    """
    lines, runs = _prompt_words(candidate.prompt)
    tokens = words(candidate.text)
    common = (_runs(tokens) & runs) - _runs(words(candidate.passage))
    if is_unspaced(candidate.text):
        text = candidate.text.casefold()
        return text in candidate.prompt.casefold() and text not in candidate.passage.casefold()
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
    """A reference to a passage that nobody sees, unless the passage itself speaks so."""
    own = f" {' '.join(words(candidate.passage))} "
    for match in _REFERENCE.finditer(candidate.text):
        said = words(match[0])
        said = said[1:] if said[0] in _BEFORE else said
        if f" {' '.join(said)} " not in own:
            return True
    return False


def other_language(candidate: Candidate) -> bool:
    """Another language than the passage's, as when an example is imitated too closely.

    That is where most of their letters belong to different scripts, words that both have aside; or
    where the question has little words of a language that the passage's does not have, at least two
    and over twice as many as of the passage's own. In doubt it is not.
    """
    text, passage = candidate.text, candidate.passage
    counts = Counter(words(passage))
    own = _script(" ".join(word for word in words(text) if word not in counts))
    if own != _script(passage):
        return bool(own and _script(passage))
    totals = {name: sum(counts[w] for w in known) for name, known in _LITTLE_WORDS.items()}
    expected = max(totals, key=lambda name: totals[name])
    if totals[expected] < 2 * _CLEAR:
        return False
    home, mine = _LITTLE_WORDS[expected], set(words(text))
    foreign = ((len(mine & known - home), len(mine & home - known))
               for known in _LITTLE_WORDS.values())  # fmt: skip
    return any(away >= _CLEAR and away > 2 * here for away, here in foreign)


def too_short(candidate: Candidate) -> bool:
    """Fewer than two words, or five letters."""
    letters = sum(character.isalpha() for character in candidate.text)
    tokens = words(candidate.text)
    return len(tokens) < FEWEST_WORDS or (letters < 5 and len(tokens) < 4)


def too_long(candidate: Candidate) -> bool:
    """More than 60 words or 400 characters; keywords, more than 12 words."""
    most = MOST_KEYWORDS if candidate.style == "keywords" else MOST_WORDS
    return len(candidate.text) > MOST_CHARACTERS or count_words(candidate.text) > most


#: Applied in this order; the first that objects is the reason.
_FIRST_FILTERS: tuple[Filter, ...] = (too_long, too_short, refusal, leaked, other_language)
TEXT_FILTERS = (*_FIRST_FILTERS, refers_to_passage, not_a_query, statement, copied)


def _runs(tokens: list[str]) -> frozenset[tuple[str, ...]]:
    starts = range(len(tokens) - _SHINGLE + 1)
    return frozenset(tuple(tokens[start : start + _SHINGLE]) for start in starts)


@functools.lru_cache(maxsize=64)
def _prompt_words(prompt: str) -> tuple[list[frozenset[str]], frozenset[tuple[str, ...]]]:
    lines = [frozenset(words(line)) for line in prompt.splitlines()]
    runs = [_runs(words(line)) for line in prompt.splitlines()]
    return [line for line in lines if len(line) > 1], frozenset().union(*runs)
