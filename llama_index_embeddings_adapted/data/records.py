"""Rows as people have them become a dataset: pairs, triplets, grades, logs, test sets, qrels.

Columns are found by their usual names. A passage is given by its text, or by its id where a corpus
comes with the rows. Equal texts are one query or one document.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import DatasetError, quote_some
from . import formats
from .contents import Feedback, Shown
from .reading import Omissions, plain_id, repaired

Row = Mapping[str, Any]

#: What columns are called, by role, the likeliest first; case, spaces and hyphens do not count.
NAMES: dict[str, tuple[str, ...]] = {
    "query": ("query", "question", "anchor", "user_input", "query_text", "search_query", "search",
              "q", "input", "prompt", "sentence1", "sentence_1", "text1", "premise"),
    "document": ("document", "positive", "pos", "positives", "positive_passages", "passage",
                 "passages", "positive_ctxs", "reference_contexts", "contexts", "context", "chunk",
                 "doc", "document_text", "relevant_docs", "documents", "content", "text", "answer",
                 "response", "output", "completion", "sentence2", "sentence_2", "text2",
                 "hypothesis"),
    "negative": ("negative", "neg", "negatives", "hard_negative", "hard_negatives",
                 "negative_passages", "hard_negative_ctxs", "negative_docs"),
    "grade": ("grade", "score", "relevance", "label", "rating", "rel", "similarity"),
    "thumbs": ("thumbs", "thumb", "feedback", "vote", "helpful", "clicked"),
    "clicks": ("clicks", "click_count", "count", "click"),
    "position": ("position", "rank", "shown_at"),
    "session": ("session", "session_id", "impression", "impression_id", "request_id"),
    "query_id": ("query_id", "qid", "queryid", "query-id"),
    "document_id": ("document_id", "doc_id", "docid", "corpus_id", "corpus-id", "passage_id", "pid",
                    "node_id", "chunk_id"),
    "title": ("title",),
    "provenance": ("provenance",),
}  # fmt: skip
_UP = {"up", "yes", "true", "positive", "good", "like", "liked", "helpful", "👍", "+1"}
_DOWN = {"down", "no", "false", "negative", "bad", "dislike", "disliked", "unhelpful", "👎", "-1"}
_LISTS = ("examples", "data", "rows", "records", "samples", "test_set", "testset")
_HOP = re.compile(r"^<\d+-hop>\s*")  # Ragas marks the contexts of questions that need several


@dataclass
class _Gathered:
    """What has been read of the rows so far; ids are those given, or made from the text."""

    omissions: Omissions
    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)
    grades: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    negatives: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    sources: dict[str, str] = field(default_factory=dict)
    votes: bool = False  # which add up, and of which none is no judgement

    def judge(self, query: str, document: str, grade: float) -> None:
        """Add a grade to what is known of a pair: votes add up, of grades the highest counts."""
        before = self.grades[query].get(document)
        if before is not None:
            grade = before + grade if self.votes else max(before, grade)
        self.grades[query][document] = grade

    def keep(self, texts: dict[str, str], key: str | None, text: str, mark: str) -> str:
        """Keep a text under its id; one id for two texts keeps both, the second under its own."""
        text = repaired(text)
        if key is None or texts.get(key, text) != text:
            if key is not None:
                self.omissions.add("ids that stand for two texts", key)
            key = f"{mark}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        texts[key] = text
        return key

    def document(self, value: object, key: str | None = None, title: object = None) -> str | None:
        """Return the id of a passage given by text, by id, or as an object with both."""
        if isinstance(value, Mapping):
            key = plain_id(next((value[n] for n in formats.ID if n in value), key))
            title, value = (
                value.get("title"),
                next(
                    (value[n] for n in ("text", "contents", "content", "passage") if n in value),
                    None,
                ),
            )
        named = plain_id(value)
        if named is not None and named in self.corpus and key in (None, named):
            return named
        if not isinstance(value, str) or not value.strip():
            return key if key in self.corpus else None
        text = _HOP.sub("", value).strip()
        if isinstance(title, str) and title.strip():
            text = f"{title.strip()} {text}"
        return self.keep(self.corpus, key, text, "d")


def parts_of(
    rows: Any,
    *,
    queries: Mapping[Any, str] | None = None,
    corpus: Mapping[Any, str] | None = None,
    provenance: str | None = None,
    omissions: Omissions,
    feedback: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Return the arguments of a dataset; see ``EmbeddingQAFinetuneDataset.from_records``.

    Raises:
        DatasetError: No columns of queries and documents are found, or nothing is left.
    """
    if _is_qa(rows):
        return formats.mended_qa(rows, omissions)
    known = {each.name for each in fields(Feedback)}
    reading = Feedback(**{name: options.pop(name) for name in known & set(options)})
    found = _Gathered(omissions)
    for texts, given, mark in ((found.queries, queries, "q"), (found.corpus, corpus, "d")):
        for key, text in (given or {}).items():
            if isinstance(text, str) and text.strip():
                found.keep(texts, str(key), text, mark)
            else:
                omissions.add("given texts that are empty", key)
    table = list(rows_of(rows))
    if not table:
        raise DatasetError(f"{omissions.where}: expected rows, it is empty.")
    by_id = (queries is not None, corpus is not None)
    roles = _roles(table, options, by_id=by_id, where=omissions.where)
    found.votes = bool(roles["thumbs"] or roles["clicks"])
    if feedback or (found.votes and roles["position"]):
        _read_feedback(table, roles, found, reading)
        return _finished(found)
    for number, row in enumerate(table, start=1):
        _read_row(row, roles, found, f"row {number}", provenance)
    return _finished(found)


