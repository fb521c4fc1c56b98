"""BEIR folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, plain or gzipped.

The JSON of ``EmbeddingQAFinetuneDataset``: that of the old class, and what ours adds.

What a dataset is refused for; every message counts and names what is wrong.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.core.files import atomic_file, unique
from llama_index_embeddings_adapted.errors import DatasetError, quote_some, truncate

#: Characters: no document is as long, and no texts compress as well; what does was made to flood.
_MOST_IN_LINE, _MOST_UNZIPPED, _MOST_RATIO = 1 << 25, 1 << 30, 200


@dataclass(frozen=True)
class BeirSplit:
    """What one split of a BEIR folder holds. ``grades`` is None where every grade is 1."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]
    grades: dict[str, dict[str, float]] | None


def read_beir(folder: Path, split: str) -> BeirSplit:
    """Read one split.

    Raises:
        DatasetError: A missing or malformed file; the message gives file and line.
    """
    qrels = _read_qrels(_qrels_file(folder, split), folder)
    corpus = _read_texts(folder / "corpus.jsonl", _document_text)
    texts = _read_texts(folder / "queries.jsonl", lambda line: line.get("text"))
    strangers = [query for query in qrels if query not in texts]
    if strangers:
        raise DatasetError(
            f"{folder}: {len(strangers)} query ids of qrels/{split}.tsv are not in queries.jsonl "
            f"(first: {quote_some(strangers)})."
        )
    relevant = {q: {d: g for d, g in judged.items() if g > 0} for q, judged in qrels.items()}
    graded = any(grade != 1 for judged in relevant.values() for grade in judged.values())
    return BeirSplit(
        queries={query: texts[query] for query in qrels},
        corpus=corpus,
        relevant_docs={query: list(judged) for query, judged in relevant.items()},
        grades=relevant if graded else None,
    )


def write_beir(
    folder: Path,
    split: str,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, float]],
) -> None:
    """Write one split; queries of other splits already in the folder are kept."""
    judged_in = _qrels_file(folder, split)
    for name in (*queries, *corpus):
        if not name.isprintable():
            _check_writable(name)
    known = folder / "queries.jsonl"
    merged = _read_texts(known, lambda line: line.get("text")) if known.exists() else {}
    _write_texts(known, {**merged, **queries})
    _write_texts(folder / "corpus.jsonl", corpus)
    with (
        atomic_file(judged_in) as path,
        path.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(["query-id", "corpus-id", "score"])
        for query, judged in qrels.items():
            for document, grade in judged.items():
                score = int(grade) if float(grade).is_integer() else grade
                writer.writerow([query, document, score])


def _qrels_file(folder: Path, split: str) -> Path:
    """Return where a split's judgements are, which is always below the folder."""
    if not split or Path(split).name != split:
        raise DatasetError(f"split: expected a name such as train or test, got {split!r}.")
    return folder / "qrels" / f"{split}.tsv"


def _check_writable(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise DatasetError(f"The id {name!r} is no text that a file can hold ({cause}).") from cause


def _document_text(line: Mapping[str, Any]) -> object:
    text, title = line.get("text"), line.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        return None
    return f"{title} {text}".strip()


@contextmanager
def _open(path: Path) -> Iterator[Iterator[str]]:
    """Give the lines of a file, plain or gzipped, of which neither one nor all are without end.

    Raises:
        DatasetError: No such file, or it cannot be read.
    """
    zipped = path.with_name(path.name + ".gz")
    found = path if path.exists() or not zipped.exists() else zipped
    if not found.exists():
        raise DatasetError(f"{path}: no such file, nor {zipped.name}. Is this a BEIR folder?")
    if not found.is_file():
        raise DatasetError(f"{found}: expected a file.")
    try:
        if found is path:
            with path.open(encoding="utf-8", newline="") as plain:
                yield _lines(plain, found, most=None)
        else:
            most = max(_MOST_UNZIPPED, _MOST_RATIO * zipped.stat().st_size)
            with gzip.open(zipped, "rt", encoding="utf-8", newline="") as stream:
                yield _lines(stream, found, most=most)
    except (UnicodeDecodeError, EOFError, OSError, zlib.error, csv.Error) as cause:
        raise DatasetError(f"{found}: cannot be read ({cause}).") from cause


def _lines(stream: io.TextIOBase, path: Path, *, most: int | None) -> Iterator[str]:
    read_beir = 0
    while line := stream.readline(_MOST_IN_LINE):
        read_beir += len(line)
        if len(line) == _MOST_IN_LINE or (most is not None and read_beir > most):
            raise DatasetError(
                f"{path}: expected lines of fewer than {_MOST_IN_LINE:,} characters"
                + ("." if most is None else f", and fewer than {most:,} in all.")
            )
        yield line


def _read_texts(path: Path, text_of: Any) -> dict[str, str]:
    with _open(path) as lines:
        pairs = (
            _parse_line(raw, text_of, where=f"{path}, line {number}")
            for number, raw in enumerate(lines, start=1)
            if raw.strip()
        )
        return unique(pairs, what="_id", error=DatasetError, where=path)


def _parse_line(raw: str, text_of: Any, *, where: str) -> tuple[str, str]:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError) as cause:
        raise DatasetError(f"{where}: expected a JSON object ({cause}).") from cause
    key = line.get("_id") if isinstance(line, dict) else None
    text = text_of(line) if isinstance(line, dict) else None
    if not isinstance(key, str) or not isinstance(text, str):
        raise DatasetError(f'{where}: expected an object with strings "_id" and "text".')
    return key, text


def _read_qrels(path: Path, folder: Path) -> dict[str, dict[str, float]]:
    if not path.exists() and not path.with_name(path.name + ".gz").exists():
        found = sorted({p.name.split(".")[0] for p in (folder / "qrels").glob("*.tsv*")})
        raise DatasetError(
            f"{folder}: no split {path.stem!r}. Splits there: {quote_some(found, 9) or 'none'}."
        )
    qrels: dict[str, dict[str, float]] = {}
    with _open(path) as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), start=1):
            if (number == 1 and row[:1] == ["query-id"]) or not row:
                continue
            query, document, grade = _parse_judgement(row, where=f"{path}, line {number}")
            if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
                raise DatasetError(
                    f"{path}, line {number}: query {quote_some([query])} and document "
                    f"{quote_some([document])} are judged twice, with different scores."
                )
    irrelevant = [query for query, judged in qrels.items() if max(judged.values()) <= 0]
    if irrelevant:
        warnings.warn(
            f"{path}: {len(irrelevant)} queries have only irrelevant judgements and are left out "
            f"(first: {quote_some(irrelevant)}).",
            stacklevel=4,
        )
    return {query: judged for query, judged in qrels.items() if max(judged.values()) > 0}


