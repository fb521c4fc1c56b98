"""BEIR folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, plain or gzipped.

The JSON of ``EmbeddingQAFinetuneDataset``: that of the old class, and what ours adds.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

from ..core.files import atomic_file
from ..errors import DatasetError, quote_some
from .reading import Omissions, json_object, open_lines, plain_id

_MOST_REPEATED = 1000  # ids, where they are most of a file: it is not read to its end
_QRELS = (".tsv", ".jsonl", ".txt", ".qrels", ".trec")
UNKNOWN = "judgements of documents that are not in the corpus"
SOURCES = ("human", "llm", "structure", "feedback")

Judged = Mapping[str, Mapping[str, float]]

TEXT = ("text", "contents", "content", "passage", "passage_text")
GRADE = ("is_selected", "is_relevant")  # of an object; its score may be that of a search
ID = ("_id", "id", "docid", "doc_id", "document_id", "corpus-id", "query-id", "qid", "pid")


def read_beir(
    folder: Path, split: str, omissions: Omissions, *, allow_unjudged: bool
) -> dict[str, Any]:
    """Return the arguments of a dataset: one split of a folder, or raise a DatasetError."""
    qrels = _qrels_file(folder, split)
    if not _exists(qrels):
        there = [path.name.removesuffix(".gz") for path in (folder / "qrels").glob("*.*")]
        names = sorted({name.rpartition(".")[0] for name in there if name.endswith(_QRELS)})
        kinds = ", ".join(_QRELS)
        what = f"no split {split!r}. Splits there: {quote_some(names, 9) or f'none of {kinds}'}"
        raise DatasetError(f"{folder}: {what if folder.is_dir() else 'no such folder'}.")
    corpus = read_corpus(folder / "corpus.jsonl", omissions)
    texts, sources = _read_texts(folder / "queries.jsonl", _text_of, omissions)
    judged = _read_qrels(qrels, texts, corpus, omissions)
    queries = {query: texts[query] for query in judged if query in texts}
    found = (queries, corpus, judged, omissions)
    return fitted(*found, sources=sources, allow_unjudged=allow_unjudged)


def fitted(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    judged: Judged,
    omissions: Omissions,
    *,
    negatives: Mapping[str, Iterable[str]] | None = None,
    sources: Mapping[str, str] | None = None,
    allow_unjudged: bool = False,
) -> dict[str, Any]:
    """Return a dataset's arguments and note what does not fit; a DatasetError if none is left."""
    relevant: dict[str, dict[str, float]] = {query: {} for query in queries}
    for query, grades in judged.items():
        if query not in queries:
            omissions.add("judged queries without a text", query)
            continue
        for document, grade in grades.items():
            if document not in corpus:
                omissions.add(UNKNOWN, document)
            elif grade > 0:
                relevant[query][document] = grade
    kept = {query: text for query, text in queries.items() if relevant[query] or allow_unjudged}
    for query in queries:
        if query not in kept:
            omissions.add("queries without a relevant document", query)
    if not kept:
        raise DatasetError(f"{omissions.where}: no answered query is left: {omissions}.")
    mined: dict[str, list[str]] = {query: [] for query in negatives or () if query in kept}
    for query, documents in (negatives or {}).items():
        for document in documents:
            if query not in kept or document not in corpus or document in relevant[query]:
                omissions.add("hard negatives that are relevant or unknown", document)
            else:
                mined[query].append(document)
    graded = any(grade != 1 for grades in relevant.values() for grade in grades.values())
    return {
        "queries": kept,
        "corpus": dict(corpus),
        "relevant_docs": {query: list(relevant[query]) for query in kept},
        "grades": {query: relevant[query] for query in kept if relevant[query]} if graded else None,
        "hard_negatives": None if negatives is None else mined,
        "provenance": {query: s for query, s in (sources or {}).items() if query in kept} or None,
    }


def read_corpus(path: Path, omissions: Omissions) -> dict[str, str]:
    """Return id → title and text of a ``corpus.jsonl``, or raise a DatasetError."""
    return _read_texts(path, _document_text, omissions)[0]


def write_beir(
    folder: Path,
    split: str,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Judged,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """Write one split; what other splits already in the folder hold is kept, or a DatasetError."""
    judged_in, known = _qrels_file(folder, split), folder / "queries.jsonl"
    for name in (*queries, *corpus):
        try:
            name.encode()
        except UnicodeEncodeError as cause:
            said = f"The id {name!r} is no text that a file can hold ({cause})."
            raise DatasetError(said) from cause
    unread = Omissions(known)
    texts, sources = _read_texts(known, _text_of, unread) if _exists(known) else ({}, {})
    if any(told in str(unread) for told in ("without an id and a text", "with two texts")):
        raise DatasetError(f"{known}: {unread}. Mend them, or they would be lost: it is rewritten.")
    others, kept = _other_splits(folder, judged_in, texts)
    for what, held, given in (("query", others, queries), ("document", kept, corpus)):
        odd = [name for name, text in given.items() if held.get(name, text) != text]
        if odd:
            said = f"{quote_some(odd)} of another split there has another text"
            raise DatasetError(f"{folder}: the {what} {said}. Write to another folder.")
    _write_texts(known, {**texts, **queries}, {**sources, **(provenance or {})})
    _write_texts(folder / "corpus.jsonl", {**kept, **corpus}, {})
    with atomic_file(judged_in) as path, path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["query-id", "corpus-id", "score"])
        for query, judged in qrels.items():
            for document, grade in judged.items():
                score = int(grade) if float(grade).is_integer() else grade
                writer.writerow([query, document, score])


