"""Files as people save them: any encoding, plain or gzipped; JSON, JSON lines, tables, parquet.

Rows, whatever holds them, and what their columns are called. What a lenient reader leaves out is
counted and said once.
"""

from __future__ import annotations

import ast
import codecs
import csv
import gzip
import io
import json
import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from ..core import files
from ..errors import DatasetError, quote_some, require_extra

#: Characters: no document is as long, and no texts compress as well; what does was made to flood.
_MOST_IN_LINE, _MOST_UNZIPPED, _MOST_RATIO = 1 << 25, 1 << 30, 200
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", **dict.fromkeys(_UTF16, "utf-16")}
#: Code pages that office software writes; of others charset-normalizer finds lookalikes.
_PAGES = ["cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp932", "cp949",
          "gb18030", "big5"]  # fmt: skip
_LATIN = ("cp1252", "cp1250")
_SAMPLE = 1 << 16  # bytes
#: Numpy writes no comma after an item, and a missing one of pandas is no word of Python.
_ITEM = re.compile(
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\bnan\b|None\b|\}|\d[\d.]*)(\s+(?=['"{nN\d-]))?""",
    re.DOTALL,
)
_FUSED = re.compile(r"""['"]\s+['"]""")

Row = Mapping[str, Any]
LEFT_OUT: dict[str, Any] = {}  #: In the place of a row that is counted already.

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
    "grade": ("grade", "score", "relevance", "label", "rating", "rel", "similarity", "is_relevant",
              "relevant", "relevance_score", "relevance_label", "is_selected", "labels", "grades",
              "scores"),
    "thumbs": ("thumbs", "thumb", "feedback", "vote", "helpful"),
    "clicks": ("clicks", "click_count", "clicked", "count", "click"),
    "position": ("position", "rank", "shown_at"),
    "session": ("session", "session_id", "impression", "impression_id", "request_id"),
    "query_id": ("query_id", "qid", "queryid", "query-id"),
    "document_id": ("document_id", "doc_id", "docid", "corpus_id", "corpus-id", "passage_id", "pid",
                    "node_id", "chunk_id"),
    "title": ("title",),
    "provenance": ("provenance",),
}  # fmt: skip
#: What columns that hold queries, or documents, are called, also in the plural, or their ids.
LIKE = [
    {form for name in NAMES[role] for form in (name, f"{name}s", f"{name[:-1]}ies")}
    | {*NAMES[f"{role}_id"]}
    for role in ("query", "document")
]
_LISTS = ("examples", "data", "rows", "records", "samples", "test_set", "testset")
_MOST_COLUMNS = 20  # of a table; what has more is a dict of queries, two of them named like columns


class Omissions:
    """What a reader leaves out, counted by reason; said in one warning, or refused."""

    def __init__(self, where: object, *, strict: bool = False) -> None:
        self.where, self._strict = where, strict
        self._found = defaultdict[str, list[object]](list)

    def add(self, reason: str, example: object) -> None:
        """Count something that is left out."""
        self._found[reason].append(example)

    def __str__(self) -> str:
        each = self._found.items()
        told = [f"{len(all_):,} {why} (first: {quote_some(all_)})" for why, all_ in each]
        return "; ".join(told) or "it is empty"

    def tell(self) -> None:
        """Warn of everything that was left out, or refuse it by a DatasetError if strict."""
        if self._found and self._strict:
            raise DatasetError(f"{self.where}: {self}. Without strict=True they are left out.")
        if self._found:
            warnings.warn(f"{self.where}: left out or mended: {self}.", stacklevel=3)


def repaired(text: str) -> str:
    """Join surrogate pairs that stand apart; a half one becomes the replacement character."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _encoding_of(pieces: Iterable[bytes], omissions: Omissions) -> tuple[str, str]:
    """Return the encoding of a text, and how faults are handled; note all but UTF-8 and UTF-16.

    A byte order mark decides; else UTF-8 where it fits; else UTF-16 where every other byte is zero;
    else the Windows code page that charset-normalizer finds likeliest.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for number, piece in enumerate(pieces):
        if number == 0:
            for mark, name in _MARKS.items():
                if piece.startswith(mark):
                    return name, "strict"
            if piece[:_SAMPLE].count(0) > len(piece[:_SAMPLE]) // 4:
                return ("utf-16-le" if piece[1:2] == b"\0" else "utf-16-be"), "strict"
        try:
            decoder.decode(piece)
        except UnicodeDecodeError as fault:
            around = piece[max(0, fault.start - _SAMPLE) : fault.start + _SAMPLE]
            text = around.decode("utf-8", "replace")
            damaged = sum(not each.isascii() for each in text) > 2 * text.count("\ufffd")
            found = "utf-8" if damaged else _page_of(around)
            omissions.add(f"file that is not all UTF-8, read as {found}", found)
            return found, "replace"
    return "utf-8", "strict"


def _page_of(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=_PAGES).best()
    found = "cp1252" if best is None else str(best.encoding)
    # Of short texts in Latin letters it confuses these two; signs inside words tell.
    return min(_LATIN, key=lambda page: _odd(sample, page)) if found in _LATIN else found


def _odd(sample: bytes, page: str) -> int:
    text = sample.decode(page, "replace")
    inside = zip(text, text[1:], text[2:], strict=False)
    return sum(a.isalpha() and b > "\x7f" and not b.isalpha() and c.isalpha() for a, b, c in inside)


def encoding_of(path: Path, omissions: Omissions) -> str:
    """Return the encoding of a file of text; any but UTF-8 and UTF-16 is noted."""
    with path.open("rb") as raw:
        return _encoding_of(iter(lambda: raw.read(1 << 20), b""), omissions)[0]


def decode(data: bytes, omissions: Omissions) -> str:
    """Return bytes, maybe gzipped, as text; any encoding but UTF-8 and UTF-16 is noted."""
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(data, omissions.where)
    encoding, errors = _encoding_of([data], omissions)
    try:
        return data.decode(encoding, errors)
    except UnicodeDecodeError as cause:
        raise DatasetError(f"{omissions.where}: cannot be read as {encoding} ({cause}).") from cause


def _unzipped(data: bytes, where: object) -> bytes:
    most = max(_MOST_UNZIPPED, _MOST_RATIO * len(data))
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            found = b"".join(islice(iter(lambda: stream.read(1 << 20), b""), 1 + (most >> 20)))
    except (EOFError, OSError, zlib.error) as cause:
        raise DatasetError(f"{where}: cannot be unzipped ({cause}).") from cause
    if len(found) > most:
        raise DatasetError(f"{where}: expected fewer than {most:,} bytes, unzipped.")
    return found


@contextmanager
def open_lines(path: Path, omissions: Omissions) -> Iterator[Iterator[str]]:
    """Give the lines of a file, maybe gzipped, none without end, or raise a DatasetError."""
    zipped = path.with_name(path.name + ".gz")
    found = path if path.exists() or not zipped.exists() else zipped
    if not found.exists():
        raise DatasetError(f"{path}: no such file, nor {zipped.name}.")
    if not found.is_file():
        raise DatasetError(f"{found}: expected a file.")
    encoding, most, opened = "unknown", None, cast(Any, open)
    if found.suffix.lower() == ".gz":
        opened, most = gzip.open, max(_MOST_UNZIPPED, _MOST_RATIO * found.stat().st_size)
    try:
        with opened(found, "rb") as raw:
            blocks = iter(lambda: raw.read(1 << 20), b"")
            encoding, errors = _encoding_of(islice(blocks, most and most >> 18), omissions)
            raw.seek(0)
            with io.TextIOWrapper(raw, encoding, errors, newline="") as stream:
                yield _lines(stream, found, most)
    except csv.Error as cause:
        raise DatasetError(f"{found}: cannot be read ({cause}).") from cause
    except (UnicodeError, EOFError, OSError, zlib.error) as cause:
        raise DatasetError(f"{found}: cannot be read as {encoding} ({cause}).") from cause


def _lines(stream: io.TextIOBase, path: Path, most: int | None) -> Iterator[str]:
    read = 0
    while line := stream.readline(_MOST_IN_LINE):
        read += len(line)
        if len(line) == _MOST_IN_LINE or (most is not None and read > most):
            raise DatasetError(
                f"{path}: expected lines of fewer than {_MOST_IN_LINE:,} characters"
                + ("." if most is None else f", and fewer than {most:,} in all.")
            )
        yield line


def json_object(raw: str) -> dict[str, Any]:
    """Return the object that a line holds; an empty one where it holds none."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return line if isinstance(line, dict) else {}


def plain_id(value: object) -> str | None:
    """Return an id as a string; a whole number is one, too."""
    if isinstance(value, str):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    is_whole = isinstance(value, Real) and float(value).is_integer()
    return str(int(value)) if is_whole and not isinstance(value, bool) else None  # type: ignore[call-overload]


def known_id(value: object, texts: Mapping[str, str]) -> str | None:
    """Return which of the ids a value means: " 2" and "2.0", of a column with gaps, are 2."""
    if (name := plain_id(value)) is None or name in texts:
        return name
    bare = name.strip()
    bare = bare if bare in texts else bare.removesuffix(".0")
    return bare if bare in texts else None


def read_file(path: Path, omissions: Omissions, *, least: int = 2) -> Any:
    """Return the rows of a file, or an object around them, or raise a DatasetError.

    A table has at least so many columns.
    """
    data = files.read_bytes(path, error=DatasetError)
    if data[:4] == b"PAR1":
        arrow = require_extra("pyarrow", extra="pandas")
        try:
            return require_extra("pyarrow.parquet", extra="pandas").read_table(path).to_pylist()
        except (OSError, arrow.ArrowException) as cause:
            raise DatasetError(f"{path}: expected parquet ({cause}).") from cause
    text = decode(data, omissions)
    if not text.lstrip().startswith(("[", "{")):
        return _parse_table(text.lstrip(), path, omissions, least)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        if text.lstrip().startswith("["):
            raise DatasetError(f"{path}: expected JSON ({cause}).") from cause
        return _parse_lines(text, path, omissions)


def _parse_lines(text: str, path: Path, omissions: Omissions) -> list[dict[str, Any]]:
    lines = text.split("\n")
    rows = [json_object(line) or LEFT_OUT for line in lines]
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), start=1):
        if line.strip() and not row:
            omissions.add("lines that are no JSON objects", f"row {number}")
    if not any(rows):
        raise DatasetError(f"{path}: expected JSON or JSON lines: {omissions}.")
    return rows


def _parse_table(text: str, path: Path, omissions: Omissions, least: int) -> list[dict[str, Any]]:
    """Return the rows of a table whose first line names its columns, not those with more cells."""
    head = text.split("\n", 1)[0]
    delimiter = max("\t;,|", key=head.count)
    for strict in (True, False):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
        usual = csv.field_size_limit(_MOST_IN_LINE)  # of the whole process, so it is given back
        try:
            rows = list(reader)
            break
        except csv.Error as cause:
            if not strict:
                raise DatasetError(f"{path}: expected a table ({cause}).") from cause
            omissions.add("wrong quote, which may join rows", f"line {reader.line_num + 1}")
        finally:
            csv.field_size_limit(usual)
    if not rows or len(rows[0]) < least:
        columns = "a column" if least == 1 else "at least two columns"
        raise DatasetError(
            f"{path}: expected a table whose first line names {columns}, and rows "
            f"below it, got {quote_some([head]) if head else 'an empty file'}."
        )
    names = [name for name in reader.fieldnames or () if name.strip()]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        omissions.add("columns named twice, of which the last is read", name)
    for number, row in enumerate(rows, start=1):
        surplus: Any = row.pop(None, None)
        if surplus and any(map(str.strip, surplus)):
            reason = f"rows with more cells than columns (a text with {delimiter!r} needs quotes)"
            omissions.add(reason, f"row {number}")
            rows[number - 1] = LEFT_OUT
    if not any(rows):
        raise DatasetError(f"{path}: expected a table: {omissions}.")
    return rows


def read_lines(path: Path) -> list[str]:
    """Read a text file of one query per line, without empty ones, or raise a DatasetError."""
    omissions = Omissions(path)
    with open_lines(path, omissions) as lines:
        found = [repaired(line).strip() for line in lines if line.strip()]
    omissions.tell()
    return found


def rows_of(data: Any, where: object) -> list[Row]:
    """Return the rows of whatever holds them, or raise a DatasetError."""
    for method in ("to_pylist", "to_list"):  # Arrow, Ragas
        if callable(getattr(data, method, None)):
            data = getattr(data, method)()
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas, polars
        frame = data.to_pandas() if hasattr(data, "to_pandas") else data
        data = frame.astype(object).where(frame.notna(), None).to_dict("records")
    if isinstance(data, Mapping):
        data = _inside(data, where)
    elif hasattr(data, "examples"):  # LabelledRagDataset
        data = data.examples
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise DatasetError(f"rows: expected dicts, got {type(data).__name__}. Files: from_file.")
    return [_row(row, number) for number, row in enumerate(data, start=1)]


def _inside(data: Mapping[str, Any], where: object) -> Iterable[Any]:
    """Return one row, the rows of an object around a list, of columns, or of query → documents."""
    for name in _LISTS:
        if isinstance(data.get(name), list):
            return cast(list[Any], data[name])
    asked = [value for name, value in data.items() if plain_name(name) in NAMES["query"]]
    if asked and isinstance(asked[0], str):
        return [data]
    if any(hasattr(value, "columns") or hasattr(value, "column_names") for value in data.values()):
        splits = quote_some(data)
        raise DatasetError(f"{where}: expected rows, got splits: {splits}. Pass one, as ds[…].")
    if data and all(isinstance(value, Mapping) for value in data.values()):  # as pandas writes JSON
        inner = next(iter(data.values()))
        if _named(inner):
            return list(data.values())
        if _named(data):
            return [{name: cells.get(row) for name, cells in data.items()} for row in inner]
    lists = {n: c.tolist() if hasattr(c, "tolist") else c for n, c in data.items()}
    columns = {n: c for n, c in lists.items() if isinstance(c, Sequence) and not isinstance(c, str)}
    lengths = {name: len(column) for name, column in columns.items()}
    table = _named(columns)
    if (asked or table) and len(set(lengths.values())) == 1:
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if table:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise DatasetError(f"{where}: expected columns of one length, got {told}. Fill the gaps.")
    return data.items()


def _named(columns: Collection[str]) -> bool:
    """Return whether names are those of columns, of queries and of documents, not queries."""
    few = len(columns) <= _MOST_COLUMNS
    return few and all(any(plain_name(name) in like for name in columns) for like in LIKE)


def _row(row: Any, number: int) -> Row:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, (list, tuple)) and len(row) in (2, 3):
        third = "negative" if isinstance(row[-1], str) else "grade"
        return dict(zip(("query", "document", third), row, strict=False))
    if hasattr(row, "model_dump"):
        return dict(row.model_dump(mode="json"))
    raise DatasetError(f"row {number}: expected a dict, got {type(row).__name__}.")


def plain_name(name: object) -> str:
    """Return the name of a column as :data:`NAMES` writes it."""
    return re.sub(r"[\s\-]+", "_", str(name).strip().lower())


def listed_cell(cell: Any, omissions: Omissions, kinds: Any = (str, dict)) -> Any:
    """Return the list that a cell of a table holds as JSON, Python or numpy write it, without gaps.

    Items are of some kinds. A cell that holds no list is returned as it is; None, counted, where it
    holds a damaged one.
    """
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "array([")):
        return cell
    text = cell.strip()
    if (array := text.removeprefix("array(")) != text:
        text = array[: array.rfind("]") + 1] or array
    python = () if _FUSED.search(text) else (ast.literal_eval,)  # faster, and joins such strings
    for parse in (json.loads, *python, _literal):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(text)
            items = [item for item in value if item is not None and item == item]
            return items if all(isinstance(item, kinds) for item in items) else cell
    quotes = not {"'", '"'}.isdisjoint(text)
    if quotes and (text.endswith("]") or text[1:].lstrip().startswith(("'", '"', "{"))):
        omissions.add("lists that cannot be read", cell)
        return None
    return cell


def _literal(text: str) -> Any:
    def item(found: re.Match[str]) -> str:
        return ("None" if found[1] == "nan" else found[1]) + ("," if found[2] else "")

    return ast.literal_eval(_ITEM.sub(item, text))
