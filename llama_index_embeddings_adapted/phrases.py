"""What LLMs say instead of a question, and how they point at a passage, in the usual languages."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: At the beginning of an answer: refusals, offers to help, introductions.
_OPENINGS = (
    # English
    r"(?:i\s?['’]?\s?a?m|we\s?['’]?\s?a?re) (?:so |very )?(?:sorry|afraid|unable|ready|happy|glad)",
    r"(?:i\s?['’]?\s?a?m) (?:an ai|here to)|sorry[,.! ]|(?:i|we) apologi[sz]e",
    r"(?:i|we) (?:can(?:no|['’])t|can not|could not|would need|need more)",
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


def is_remark(text: str) -> bool:
    """Return whether a text is a refusal, an introduction or a remark about the task."""
    return _OPENING.match(text) is not None or _REMARK.search(text) is not None


def refers_to_text(text: str) -> bool:
    """Return whether a text points at a passage that its reader does not have."""
    return _REFERENCE.search(text) is not None


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_OPENING, _REMARK, _REFERENCE = map(_any, (_OPENINGS, _REMARKS, _REFERENCES))