def _other_splits(
    folder: Path, own: Path, queries: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the queries that other splits of a folder judge, and the corpus they do it in."""
    there = (folder / "qrels").glob("*.*")
    files = [path for path in there if path.name.removesuffix(".gz") != own.name]
    omissions = Omissions(folder)
    if not files or not _exists(folder / "corpus.jsonl"):
        return {}, {}
    corpus = read_corpus(folder / "corpus.jsonl", omissions)
    judged = {query for path in files for query in _read_qrels(path, queries, corpus, omissions)}
    return {query: text for query, text in queries.items() if query in judged}, corpus


def _exists(path: Path) -> bool:
    return path.exists() or path.with_name(path.name + ".gz").exists()


def _qrels_file(folder: Path, split: str) -> Path:
    """Return where a split's judgements are, which is always below the folder."""
    if not split or Path(split).name != split:
        raise DatasetError(f"split: expected a name such as train or test, got {split!r}.")
    names = [folder / "qrels" / f"{split}{ending}" for ending in _QRELS]
    return next(filter(_exists, names), names[0])


def _text_of(line: Mapping[str, Any]) -> object:
    return next((line[name] for name in ("text", "query", "question") if name in line), None)


def _document_text(line: Mapping[str, Any]) -> object:
    parts = [line.get("title"), line.get("text", line.get("contents"))]
    told = [part for part in parts if part not in (None, "")]
    return " ".join(told).strip() if all(isinstance(part, str) for part in told) else None


def _read_texts(
    path: Path, text_of: Callable[[Mapping[str, Any]], object], omissions: Omissions
) -> tuple[dict[str, str], dict[str, str]]:
    """Return id → text, and id → provenance where a line says it."""
    texts: dict[str, str] = {}
    sources: dict[str, str] = {}
    name, repeated = path.name, 0
    with open_lines(path, omissions) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            line = json_object(raw)
            key = plain_id(next((line[k] for k in ID if k in line), None))
            text = text_of(line)
            if key is None or not isinstance(text, str):
                omissions.add(f"lines of {name} without an id and a text", f"line {number}")
            elif not text.strip():
                omissions.add(f"texts of {name} that are empty", key)
            elif key in texts:
                repeated += 1
                if repeated > max(_MOST_REPEATED, len(texts)):
                    raise DatasetError(f"{path}: {_MOST_REPEATED} or more duplicate ids ({key!r}).")
                same = texts[key] == text
                omissions.add(f"ids of {name} given twice{'' if same else ', with two texts'}", key)
            else:
                texts[key] = text
                about = line.get("metadata")
                if isinstance(about, dict) and about.get("provenance") in SOURCES:
                    sources[key] = about["provenance"]
    if not texts:
        what = "expected at least one text with an id, found none"
        raise DatasetError(f"{path}: {what}: {omissions}.")
    return texts, sources


def _read_qrels(
    path: Path, queries: Mapping[str, str], corpus: Mapping[str, str], omissions: Omissions
) -> dict[str, dict[str, float]]:
    with open_lines(path, omissions) as stream:
        lines = [line for line in stream if line.strip()]
        if lines and lines[0].lstrip().startswith("{"):
            rows = [list(json_object(line).values()) for line in lines]
        else:
            rows = _split_rows(lines, queries, corpus)
    qrels: dict[str, dict[str, float]] = {}
    for number, row in enumerate(rows, start=1):
        judgement = _judgement(row)
        if judgement is None and number > 1:
            omissions.add(f"lines of {path.name} that are no judgement", f"line {number}")
        if judgement is None:  # a header, where it is the first line
            continue
        query, document, grade = judgement
        before = qrels.setdefault(query, {}).setdefault(document, grade)
        if before != grade:
            omissions.add("pairs judged twice, of which the higher grade counts", document)
            qrels[query][document] = max(before, grade)
    return qrels


def _split_rows(
    lines: list[str], queries: Mapping[str, str], corpus: Mapping[str, str]
) -> list[list[Any]]:
    """Split lines at tabs, else at spaces; quotes mark ids or belong to them, as the ids know."""
    if not any("\t" in line for line in lines):
        return [line.split() for line in lines]
    plain: list[Any] = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not any('"' in line for line in lines):
        return plain

    def known(rows: list[Any]) -> int:
        return sum(row[0] in queries and row[-2] in corpus for row in rows if len(row) > 2)

    return max(plain, list(csv.reader(lines, delimiter="\t")), key=known)


def _judgement(row: list[Any]) -> tuple[str, str, float] | None:
    """Return query, document and grade; of TREC's four columns the second says nothing."""
    with suppress(TypeError, ValueError, IndexError):
        query, document, grade = plain_id(row[0]), plain_id(row[-2]), float(row[-1])
        if len(row) in (3, 4) and query is not None and document is not None:
            return (query, document, grade) if math.isfinite(grade) else None
    return None


def _write_texts(path: Path, texts: Mapping[str, str], provenance: Mapping[str, str]) -> None:
    with (
        atomic_file(path) as temporary,
        # What UTF-8 has no bytes for becomes an escape, which JSON reads back as what it was.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        for key, text in texts.items():
            line: dict[str, Any] = {"_id": key, "text": text}
            if key in provenance:
                line["metadata"] = {"provenance": provenance[key]}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


OBJECTS = ("queries", "corpus", "relevant_docs")
ADDED = ("grades", "hard_negatives", "provenance")
FLAGS = ("ignore_identical_ids", "twins_count")


def _check_objects(data: Mapping[str, Any], where: object) -> None:
    missing = [key for key in OBJECTS if not isinstance(data.get(key), Mapping)]
    if missing:
        raise DatasetError(
            f"{where}: expected the objects queries and corpus (id → text) and relevant_docs "
            f"(query id → document ids); missing or not an object: {quote_some(missing)}."
        )


def mended_qa(
    data: Mapping[str, Any], omissions: Omissions, *, allow_unjudged: bool = False
) -> dict[str, Any]:
    """Return the arguments of a dataset from its JSON, as :func:`fitted`; ids may be numbers.

    A DatasetError where parts are missing, lists, or other than dicts.
    """
    _check_objects(data, omissions.where)
    texts: dict[str, dict[str, str]] = {"queries": {}, "corpus": {}}
    for part, found in texts.items():
        for key, text in data[part].items():
            if plain_id(key) is None or not isinstance(text, str) or not text.strip():
                omissions.add(f"{part} without text", key)
            else:
                found[str(plain_id(key))] = text
    given: dict[str, Any] = {name: data.get(name) for name in (*ADDED, "negative_docs")}
    for name, value in given.items():
        if value is not None and not isinstance(value, Mapping):
            omissions.add("parts that are no objects", name)
            value = None
        given[name] = None if value is None else _by_id(value)
    grades = {q: _by_id(g) for q, g in (given["grades"] or {}).items() if isinstance(g, Mapping)}
    judged: dict[str, dict[str, float]] = {}
    for key, documents in data["relevant_docs"].items():
        own = grades.get(query := str(plain_id(key)), {})
        judged[query] = {
            document: _number(own.get(document, grade), omissions)
            for document, grade in _graded(documents, omissions).items()
        }
    lists = given["negative_docs"] if given["hard_negatives"] is None else given["hard_negatives"]
    for key in set(data) - {*OBJECTS, "mode", *given, *FLAGS}:
        omissions.add("unknown keys", key)
    parts = fitted(
        **texts,
        judged=judged,
        omissions=omissions,
        negatives=lists and {query: _graded(d, omissions) for query, d in lists.items()},
        sources=given["provenance"],
        allow_unjudged=allow_unjudged,
    )
    if given["grades"] is not None:  # only those that were given: the others count 1
        parts["grades"] = {
            q: {d: judged[q][d] for d in parts["relevant_docs"][q] if d in grades[q]}
            for q in parts["queries"]
            if q in grades
        }
    flags = {flag: False for flag in FLAGS if data.get(flag) is False}
    return {**parts, "mode": data.get("mode", "text"), **flags}


def _by_id(part: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(plain_id(key)): value for key, value in part.items()}


def listed(value: Any) -> list[tuple[Any, Any]]:
    """Return texts, ids or objects with grades: of one, a list, a set, or a dict of grades.

    An object may also hold a list per field, as the passages of MS MARCO do.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, Mapping):
        if not any(name in value for name in TEXT):
            return list(value.items())
        fields = {n: v.tolist() if hasattr(v, "tolist") else v for n, v in value.items()}
        if isinstance(text := next(fields[name] for name in TEXT if name in fields), list):
            alike = {n: v for n, v in fields.items() if isinstance(v, list) and len(v) == len(text)}
            value = [
                dict(zip(alike, each, strict=True)) for each in zip(*alike.values(), strict=True)
            ]
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    elif hasattr(value, "tolist"):
        value = value.tolist()
    return [(each, _own(each)) for each in (value if isinstance(value, (list, tuple)) else [value])]


def _own(value: Any) -> Any:
    known = value if isinstance(value, Mapping) else {}
    return next((known[name] for name in GRADE if name in known), 1.0)


def _graded(documents: object, omissions: Omissions) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pairs = documents.items() if isinstance(documents, Mapping) else listed(documents)
    for document, grade in pairs:
        name = plain_id(document)
        if name is None or name in found:
            omissions.add("documents named twice by a query, or no ids", document)
        else:
            found[name] = grade
    return found


def _number(value: object, omissions: Omissions) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    omissions.add("grades that are no numbers, read as 1", value)
    return 1.0
