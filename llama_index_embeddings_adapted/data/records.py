"""Rows as people have them become a dataset: pairs, triplets, grades, logs, test sets, qrels.

Columns are found by their usual names. A passage is given by its text, or by its id where a corpus
comes with the rows. Equal texts are one query or one document.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, fields
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any

from ..errors import DatasetError, OptionError, check_known, quote_some
from . import formats
from .reading import (
    LEFT_OUT,
    LIKE,
    NAMES,
    Omissions,
    Row,
    known_id,
    listed_cell,
    plain_id,
    plain_name,
    read_file,
    repaired,
    rows_of,
)

_VOTES = dict.fromkeys(
    ("up", "yes", "true", "positive", "good", "like", "liked", "helpful", "👍"), 1.0
) | dict.fromkeys(
    ("down", "no", "false", "negative", "bad", "dislike", "disliked", "unhelpful", "👎"), -1.0
)
_INFERENCE, _ENTAILED = ["premise", "hypothesis"], {"0": 1.0, "2": 0.0}  # which 1, neutral, is not
_SCORES = ("score", "scores", "similarity")
_JSON = re.compile(r"\.(json|jsonl|ndjson|parquet)(\.gz)?$", re.IGNORECASE)  # which has names
_HOP = re.compile(r"^<\d+-hop>\s*")  # Ragas marks the contexts of questions that need several


@dataclass(frozen=True)
class Feedback:
    """How clicks are read."""

    #: η: a document at position k is looked at as often as ``1 / k ** bias``; 0 for shuffled lists.
    bias: float = 1.0
    most_weight: float = 10.0  #: Of a click, so that a few at the end of a list do not decide.
    min_clicks: int = 2  #: Of a query on a document, or skips, below which they say nothing.
    least: float = 0.5  #: Share of the weight of a query's best document that is relevant, too.

    def __post_init__(self) -> None:
        if self.bias < 0 or self.most_weight < 1 or self.min_clicks < 1 or not 0 <= self.least <= 1:
            raise OptionError(
                "feedback: expected bias >= 0, most_weight >= 1, min_clicks >= 1 and least from 0 "
                f"to 1, got {self}."
            )


@dataclass
class _Gathered:
    """What has been read of the rows so far; ids are those given, or made from the text."""

    omissions: Omissions
    queries: dict[str, str] = field(default_factory=dict)
    corpus: dict[str, str] = field(default_factory=dict)
    grades: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    negatives: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    sources: dict[str, str] = field(default_factory=dict)
    roles: dict[str, list[str]] = field(default_factory=dict)  # and the columns that have them

    @property
    def by_id(self) -> bool:
        """Whether rows name documents of the corpus, and give no texts."""
        return self.roles["document"] == self.roles["document_id"]

    @property
    def votes(self) -> bool:
        """Whether grades add up, and none is no judgement."""
        return bool(self.roles["thumbs"] or self.roles["clicks"])

    def first(self, row: Row, role: str) -> Any:
        """Return what a row says in the first column of a role that it fills."""
        for name in self.roles[role]:  # faster than a generator, and asked nine times per row
            if (value := row.get(name)) is not None:
                return value
        return None

    def values(self, row: Row, role: str) -> list[tuple[Any, float]]:
        """Return texts, ids or objects with grades; a cell may hold a list as a table has it."""
        cells = (listed_cell(row.get(name), self.omissions) for name in self.roles[role])
        found = [pair for cell in cells for pair in formats.listed(cell)]
        return [(value, float(grade)) for value, grade in found if isinstance(grade, Real)]

    def judge(self, query: str, document: str, grade: float) -> None:
        """Add a grade to what is known of a pair: votes add up, of grades the highest counts."""
        known = self.grades[query]
        if document in known:
            grade = known[document] + grade if self.votes else max(known[document], grade)
        known[document] = grade

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
            title = value.get("title")
            value = next((value[n] for n in formats.TEXT if n in value), None)
        elif self.by_id:  # an unknown one is counted in the end, as those of other formats
            return known_id(value, self.corpus) or plain_id(value)
        named = known_id(value, self.corpus)
        if named is not None and key in (None, named):
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
    """Return the arguments of a dataset; see ``EmbeddingQAFinetuneDataset.from_records``."""
    if isinstance(rows, Mapping) and "queries" in rows and {"corpus", "relevant_docs"} & set(rows):
        return formats.mended_qa(rows, omissions)
    known = {each.name for each in fields(Feedback)}
    reading = Feedback(**{name: options.pop(name) for name in known & set(options)})
    check_known(options, {*NAMES, *known}, what="Reading rows")
    found, given = _Gathered(omissions), dict[str, Any](query=queries, document=corpus)
    for role, texts in (("query", found.queries), ("document", found.corpus)):
        for key, text in ({} if given[role] is None else given[role]).items():
            if isinstance(text, str) and text.strip():
                found.keep(texts, str(key), text, role[0])
            else:
                omissions.add("given texts that are empty", key)
    table = rows_of(rows, omissions.where)
    if not table:
        raise DatasetError(f"{omissions.where}: expected rows, it is empty.")
    by_id = [role for role, known_by_id in given.items() if known_by_id is not None]
    found.roles = _roles(table, options, by_id=by_id, where=omissions.where)
    table = _entailed(table, found)
    named = [(f"row {n}", row) for n, row in enumerate(table, start=1) if row is not LEFT_OUT]
    if feedback or (found.votes and found.roles["position"]):
        _read_feedback(named, found, reading)
    else:
        for where, row in named:
            _read_row(row, found, where, provenance)
    return _finished(found)


def queries_of(given: Any, columns: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Return the queries of texts, rows, our JSON or a Path to them, and whether documents come."""
    omissions, judged = Omissions(given if isinstance(given, Path) else "rows"), False
    data = read_file(given, omissions, least=1) if isinstance(given, Path) else given
    held: Any = data.get("queries") if isinstance(data, Mapping) else data
    held = held.tolist() if hasattr(held, "tolist") else held  # a series
    if isinstance(held, Mapping):
        found, judged = list(held.values()), True
    elif isinstance(held, (Sequence, Set)) and all(isinstance(each, str) for each in held):
        found = sorted(held) if isinstance(held, Set) else list(held)
    else:
        table = rows_of(data, omissions.where)
        names = list(dict.fromkeys(chain.from_iterable(table)))
        alone = len(names) == 1 and plain_name(names[0]) not in NAMES["query"] and not columns
        asked: Any = {"where": omissions.where, "by_id": [], "needed": ("query",)}
        roles = _roles(table, {"query": names} if alone else columns, **asked)
        judged = bool(roles["document"] or roles["document_id"])
        found = [row[name] for row in table for name in roles["query"] if row.get(name) is not None]
        if alone and isinstance(given, Path) and not _JSON.search(given.name):
            named = _names_queries(names[0], found)
            if named or len(names[0].split()) <= 3:  # either
                what = "the name of its column" if named else 'a query; if not, name it "query"'
                warnings.warn(f"{given}: the first line, {names[0]!r}, is {what}.", stacklevel=4)
            found = found if named else [*names, *found]
    if not judged:
        omissions.tell()
    return [t for each in found if isinstance(each, str) and (t := repaired(each).strip())], judged