def as_lists(
    relevant: Any, grades: Mapping[str, Mapping[str, float]] | None
) -> tuple[Any, Mapping[str, Mapping[str, float]] | None]:
    """Return relevance as lists, and the grades, where sets or dicts of grades were given."""
    if not isinstance(relevant, Mapping):
        return relevant, grades
    found = {q: docs for q, docs in relevant.items() if isinstance(docs, Mapping)}
    graded = {q: {d: g for d, g in docs.items() if g > 0} for q, docs in found.items()}
    lists = {
        q: list(graded[q]) if q in graded else sorted(docs) if isinstance(docs, Set) else docs
        for q, docs in relevant.items()
    }
    return lists, {**graded, **(grades or {})} if graded else grades


# --- rows -----------------------------------------------------------------------------------------


def rows_of(data: Any) -> Iterator[Row]:
    """Yield rows of whatever holds them: lists, data frames, tables, LlamaIndex's and Ragas' sets.

    Raises:
        DatasetError: It holds none.
    """
    for method in ("to_pylist", "to_list"):  # Arrow, Ragas
        if callable(getattr(data, method, None)):
            return rows_of(getattr(data, method)())
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas, polars
        frame = data.to_pandas() if hasattr(data, "to_pandas") else data
        return rows_of(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    if not isinstance(data, Mapping) and hasattr(data, "examples"):  # LabelledRagDataset
        return rows_of([example.model_dump(mode="json") for example in data.examples])
    if isinstance(data, Mapping):
        return _rows_of_mapping(data)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise DatasetError(f"rows: expected dicts, one per row, got {type(data).__name__}.")
    return (_row(row, number) for number, row in enumerate(data, start=1))


def _row(row: Any, number: int) -> Row:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, (list, tuple)) and len(row) in (2, 3):
        third = (
            {} if len(row) == 2 else {"negative" if isinstance(row[2], str) else "grade": row[2]}
        )
        return {"query": row[0], "document": row[1], **third}
    if hasattr(row, "model_dump"):
        return dict(row.model_dump(mode="json"))
    raise DatasetError(f"row {number}: expected a dict, got {type(row).__name__}.")