def _parse_judgement(row: list[str], *, where: str) -> tuple[str, str, float]:
    try:
        query, document, score = row
        grade = float(score)
        if not math.isfinite(grade):
            raise ValueError(score)
        return query, document, grade
    except ValueError as cause:
        raise DatasetError(
            f"{where}: expected query-id, corpus-id and a numeric score, tab-separated."
        ) from cause


def _write_texts(path: Path, texts: Mapping[str, str]) -> None:
    with (
        atomic_file(path) as temporary,
        # What UTF-8 has no bytes for becomes an escape, which JSON reads back as what it was.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):
        for key, text in texts.items():
            stream.write(json.dumps({"_id": key, "text": text}, ensure_ascii=False) + "\n")


_OBJECTS = ("queries", "corpus", "relevant_docs")
_OLD = (*_OBJECTS, "mode")
_ADDED = ("grades", "hard_negatives")


def write_qa_json(path: Path, dataset: Mapping[str, Any]) -> None:
    """Write the fields of a dataset, atomically; what ours adds only where there is any."""
    added = {key: dataset[key] for key in _ADDED if dataset[key] is not None}
    files.write_json(path, {key: dataset[key] for key in _OLD} | added)


def read_qa_json(path: Path) -> dict[str, Any]:
    """Read the fields of a dataset.

    Raises:
        DatasetError: Not JSON, or JSON of another shape.
    """
    data = files.read_json_object(path, error=DatasetError)
    missing = [key for key in _OBJECTS if not isinstance(data.get(key), dict)]
    unknown = sorted(set(data) - {*_OLD, *_ADDED})
    if not isinstance(data.get("mode", "text"), str):
        raise DatasetError(f"{path}: mode: expected a string, got {type(data['mode']).__name__}.")
    if missing or unknown:
        raise DatasetError(
            f"{path}: expected an object with the objects {quote_some(_OBJECTS)}; "
            + (f"missing or not an object: {quote_some(missing)}. " if missing else "")
            + (f"Unknown keys: {quote_some(unknown)}." if unknown else "")
        )
    return data


def check(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Mapping[str, Sequence[str]],
    grades: object,
    hard_negatives: object,
) -> None:
    """Refuse texts, judgements, grades and hard negatives that do not fit together.

    Raises:
        DatasetError: The first thing found.
    """
    _check_texts("queries", queries)
    _check_texts("corpus", corpus)
    _check_relevance(queries, corpus, relevant_docs)
    _check_grades(relevant_docs, grades)
    _check_negatives(queries, corpus, relevant_docs, hard_negatives)


def check_judged(queries: Mapping[str, str], relevant_docs: Mapping[str, Sequence[str]]) -> None:
    """Refuse queries without a relevant document.

    Raises:
        DatasetError: There are some.
    """
    unjudged = [query for query in queries if not relevant_docs.get(query)]
    if unjudged:
        raise DatasetError(
            f"{len(unjudged)} of {len(queries)} queries have no relevant document "
            f"(first: {quote_some(unjudged)}). Read the data with allow_unjudged=True and drop "
            "them with dataset.judged()."
        )


def _check_texts(what: str, texts: object) -> None:
    if not isinstance(texts, Mapping):
        raise DatasetError(f"{what}: expected a dict of id → text, got {type(texts).__name__}.")
    odd = [k for k, v in texts.items() if not isinstance(k, str) or not isinstance(v, str)]
    if odd:
        raise DatasetError(
            f"{what}: expected string ids and string texts; {len(odd)} of {len(texts)} are not "
            f"(first: {quote_some(odd)})."
        )
    empty = [key for key, text in texts.items() if not text.strip()]
    if empty:
        raise DatasetError(
            f"{what}: {len(empty)} of {len(texts)} texts are empty (first: {quote_some(empty)}). "
            "Drop them, or give them text."
        )
    if not texts:
        raise DatasetError(f"{what}: expected at least one text, got none.")


def _check_relevance(
    queries: Mapping[str, str], corpus: Mapping[str, str], relevant_docs: object
) -> None:
    if not isinstance(relevant_docs, Mapping):
        raise DatasetError(
            "relevant_docs: expected a dict of query id → list of document ids, "
            f"got {type(relevant_docs).__name__}."
        )
    odd = [
        query
        for query, docs in relevant_docs.items()
        if isinstance(docs, str)
        or not isinstance(docs, Sequence)
        or not all(isinstance(doc, str) for doc in docs)
    ]
    if odd:
        raise DatasetError(
            f"relevant_docs: expected lists of document ids; {len(odd)} of {len(relevant_docs)} "
            f"are not (first: {quote_some(odd)})."
        )
    strangers = [query for query in relevant_docs if query not in queries]
    if strangers:
        raise DatasetError(
            f"relevant_docs: {len(strangers)} query ids are not in queries "
            f"(first: {quote_some(strangers)})."
        )
    unknown = [doc for docs in relevant_docs.values() for doc in docs if doc not in corpus]
    if unknown:
        raise DatasetError(
            f"relevant_docs: {len(unknown)} document ids are not in the corpus "
            f"(first: {quote_some(dict.fromkeys(unknown))}). Add those documents, or drop the ids."
        )
    twice = [query for query, docs in relevant_docs.items() if len(set(docs)) < len(docs)]
    if twice:
        raise DatasetError(
            f"relevant_docs: {len(twice)} queries name a document twice "
            f"(first: {quote_some(twice)})."
        )


def _check_grades(relevant_docs: Mapping[str, Sequence[str]], grades: object) -> None:
    if grades is None:
        return
    if not isinstance(grades, Mapping) or not all(isinstance(g, Mapping) for g in grades.values()):
        raise DatasetError("grades: expected a dict of query id → dict of document id → grade.")
    for query, by_document in grades.items():
        for document, grade in by_document.items():
            if document not in relevant_docs.get(query, ()):
                raise DatasetError(
                    f"grades: query {quote_some([query])} grades document "
                    f"{quote_some([document])}, which is not among its relevant_docs."
                )
            if (
                isinstance(grade, bool)
                or not isinstance(grade, (int, float))
                or not (0 < grade < math.inf)
            ):
                raise DatasetError(
                    f'grades: query "{truncate(query)}", document "{truncate(document)}": expected '
                    f"a number > 0, got {truncate(repr(grade))}."
                )


def _check_negatives(
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    relevant_docs: Mapping[str, Sequence[str]],
    negatives: object,
) -> None:
    if negatives is None:
        return
    if not isinstance(negatives, Mapping):
        raise DatasetError("hard_negatives: expected a dict of query id → list of document ids.")
    for query, documents in negatives.items():
        if not isinstance(documents, (list, tuple)) or not all(
            isinstance(document, str) for document in documents
        ):
            raise DatasetError(
                "hard_negatives: expected lists of document ids; that of query "
                f"{quote_some([query])} is not."
            )
        unknown = [document for document in documents if document not in corpus]
        if query not in queries or unknown:
            raise DatasetError(
                f"hard_negatives: query {quote_some([query])} or its documents are not in the "
                f"dataset ({quote_some(unknown) or 'the query'})."
            )
        relevant = [document for document in documents if document in relevant_docs.get(query, ())]
        if relevant:
            raise DatasetError(
                f"hard_negatives: query {quote_some([query])} names {quote_some(relevant[:1])}, "
                "which is relevant to it."
            )