def _names_queries(line: str, others: Sequence[Any]) -> bool:
    """Guess whether the first line of a list of queries is a name: one word, if few of them are."""
    words, alone = plain_name(line).split("_"), sum(len(str(each).split()) == 1 for each in others)
    known = len(words) <= 3 and not LIKE[0].isdisjoint(words)
    return known if len(words) > 1 else alone < 0.1 * len(others)


def _roles(
    rows: Sequence[Row],
    columns: Mapping[str, str | Sequence[str] | None],
    *,
    by_id: Sequence[str],
    where: object,
    needed: Sequence[str] = ("query", "document"),
) -> dict[str, list[str]]:
    """Return which columns have which role, or raise a DatasetError where a needed one has none."""
    present = list(dict.fromkeys(chain.from_iterable(rows)))
    roles: dict[str, list[str]] = {}
    taken: set[str] = set()
    for role, named in columns.items():
        if named is not None:
            roles[role] = [named] if isinstance(named, str) else list(named)
            absent = [name for name in roles[role] if name not in present]
            if absent:
                there = f"Columns: {quote_some(present, 20)}"
                raise DatasetError(f"{role}: no column {quote_some(absent)}. {there}.")
            taken.update(roles[role])
    for role in ("query_id", "document_id", *NAMES):
        if role not in roles:
            free = {plain_name(name): name for name in present if name not in taken}
            found = [free[plain_name(name)] for name in NAMES[role] if plain_name(name) in free][:1]
            if role == "negative":  # negative_1, negative_2, … of mined triplets
                found += [n for p, n in free.items() if re.fullmatch(r"neg(ative)?_?\d+", p)]
            roles[role] = list(dict.fromkeys(found))
            taken.update(found)
    for role, held, given in (("query", "queries", "queries"), ("document", "documents", "corpus")):
        if role in by_id:
            like_ids = [n for n in roles[role] if plain_name(n) in NAMES[f"{role}_id"]]
            roles[f"{role}_id"] = roles[f"{role}_id"] or like_ids
            roles[role] = roles[role] or roles[f"{role}_id"]
        if role in needed and not roles[role]:
            call = f"{role}=…"
            if isinstance(where, Path):
                call = f"from_csv(path, {call}), on the command line --column {call}"
            named = "".join(
                f" For the ids in {ids}, pass {given}=…." for ids in roles[f"{role}_id"]
            )
            raise DatasetError(
                f"{where}: no column is known to hold {held}. Rename it to {role}, or name it: "
                f"{call}.{named} Columns: {quote_some(present, 20) or 'none'}."
            )
    return roles


