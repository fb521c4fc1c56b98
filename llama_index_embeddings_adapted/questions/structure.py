"""Pairs that documents already contain: titles, headings, questions of FAQ pages, summary lines."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode

from llama_index_embeddings_adapted.data.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.errors import DatasetError
from llama_index_embeddings_adapted.questions.answers import clean
from llama_index_embeddings_adapted.questions.filters import (
    QUESTION_MARKS,
    Candidate,
    copied,
    refers_to_passage,
    too_long,
    too_short,
    words,
)
from llama_index_embeddings_adapted.questions.options import GenerationOptions
from llama_index_embeddings_adapted.questions.selection import Dropped, QuestionReport, select

TITLE_KEYS = ("title", "document_title", "page_title", "Title", "heading", "name")
SUMMARY_KEYS = ("summary", "section_summary", "description", "abstract", "subtitle")
STRUCTURE_FILTERS = (too_long, too_short, refers_to_passage, copied)

_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(?P<text>\S.*?)[ \t]*#*[ \t]*$", re.MULTILINE)
_UNDERLINED = re.compile(r"^(?P<text>\S[^\n]{1,120})\n(?:={3,}|-{3,}|~{3,})[ \t]*$", re.MULTILINE)
_QUESTION_LINE = re.compile(
    rf"^[ \t]*(?:\*\*|__)?(?:\d+[.)]|[QF]\s*\d*[:.])?\s*(?P<text>[^\n]{{8,200}}?[{QUESTION_MARKS}])"
    r"(?:\*\*|__)?[ \t]*$",
    re.MULTILINE,
)
_MARKS = (_HEADING, _UNDERLINED, _QUESTION_LINE)
_ANSWER_LABEL = re.compile(
    r"\A\s*(?:A|Answer|R|Antwort|Réponse|Respuesta)\s*[:.]\s*", re.IGNORECASE
)
_FEWEST_BODY_WORDS = 8
_COMMON = 3  # documents with one heading, from which on it says nothing about any of them
_SUMMARY_WORDS = range(4, 31)


@dataclass(frozen=True)
class _Section:
    """A part of a document and the line above it; ``heading`` is empty for what precedes any."""

    heading: str
    body: str


def pairs_from_structure(nodes: Sequence[BaseNode], **options: Any) -> EmbeddingQAFinetuneDataset:
    """Make pairs from what documents already contain, without an LLM.

    A title asks for the document's sections, a heading for its section, a question of an FAQ page
    for the text below it, a summary (in the metadata, or a first line apart) for the rest. What
    became a query is taken out of the document: a query that its document quotes teaches nothing.

    Args:
        nodes: Documents or nodes, best whole pages: Markdown, reStructuredText or plain text.
            Titles and summaries are also taken from metadata.
        options: Fields of
            :class:`GenerationOptions` that concern
            filters: ``embed_model``, ``round_trip_k``, ``generic_matches``, ``near_duplicate``, ….

    Returns:
        The dataset, with a ``report``. A document has its node's id, or that and ``#2``, ``#3``, …
        for further sections.

    Raises:
        OptionError: An option out of range.
        DatasetError: No node has a title, a heading, a question or a summary line over a body.
    """
    began = time.perf_counter()
    chosen = GenerationOptions.of({"filters": STRUCTURE_FILTERS, **options})
    corpus: dict[str, str] = {}
    candidates: list[Candidate] = []
    relevant: dict[str, list[str]] = {}
    for node in nodes:
        for query, documents in _pairs(node, corpus):
            candidate = Candidate(query, documents[0], corpus[documents[0]])
            candidates.append(candidate)
            relevant[candidate.query_id] = documents
    if not candidates:
        raise DatasetError(
            f"None of {len(nodes)} nodes has a title, heading, question or summary line above a "
            "text. Pass whole pages with their headings, or have an LLM write questions: "
            "generate_qa_embedding_pairs."
        )
    common = {text for text, n in Counter(map(_plain, candidates)).items() if n >= _COMMON}
    kept, dropped, cost = select(
        [c for c in candidates if _plain(c) not in common], corpus, chosen, most=len(candidates)
    )
    dropped += [Dropped(c, "generic_heading") for c in candidates if _plain(c) in common]
    report = QuestionReport(
        tuple(kept),
        tuple(dropped),
        passages=len(corpus),
        seconds=time.perf_counter() - began,
        base=cost,
    )
    if not kept:
        raise DatasetError(f"Not one pair was kept of {report.written} found.\n{report}")
    queries = {candidate.query_id: candidate.text for candidate in kept}
    dataset = EmbeddingQAFinetuneDataset(queries, corpus, {q: relevant[q] for q in queries})
    return dataset.reported(report)


def _pairs(node: BaseNode, corpus: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (query, document ids) of a node, and put its documents into the corpus."""
    title, summary, text = _taken_apart(node)
    sections = list(_sections(text))
    if sections and not _is_body(sections[0].body):
        title = title or sections[0].heading
    sections = [section for section in sections if _is_body(section.body)]
    if len(sections) == 1 and not sections[0].heading and not summary:
        line, body = _summary_line(sections[0].body)
        summary, sections = line, [_Section("", body)]
    ids = [node.node_id if n == 1 else f"{node.node_id}#{n}" for n in range(1, len(sections) + 1)]
    corpus.update(zip(ids, (section.body for section in sections), strict=True))
    whole = [(query, ids) for query in dict.fromkeys((title, summary)) if query and ids]
    yield from ((clean(query), documents) for query, documents in whole if clean(query))
    for section, document in zip(sections, ids, strict=True):
        if clean(section.heading) and section.heading != title:
            yield clean(section.heading), [document]


def _taken_apart(node: BaseNode) -> tuple[str, str, str]:
    """Return title, summary, and the text that would be embedded without them."""
    title, summary = (
        next((str(node.metadata[key]) for key in keys if node.metadata.get(key)), "")
        for keys in (TITLE_KEYS, SUMMARY_KEYS)
    )
    bare = node.model_copy()
    hidden = [*bare.excluded_embed_metadata_keys, *TITLE_KEYS, *SUMMARY_KEYS]
    bare.excluded_embed_metadata_keys = hidden
    return title, summary, bare.get_content(MetadataMode.EMBED)


def _sections(text: str) -> Iterator[_Section]:
    """Split a text at its headings and question lines."""
    marks = sorted(
        (match for form in _MARKS for match in form.finditer(text)), key=lambda m: m.start()
    )
    begin, heading = 0, ""
    for mark in marks:
        if mark.start() < begin:
            continue  # inside the heading before
        if heading or text[begin : mark.start()].strip():
            yield _Section(heading, _body(text[begin : mark.start()]))
        begin, heading = mark.end(), mark["text"].strip()
    yield _Section(heading, _body(text[begin:]))


def _body(text: str) -> str:
    return _ANSWER_LABEL.sub("", text).strip()


def _summary_line(text: str) -> tuple[str, str]:
    """Return the first line and the rest, where the line stands apart and the rest is longer."""
    first, _, rest = text.partition("\n\n")
    count = len(words(first))
    apart = (
        "\n" not in first.strip() and count in _SUMMARY_WORDS and first.lstrip()[:1] not in "-*|>"
    )
    if apart and len(words(rest)) >= max(_FEWEST_BODY_WORDS, 2 * count):
        return first.strip(), rest.strip()
    return "", text


def _is_body(text: str) -> bool:
    return len(words(text)) >= _FEWEST_BODY_WORDS


def _plain(candidate: Candidate) -> str:
    return " ".join(words(candidate.text))