def _rows_of_mapping(data: Mapping[str, Any]) -> Iterator[Row]:
    """Yield one row, the rows of an object around a list, of columns, or of query → documents."""
    inside = next((data[name] for name in _LISTS if isinstance(data.get(name), list)), None)
    if inside is not None:
        return rows_of(inside)
    asked = [value for name, value in data.items() if _plain(name) in NAMES["query"]]
    if asked and isinstance(asked[0], str):
        return iter([data])
    if asked:
        columns = {name: column for name, column in data.items() if isinstance(column, Sequence)}
        if len({len(column) for column in columns.values()}) == 1:
            return (
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            )
    return ({"query": query, "document": documents} for query, documents in data.items())


def _is_qa(data: object) -> bool:
    return isinstance(data, Mapping) and all(
        isinstance(data.get(name), Mapping) for name in formats.OBJECTS
    )


def _plain(name: object) -> str:
    return re.sub(r"[\s\-]+", "_", str(name).strip().lower())


def _roles(
    rows: Sequence[Row],
    columns: Mapping[str, str | Sequence[str] | None],
    *,
    by_id: tuple[bool, bool],
    where: object,
) -> dict[str, list[str]]:
    """Return which columns have which role, or raise a DatasetError."""
    present = list(dict.fromkeys(name for row in rows[:1000] for name in row))
    roles: dict[str, list[str]] = {}
    taken: set[str] = set()
    for role, named in columns.items():
        if named is not None:
            roles[role] = [named] if isinstance(named, str) else list(named)
            absent = [name for name in roles[role] if name not in present]
            if absent:
                raise DatasetError(
                    f"{role}: no column {quote_some(absent)}. Columns: {quote_some(present, 20)}."
                )
            taken.update(roles[role])
    for role in ("query_id", "document_id", *NAMES):
        if role not in roles:
            free = {_plain(name): name for name in present if name not in taken}
            found = [free[_plain(name)] for name in NAMES[role] if _plain(name) in free][:1]
            if role == "negative":  # negative_1, negative_2, … of mined triplets
                found += [n for p, n in free.items() if re.fullmatch(r"neg(ative)?_?\d+", p)]
            roles[role] = list(dict.fromkeys(found))
            taken.update(found)
    if by_id[0] and not roles["query"]:
        roles["query"] = roles["query_id"]
    if by_id[1] and not roles["document"]:
        roles["document"] = roles["document_id"]
    for role in ("query", "document"):
        if not roles[role]:
            held = "queries" if role == "query" else "documents"
            call = "from_csv(path, query=…, document=…)" if isinstance(where, Path) else f"{role}=…"
            raise DatasetError(
                f"{where}: no column is known to hold {held}. Rename it to {role}, or name it: "
                f"{call}. Columns: {quote_some(present, 20) or 'none'}."
            )
    return roles


def _read_row(
    row: Row, roles: Mapping[str, list[str]], found: _Gathered, where: str, provenance: str | None
) -> None:
    query = _query_of(row, roles, found)
    if query is None:
        found.omissions.add("rows without a query", where)
        return
    grade = _grade_of(row, roles)
    if grade is None:
        found.omissions.add("rows whose grade, vote or count is no number", where)
        return
    key = plain_id(_first(row, roles["document_id"]))
    title = _first(row, roles["title"])
    values = [v for name in roles["document"] for v in _values(row.get(name))]
    documents = [
        (found.document(v, key if len(values) == 1 else None, title), g) for v, g in values
    ]
    for document, own in documents:
        if document is not None:
            found.judge(query, document, grade * own)
    if not any(document for document, _ in documents):
        found.omissions.add("rows without a document", where)
    for name in roles["negative"]:
        for value, _ in _values(row.get(name)):
            document = found.document(value)
            if document is not None:
                found.negatives[query][document] = None
    source = provenance or _source_of(row, roles)
    if source is not None:
        found.sources[query] = source