def _entailed(rows: list[Row], found: _Gathered) -> list[Row]:
    """Return rows, those of data sets of inference (AllNLI) with grades in place of labels."""
    texts, graded = [*found.roles["query"], *found.roles["document"]], found.roles["grade"]
    labels = [plain_id(row.get(graded[0])) or "" for row in rows] if graded else []
    said = set(labels) - {""}
    classes = "2" in said and said <= {"-1", "0", "1", "2"}  # of 0 and 1 alone, 1 may mean entailed
    if [*map(plain_name, texts)] != _INFERENCE or not classes:
        return rows
    for number, label in enumerate(labels, start=1):
        if label not in _ENTAILED and rows[number - 1] is not LEFT_OUT:
            found.omissions.add("pairs that neither entail nor contradict", f"row {number}")
    known = zip(rows, map(_ENTAILED.get, labels), strict=True)
    return [LEFT_OUT if grade is None else {**row, graded[0]: grade} for row, grade in known]


def _read_row(row: Row, found: _Gathered, where: str, provenance: str | None) -> None:
    """Take a row in, or leave it out for one reason, its query then as well."""
    asked, values = _asked(row, found), found.values(row, "document")
    if asked is None:
        odd = not isinstance(found.first(row, "query"), (str, type(None)))
        why = "whose query is neither text nor a known id" if odd else "without a query"
        found.omissions.add(f"rows {why}", where)
        return
    if (grades := _grades_of(row, found, len(values), where)) is None:
        found.omissions.add("rows whose grade, vote or count is no number", where)
        return
    key = plain_id(found.first(row, "document_id")) if len(values) == 1 else None
    title = found.first(row, "title")
    documents = [(found.document(value, key, title), own) for value, own in values]
    wrong = [found.document(value) for value, _ in found.values(row, "negative")]
    if not any([*wrong, *(document for document, _ in documents)]):
        found.omissions.add("rows without a document", where)
        return
    query = found.keep(found.queries, *asked, "q")
    for (document, own), grade in zip(documents, grades, strict=True):
        if document is not None:
            found.judge(query, document, grade * own)
    found.negatives[query] |= dict.fromkeys(document for document in wrong if document is not None)
    source = provenance or _source_of(row, found)
    if source is not None:
        found.sources[query] = source


def _read_feedback(rows: list[tuple[str, Row]], found: _Gathered, reading: Feedback) -> None:
    """Judge documents by clicks, of which each counts the more the less its place is looked at."""
    shown = defaultdict[tuple[str, object], list[tuple[float, str, float]]](list)
    for where, row in rows:
        asked, votes = _asked(row, found), _grade_of(row, found)
        key = plain_id(found.first(row, "document_id"))
        document = found.document(found.first(row, "document"), key)
        place = _number(found.first(row, "position") or 1)
        if asked is None or document is None or votes is None or place is None:
            found.omissions.add("rows without query, document, clicks or position", where)
        elif document not in found.corpus:
            found.omissions.add(formats.UNKNOWN, document)
        else:
            query = found.keep(found.queries, *asked, "q")
            shown[query, str(found.first(row, "session"))].append((place, document, votes))
    clicks, weights, skips = (defaultdict[str, Any](Counter) for _ in range(3))
    for (query, _), documents in shown.items():
        deepest = max((place for place, _, votes in documents if votes > 0), default=0.0)
        for place, document, votes in documents:
            if votes > 0:
                clicks[query][document] += votes
                weight = min(max(place, 1.0) ** reading.bias, reading.most_weight)
                weights[query][document] += votes * weight
            elif votes < 0 or place < deepest:
                skips[query][document] += 1
    fewest = reading.min_clicks
    for query in dict.fromkeys(query for query, _ in shown):
        known = {d: w for d, w in weights[query].items() if clicks[query][d] >= fewest}
        for _ in weights[query].keys() - known.keys():
            found.omissions.add(f"pairs below min_clicks={fewest}", found.queries[query])
        if weights[query] and not known:  # counted
            del found.queries[query]
            continue
        best = max(known.values(), default=0.0)
        found.grades[query] = {d: w / best for d, w in known.items() if w >= reading.least * best}
        often = [d for d, n in skips[query].items() if n >= fewest]
        found.negatives[query] = dict.fromkeys(d for d in often if d not in clicks[query])
        found.sources[query] = "feedback"


