"""Pairs that documents already contain: titles, headings, questions of FAQ pages, summary lines."""

from __future__ import annotations

import re
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode
from markdown_it import MarkdownIt
from markdown_it.token import Token

from ..data.dataset import EmbeddingQAFinetuneDataset
from ..errors import DatasetError
from .answers import QUESTION_MARKS, clean
from .filters import Candidate, copied, refers_to_passage, too_long, too_short, words
from .options import GenerationOptions, corpus_of, nodes_of
from .selection import Dropped, QuestionReport, select

TITLE_KEYS = ("title", "document_title", "page_title", "Title", "heading", "name")
SUMMARY_KEYS = ("summary", "section_summary", "description", "abstract", "subtitle")
STRUCTURE_FILTERS = (too_long, too_short, refers_to_passage, copied)

_QUESTION_LINE = re.compile(
    rf"^[ \t]*(?:\*\*|__)?(?:\d+[.)]|[QF]\s*\d*[:.])?\s*(?P<text>[^\n]{{8,200}}?[{QUESTION_MARKS}])"
    r"(?:\*\*|__)?[ \t]*$"
)
#: Headings of reStructuredText, AsciiDoc, wikis and Textile, which Markdown does not know.
_OTHER_HEADINGS = re.compile(
    r"^(?:={1,6}[ \t]+(?P<equals>\S.*?)(?:[ \t]+=+)?|h[1-6]\.[ \t]+(?P<textile>\S.*)"
    r"|(?P<under>\S.{1,118}\S)\n(?P<mark>[~^\"'*+#])(?P=mark){2,})[ \t]*$",
    re.MULTILINE,
)
_FRONT_MATTER = re.compile(
    r"\A\ufeff?(---|\+\+\+)[ \t]*\n(?P<fields>.*?)\n\1[ \t]*(?:\n|\Z)", re.DOTALL
)
_FIELD = re.compile(
    r"^(?P<key>\w+)\s*[:=]\s*(?P<quote>[\"']?)(?P<value>\S.*?)(?P=quote)\s*$", re.MULTILINE
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_WHOLE_PAGE = re.compile(r"\A\s*<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
_ANCHOR = re.compile(r"\s*(?:\{[#.:][^}]*\}|:\w+:)\s*$")
_SECTION_NUMBER = re.compile(r"^(?:§\s*)?\d{1,3}(?:\.\d{1,3})+\.?\s+(?=[^\W\d_])")
_LONGEST_HEADING = 200
_MARKDOWN = MarkdownIt("commonmark").enable("table")
_ANSWER_LABEL = re.compile(
    r"\A\s*(?:A|Answer|R|Antwort|Réponse|Respuesta)\s*[:.]\s*", re.IGNORECASE
)
_FEWEST_BODY_WORDS = 8
_COMMON = 3  # documents with one heading, from which on it says nothing about any of them
_SUMMARY_WORDS = range(4, 31)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6", "summary", "dt", "title"))
_HIDDEN = frozenset(("script", "style", "nav", "template"))
_BLOCKS = frozenset(
    ("p", "div", "section", "article", "li", "ul", "ol", "dl", "dd", "br", "tr", "table", "pre",
     "body", "head", "main", "header", "footer", "details", "blockquote", "html")
)  # fmt: skip


def pairs_from_structure(
    nodes: Sequence[BaseNode], *, keep_nodes: bool = False, **options: Any
) -> EmbeddingQAFinetuneDataset:
    """Make pairs from what documents already contain, without an LLM.

    A title asks for the document's sections, a heading for its section, a question of an FAQ page
    for the text below it, a summary (in the metadata, or a first line apart) for the rest. What
    became a query is taken out of the document: a query that its document quotes teaches nothing.

    Args:
        nodes: Documents or nodes, best whole pages: Markdown, reStructuredText or plain text.
            Titles and summaries are also taken from metadata.
        keep_nodes: The corpus is the nodes as they are, under their ids, so that the pairs combine
            with others about them and fit an index of them.
        options: Fields of :class:`GenerationOptions` that concern filters: ``embed_model``,
            ``round_trip_k``, ``generic_matches``, ``near_duplicate``, ….

    Returns:
        The dataset, with a ``report`` and the provenance ``"structure"``. A document has its node's
        id, or that and ``#2``, ``#3``, … for further sections. Where no node has a title, heading,
        question or summary line over a body, that is a DatasetError.
    """
    began, nodes = time.perf_counter(), nodes_of(nodes)
    chosen = GenerationOptions.of({"filters": STRUCTURE_FILTERS, **options})
    corpus: dict[str, str] = {}
    candidates: list[Candidate] = []
    relevant: dict[str, list[str]] = {}
    whole = corpus_of(nodes) if keep_nodes else {}
    for node in nodes:
        for query, documents in _pairs(node, corpus):
            candidate = Candidate(query, documents[0], corpus[documents[0]])
            candidates.append(candidate)
            relevant[candidate.query_id] = [node.node_id] if keep_nodes else documents
    if not candidates:
        raise DatasetError(
            f"None of {len(nodes)} nodes has a title, heading, question or summary line above a "
            "text. Pass whole pages with their headings, or have an LLM write questions: "
            "generate_qa_embedding_pairs."
        )
    common = {text for text, n in Counter(map(_plain, candidates)).items() if n >= _COMMON}
    own, most = [c for c in candidates if _plain(c) not in common], len(candidates)
    kept, dropped, cost = select(own, corpus, chosen, most=most)
    dropped += [Dropped(c, "generic_heading") for c in candidates if _plain(c) in common]
    found, seconds = (tuple(kept), tuple(dropped)), time.perf_counter() - began
    report = QuestionReport(*found, passages=len(corpus), seconds=seconds, base=cost)
    if not kept:
        raise DatasetError(f"Not one pair was kept of {report.written} found.\n{report}")
    queries = {candidate.query_id: candidate.text for candidate in kept}
    judged = {query: relevant[query] for query in queries}
    dataset = EmbeddingQAFinetuneDataset(queries, whole or corpus, judged)
    return dataset.with_provenance("structure").reported(report)


def with_structure(
    dataset: EmbeddingQAFinetuneDataset, nodes: Sequence[BaseNode], options: GenerationOptions
) -> EmbeddingQAFinetuneDataset:
    """Add to questions about nodes what their titles and headings ask, where there are any."""
    own = {**vars(options), "filters": STRUCTURE_FILTERS}
    try:
        found = pairs_from_structure(nodes, keep_nodes=True, **own)
    except DatasetError as none:
        warnings.warn(f"No pairs from structure: {none}", stacklevel=4)
        return dataset
    return dataset.merged(found).reported(dataset.report.plus(found.report))


def _pairs(node: BaseNode, corpus: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (query, document ids) of a node, and put its documents into the corpus."""
    title, summary, text = _taken_apart(node)
    sections = _sections(text)
    if sections and not _is_body(sections[0][1]):
        title = title or sections[0][0]
    sections = [(heading, body) for heading, body in sections if _is_body(body)]
    if len(sections) == 1 and not sections[0][0] and not summary:
        summary, body = _summary_line(sections[0][1])
        sections = [("", body)]
    ids = [node.node_id if n == 1 else f"{node.node_id}#{n}" for n in range(1, len(sections) + 1)]
    corpus.update(zip(ids, (body for _, body in sections), strict=True))
    for query in dict.fromkeys((title, summary)):
        if ids and clean(query):
            yield clean(query), ids
    for (heading, _), document in zip(sections, ids, strict=True):
        if clean(heading) and heading != title:
            yield clean(heading), [document]


def _taken_apart(node: BaseNode) -> tuple[str, str, str]:
    """Return title, summary, and the text that would be embedded without them."""
    hidden = [*node.excluded_embed_metadata_keys, *TITLE_KEYS, *SUMMARY_KEYS]
    bare = node.model_copy(update={"excluded_embed_metadata_keys": hidden})
    text, fields = bare.get_content(MetadataMode.NONE), dict[str, str]()
    if front := _FRONT_MATTER.match(text):
        fields = {match["key"]: match["value"] for match in _FIELD.finditer(front["fields"])}
        text = text[front.end() :]
    title, summary = (
        next((str(each[k]) for each in (node.metadata, fields) for k in keys if each.get(k)), "")
        for keys in (TITLE_KEYS, SUMMARY_KEYS)
    )
    text = _COMMENT.sub("", text)
    text = _OTHER_HEADINGS.sub(lambda m: f"## {m['equals'] or m['textile'] or m['under']}\n", text)
    bare.set_content(text)
    return title, summary, bare.get_content(MetadataMode.EMBED)


def _sections(text: str) -> list[tuple[str, str]]:
    """Split a text at its headings and question lines: (heading, body), the first without one."""
    parts: list[tuple[str, list[str]]] = [("", [""])]
    for heading, line in _lines(text):
        if heading:
            parts.append((heading, []))
        else:
            parts[-1][1].append(line)
    if len(parts) > 1 and not "".join(parts[0][1]).strip():
        del parts[0]
    return [(title, _ANSWER_LABEL.sub("", "\n".join(body)).strip()) for title, body in parts]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield (heading, "") for headings and questions, ("", line) for every other line."""
    if _WHOLE_PAGE.match(text):
        yield from _html_lines(text)
        return
    lines = text.split("\n")
    tokens = _MARKDOWN.parse(text)
    done = 0
    for place, token in enumerate(tokens):
        if token.level or token.map is None or token.map[0] < done:
            continue
        start, done = token.map
        if token.type == "heading_open":
            heading = _heading_text(tokens[place + 1])
            short = 0 < len(heading) <= _LONGEST_HEADING
            yield from [(heading, "")] if short else [("", line) for line in lines[start:done]]
        elif token.type == "html_block":
            yield from _html_lines(token.content)
        elif token.type in ("fence", "code_block"):
            yield from (("", line) for line in lines[start:done])
        else:
            yield from map(_asked, lines[start:done])
        yield "", ""


def _asked(line: str) -> tuple[str, str]:
    match = _QUESTION_LINE.match(line)
    return (match["text"], "") if match else ("", line)


def _heading_text(inline: Token) -> str:
    """Return a heading without links, emphasis, anchors, numbers and pictograms."""
    parts = (
        child.content
        if child.type in ("text", "code_inline")
        else " " * child.type.endswith("break")
        for child in inline.children or ()
    )
    text = _ANCHOR.sub("", "".join(parts)).strip()
    text = "".join(c for c in text if unicodedata.category(c) not in ("So", "Sk") and c != "\ufe0f")
    return _SECTION_NUMBER.sub("", " ".join(text.split()))


class _Html(HTMLParser):
    """Reads HTML as lines, headings apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self._text = ""
        self._heading = self._hidden = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden = self._hidden or tag in _HIDDEN
        if tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._heading = tag in _HEADINGS

    def handle_endtag(self, tag: str) -> None:
        self._hidden = self._hidden and tag not in _HIDDEN
        if tag in _BLOCKS or tag in _HEADINGS:
            self.flush()
            self._heading = False

    def handle_data(self, data: str) -> None:
        self._text += "" if self._hidden else data

    def flush(self) -> None:
        text, self._text = self._text, ""
        if self._heading and text.strip():
            self.lines.append((" ".join(text.split()), ""))
        else:
            self.lines += map(_asked, text.split("\n"))


def _html_lines(text: str) -> list[tuple[str, str]]:
    parser = _Html()
    parser.feed(text)
    parser.close()
    parser.flush()
    return parser.lines


def _summary_line(text: str) -> tuple[str, str]:
    """Return the first line and the rest, where the line stands apart and the rest is longer."""
    first, _, rest = text.partition("\n\n")
    count = len(words(first))
    is_line = "\n" not in first.strip() and first.lstrip()[:1] not in "-*|>"
    longer = len(words(rest)) >= max(_FEWEST_BODY_WORDS, 2 * count)
    if is_line and longer and count in _SUMMARY_WORDS:
        return first.strip(), rest.strip()
    return "", text


def _is_body(text: str) -> bool:
    return len(words(text)) >= _FEWEST_BODY_WORDS


def _plain(candidate: Candidate) -> str:
    return " ".join(words(candidate.text))