def _read_feedback(
    rows: Sequence[Row], roles: Mapping[str, list[str]], found: _Gathered, reading: Feedback
) -> None:
    """Judge documents by clicks, of which each counts the more the less its place is looked at."""
    shown: dict[tuple[str, object], list[Shown]] = {}
    for number, row in enumerate(rows, start=1):
        query, votes = _query_of(row, roles, found), _grade_of(row, roles)
        value = _first(row, roles["document"])
        document = found.document(value, plain_id(_first(row, roles["document_id"])))
        place = str(_first(row, roles["position"]) or 1)
        if query is None or document is None or votes is None or not _is_number(place):
            found.omissions.add("rows without query, document, clicks or position", f"row {number}")
            continue
        seen = shown.setdefault((query, _first(row, roles["session"])), [])
        seen.append((float(place), document, votes))
    for query, relevant, refused in reading.judged(shown, found.omissions):
        found.grades[query] = relevant
        found.negatives[query] = dict.fromkeys(refused)
        found.sources[query] = "feedback"


def _query_of(row: Row, roles: Mapping[str, list[str]], found: _Gathered) -> str | None:
    key, value = plain_id(_first(row, roles["query_id"])), _first(row, roles["query"])
    if key is None and plain_id(value) in found.queries:
        return plain_id(value)
    if roles["query"] == roles["query_id"]:
        return key if key in found.queries else None
    if not isinstance(value, str) or not value.strip():
        return key if key in found.queries else None
    return found.keep(found.queries, key, value.strip(), "q")


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _values(value: Any) -> list[tuple[Any, float]]:
    """Return texts, ids or objects with grades: of one, a list, a set, or a dict of grades."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _listed(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, Mapping) and not any(n in value for n in ("text", "contents", "passage")):
        return [
            (key, float(grade)) for key, grade in value.items() if isinstance(grade, (int, float))
        ]
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [(v, 1.0) for v in value] if isinstance(value, (list, tuple)) else [(value, 1.0)]


def _listed(text: str) -> Any:
    """Return the list that a cell of a table holds as JSON or as Python writes it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and all(isinstance(item, (str, dict)) for item in value):
            return value
    return text


def _grade_of(row: Row, roles: Mapping[str, list[str]]) -> float | None:
    """Return the grade of a row: 1 where it says nothing, below 0 where it was voted down."""
    for role in ("thumbs", "clicks", "grade"):
        value = _first(row, roles[role])
        if value is None or value == "":
            continue
        word = str(value).strip().lower()
        if word in _UP | _DOWN and not _is_number(word):
            return 1.0 if word in _UP else -1.0
        if not _is_number(word):
            return None
        number = float(word)
        if role == "thumbs":  # 1 and 0, or 1 and -1
            return 1.0 if number > 0 else -1.0
        return number
    return 1.0


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _source_of(row: Row, roles: Mapping[str, list[str]]) -> str | None:
    """Return where a query comes from, as far as a row says it."""
    told = _first(row, roles["provenance"])
    if told in formats.SOURCES:
        return str(told)
    author = row.get("query_by")  # LlamaIndex
    if isinstance(author, Mapping):
        return {"ai": "llm", "human": "human"}.get(str(author.get("type")))
    if "synthesizer_name" in row or "evolution_type" in row:  # Ragas
        return "llm"
    return "feedback" if roles["thumbs"] or roles["clicks"] else None


def _finished(found: _Gathered) -> dict[str, Any]:
    """Return the arguments of a dataset; what was said not to be relevant is a hard negative."""
    judged = {
        query: {d: 1.0 if found.votes and grade >= 1 else grade for d, grade in grades.items()}
        for query, grades in found.grades.items()
    }
    parts = formats.fitted(found.queries, found.corpus, judged, found.omissions)
    negatives: dict[str, list[str]] = {}
    for query in parts["queries"]:
        refused = [d for d, g in judged[query].items() if g < 0 or (g == 0 and not found.votes)]
        wrong = dict.fromkeys([*found.negatives.get(query, ()), *refused])
        mined = [d for d in wrong if d not in parts["relevant_docs"][query]]
        if mined:
            negatives[query] = mined
    sources = {q: s for q, s in found.sources.items() if q in parts["queries"]}
    return {**parts, "hard_negatives": negatives or None, "provenance": sources or None}