def _asked(row: Row, found: _Gathered) -> tuple[str | None, str] | None:
    """Return id and text of a row's query, None where it has none."""
    said, value = found.first(row, "query_id"), found.first(row, "query")
    key = known_id(said, found.queries) or plain_id(said)
    if key is None and (name := known_id(value, found.queries)) in found.queries:
        return name, found.queries[name]
    named = found.roles["query"] == found.roles["query_id"]
    if named or not isinstance(value, str) or not value.strip():
        return (key, found.queries[key]) if key in found.queries else None
    return key, value.strip()


def _grades_of(row: Row, found: _Gathered, count: int, where: str) -> list[float] | None:
    """Return a grade for each of a row's passages, None where one is no number.

    A row may list them. Scores of a model are none: of those that do not hold a 0, all count 1.
    """
    said = listed_cell(found.first(row, "grade"), found.omissions, (int, float))
    said = said.tolist() if hasattr(said, "tolist") else said
    if not isinstance(said, (list, tuple)):
        one = _grade_of(row, found)
        return None if one is None else [one] * count
    grades = [
        _VOTES.get(word, _number(word)) for word in (str(each).strip().lower() for each in said)
    ]
    known = [grade for grade in grades if grade is not None]
    if len(known) < len(grades):
        return None
    scores = any(plain_name(name) in _SCORES for name in found.roles["grade"])
    if len(known) == count and (not scores or min(known, default=1.0) <= 0):
        return known
    found.omissions.add("lists of scores that do not say which passages are relevant", where)
    return [1.0] * count


def _grade_of(row: Row, found: _Gathered) -> float | None:
    """Return the grade of a row: 1 where it says nothing, below 0 where it was voted down."""
    for role in ("thumbs", "clicks", "grade"):
        value = found.first(row, role)
        if value is None or value == "":
            continue
        word = str(value).strip().lower()
        number = _VOTES.get(word, _number(word))
        if role == "thumbs" and number is not None:  # 1 and 0, or 1 and -1
            return 1.0 if number > 0 else -1.0
        return max(number, 0.0) if role == "clicks" and number is not None else number
    return 1.0


def _number(value: object) -> float | None:
    with suppress(ValueError):
        return number if math.isfinite(number := float(str(value))) else None
    return None


def _source_of(row: Row, found: _Gathered) -> str | None:
    """Return where a query comes from, as far as a row says it."""
    told = found.first(row, "provenance")
    if told in formats.SOURCES:
        return str(told)
    author = row.get("query_by")  # LlamaIndex
    if isinstance(author, Mapping):
        return {"ai": "llm", "human": "human"}.get(str(author.get("type")))
    if "synthesizer_name" in row or "evolution_type" in row:  # Ragas
        return "llm"
    return "feedback" if found.votes else None


def _finished(found: _Gathered) -> dict[str, Any]:
    """Return the arguments of a dataset; what was said not to be relevant is a hard negative."""
    negatives: dict[str, list[str]] = {}
    for query, judged in found.grades.items():
        refused = [d for d, g in judged.items() if g < 0 or (g == 0 and not found.votes)]
        wrong = dict.fromkeys([*found.negatives.get(query, ()), *refused])
        mined = [document for document in wrong if judged.get(document, 0.0) <= 0]
        if mined and max(judged.values(), default=0.0) > 0:
            negatives[query] = mined
        if found.votes:
            found.grades[query] = {d: min(grade, 1.0) for d, grade in judged.items()}
    texts = (found.queries, found.corpus, found.grades, found.omissions)
    return formats.fitted(*texts, negatives=negatives or None, sources=found.sources)
