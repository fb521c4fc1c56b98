import gzip
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llama_index.core.bridge.pydantic import BaseModel

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.cli.inputs import holds_pairs, named_models
from llama_index_embeddings_adapted.errors import DatasetError, OptionError

PAIRS = [("how do I reset it?", "Hold the button."), ("who signs?", "The inspector signs.")]


class Example(BaseModel):
    """As in LlamaIndex's labelled RAG datasets, which later versions of its core lack."""

    query: str
    reference_contexts: list[str]


def texts(data: Dataset) -> list[tuple[str, list[str]]]:
    return [(text, [data.corpus[d] for d in found]) for text, found in data.query_docid_pairs]


WRONG = "Sold in blue."
LABELLED = [(q, text, g) for q, d in PAIRS for text, g in ((d, 1), (WRONG, 0))]
EXPECTED = [(query, [document]) for query, document in PAIRS]


QUERIES, TEXTS = (dict(enumerate(column)) for column in zip(*PAIRS, strict=True))
SHAPES: dict[str, Any] = {
    "tuples": PAIRS,
    "pairs": [{"query": q, "document": d} for q, d in PAIRS],
    "capitals": [{"Question": q, "Passage": d} for q, d in PAIRS],
    "anchors": [{"anchor": q, "positive": d} for q, d in PAIRS],
    "lists": [{"query": q, "pos": [d], "neg": []} for q, d in PAIRS],
    "ragas": [{"user_input": q, "reference_contexts": [f"<1-hop>\n\n{d}"]} for q, d in PAIRS],
    "objects": [{"query": q, "positive_passages": [{"docid": q, "text": d}]} for q, d in PAIRS],
    "examples": {"examples": [{"query": q, "reference_contexts": [d]} for q, d in PAIRS]},
    "columns": {"question": [*QUERIES.values()], "context": [*TEXTS.values()]},
    "arrays": {"query": np.array([*QUERIES.values()]), "pos": [*TEXTS.values()], "by": "us"},
    "frame": {"query": QUERIES, "document": TEXTS},
    "index": {str(n): {"query": q, "document": d} for n, (q, d) in enumerate(PAIRS)},
    "sets": {q: {d} for q, d in PAIRS},
    "grades": {q: {d: 1} for q, d in PAIRS},
    "parts": {"queries": QUERIES, "corpus": TEXTS, "relevant_docs": {0: [0], 1: [1]}},
    "models": SimpleNamespace(
        examples=[Example(query=q, reference_contexts=[d]) for q, d in PAIRS]
    ),
}


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_pairs_in_every_shape_are_the_same_pairs(rows):
    assert texts(Dataset.from_records(rows, strict=True)) == EXPECTED


FIRST = np.array([1, 0])
NEGATIVES: dict[str, Any] = {
    "tuples": [(*pair, WRONG) for pair in PAIRS],
    "triplets": [{"anchor": q, "positive": d, "negative": WRONG} for q, d in PAIRS],
    "lists": [{"query": q, "pos": [d], "neg": [WRONG]} for q, d in PAIRS],
    "numbered": [{"anchor": q, "positive": d, "negative_1": WRONG} for q, d in PAIRS],
    "labels": [{"query": q, "document": d, "label": g} for q, d, g in LABELLED],
    "flags": [{"query": q, "document": d, "is_relevant": bool(g)} for q, d, g in LABELLED],
    "lists of labels": [{"query": q, "answer": [d, WRONG], "labels": [1, 0]} for q, d in PAIRS],
    "scores with a 0": [{"query": q, "pos": [d, WRONG], "scores": [0.9, 0]} for q, d in PAIRS],
    "arrays": [{"query": q, "pos": np.array([d, WRONG]), "labels": FIRST} for q, d in PAIRS],
    "cells": [{"query": q, "pos": str(np.array([d, WRONG])), "labels": "[1 0]"} for q, d in PAIRS],
    "objects": [{"query": q, "pos": [{"is_selected": g, "passage": d}]} for q, d, g in LABELLED],
    "MS MARCO": [{"query": q, "passages": {"is_selected": FIRST, "passage_text": [d, WRONG]}}
                 for q, d in PAIRS],
    "late": [*[{"query": q, "pos": d} for q, d in PAIRS] * 501,
             *[{"query": q, "negative": WRONG} for q, _ in PAIRS]],
    "thumbs": [{"query": q, "pos": d, "vote": "up" if g else "no"} for q, d, g in LABELLED],
}  # fmt: skip


@pytest.mark.parametrize("rows", NEGATIVES.values(), ids=NEGATIVES)
def test_negatives_in_every_shape_are_hard_negatives(rows):
    data = Dataset.from_records(rows, strict=True)
    assert texts(data) == EXPECTED
    found = [[data.corpus[d] for d in documents] for documents in data.hard_negatives.values()]
    assert found == [[WRONG]] * 2


def test_grades_are_kept_and_clicks_and_votes_add_up():
    rows = [("q", "a", 2), ("q", "b", 1), ("q", "a", 1), ("q", "c", 0)]
    data = Dataset.from_records(rows)
    assert sorted((data.grades or {})[next(iter(data.queries))].values()) == [1, 2]
    graded = {"grades": {0: {0: 3}}, "provenance": {1: "human"}}  # ids that are numbers
    data = Dataset.from_records({**SHAPES["parts"], **graded}, strict=True)
    assert (data.grades, data.provenance) == ({"0": {"0": 3.0}}, {"1": "human"})
    shown = [("a", "x"), ("a", "y"), ("b", "y")]
    for name, cells in (("clicks", (3, 0, 1)), ("clicked", (1, 0, "yes")), ("clicked", "101")):
        rows = [
            {"query": q, "document": d, name: n} for (q, d), n in zip(shown, cells, strict=True)
        ]
        data = Dataset.from_records(rows)
        assert texts(data) == [("a", ["x"]), ("b", ["y"])]
        assert (data.grades, data.hard_negatives) == (None, None)
        assert data.sources == {"feedback": 2}
    votes = [("a", "x", True), ("a", "x", False), ("a", "x", True), ("a", "y", -1)]
    rows = [dict(zip(("query", "document", "feedback"), row, strict=True)) for row in votes]
    assert texts(Dataset.from_records(rows)) == [("a", ["x"])]


def test_scores_of_a_model_are_no_grades():
    rows = [{"query": "q", "pos": ["a", "b"], "scores": [0.9, 0.1]},
            {"query": "r", "pos": "c", "scores": [0.9, 0.0]}]  # fmt: skip
    with pytest.warns(UserWarning, match=r'2 lists of scores that do not say .*"row 1", "row 2"'):
        assert texts(Dataset.from_records(rows)) == [("q", ["a", "b"]), ("r", ["c"])]


ITEMS = ["Bakers' bread.", 'Ovens are "hot".']
FORMS = {
    "numpy": str(np.array(ITEMS)),
    "repr": repr(np.array([*ITEMS, None], dtype=object)),
    "gaps": str([ITEMS[0], None, ITEMS[1], float("nan")]),
    "objects": str(np.array([{"text": text, "title": None} for text in ITEMS])),
    "JSON": json.dumps([*ITEMS, None]),
}


@pytest.mark.parametrize("cell", FORMS.values(), ids=FORMS)
def test_lists_in_cells_are_read_as_json_python_and_numpy_write_them(cell):
    rows = [{"query": "q", "pos": cell}, {"query": "r", "pos": "[1] Don't: a text, as is 'this'."}]
    assert texts(Dataset.from_records(rows, strict=True)) == [("q", ITEMS), ("r", [rows[1]["pos"]])]
    with pytest.warns(
        UserWarning, match=r"(?s)1 lists that cannot be read .first: .*1 rows without a"
    ):
        Dataset.from_records([*rows, {"query": "s", "pos": cell[: len(cell) // 2]}])


def test_labels_of_inference_say_entailed_neutral_contradicted():
    labelled = zip(
        (*PAIRS, *((q, WRONG) for q, _ in PAIRS), ("a", "b")), (0, 0, 2, 2, 1), strict=True
    )
    rows = [{"premise": q, "hypothesis": d, "label": label} for (q, d), label in labelled]
    with pytest.warns(UserWarning, match=r': 1 pairs that neither entail .*first: "row 5".\.$'):
        data = Dataset.from_records(rows)
    assert texts(data) == EXPECTED
    assert [data.corpus[d] for (d,) in (data.hard_negatives or {}).values()] == [WRONG] * 2
    scored = [{**row, "label": 3} for row in rows]  # another scale
    assert len(Dataset.from_records(scored, strict=True)) == 3


def test_passages_and_queries_may_be_named_by_id():
    corpus = {1: "one", 2: "two", 3: "three"}
    rows = [{"qid": 7, "docid": 2, "rel": 2}, {"qid": 7, "docid": 9, "rel": 1}]
    with pytest.warns(UserWarning, match="1 judgements of documents that are not .*: .9"):
        data = Dataset.from_records(rows, queries={7: "?"}, corpus=corpus)
    assert (data.queries, data.relevant_docs) == ({"7": "?"}, {"7": ["2"]})
    assert data.corpus == {"1": "one", "2": "two", "3": "three"}
    for named in (["3"], {"docid": 3, "text": None}):
        found = Dataset.from_records([{"query": "?", "pos": named}], corpus=corpus)
        assert (found.corpus, [*found.relevant_docs.values()]) == (data.corpus, [["3"]])
    rows = [{"query_id": "q", "document_id": "d", "position": 1, "clicks": 2, "score": 1}]
    given: Any = {"queries": {"q": "who?"}, "corpus": {"d": "The inspector signs.", "e": WRONG}}
    plain = {"query_id": ["q"], "document_id": ["d"], "score": [1]}
    for found in (Dataset.from_records(plain, **given), Dataset.from_feedback(rows, **given)):
        assert found.relevant_docs == {"q": ["d"]}
        assert found.corpus == given["corpus"]


@pytest.mark.parametrize("reader", ["from_records", "from_feedback"])
def test_an_id_that_the_corpus_lacks_becomes_no_document(tmp_path, reader):
    given: Any = {"queries": {1: "who bakes"}, "corpus": {2: "Bakers bake.", 3: "Pilots fly."}}
    (tmp_path / "log.csv").write_text("qid,docid,negative,clicks\n1.0, 2.0,3,2\n1,zzz,yyy,2\n")
    named: Any = {"document": "docid", "negative": "negative"}
    rows = {"qid": 1.0, "docid": "2.0", "negative": " 3", "clicks": 2}
    for log, names in ((tmp_path / "log.csv", {}), ([rows, {**rows, "docid": "zzz"}], named)):
        with pytest.warns(UserWarning, match=r'1 judgements of documents that are not .*"zzz"'):
            data = getattr(Dataset, reader)(log, **given, **names)
        assert data.corpus == {"2": "Bakers bake.", "3": "Pilots fly."}
        assert data.relevant_docs == {"1": ["2"]}
        assert data.hard_negatives == ({"1": ["3"]} if reader == "from_records" else None)


def test_equal_texts_are_one_and_ids_do_not_depend_on_order():
    rows = [("a", "x"), ("a", "y"), ("b", "x")]
    data, turned = Dataset.from_records(rows), Dataset.from_records(rows[::-1])
    assert (len(data.queries), len(data.corpus)) == (2, 2)
    assert (data.queries, data.corpus) == (turned.queries, turned.corpus)
    data = Dataset.from_records([("what is \ud83d\ude00?", "half \ud83d")])
    assert texts(data) == [("what is 😀?", ["half \N{REPLACEMENT CHARACTER}"])]


def test_columns_of_other_names_are_named():
    rows = [{"frage": "q", "abschnitt": "d", "nicht": "n"}]
    with pytest.raises(DatasetError, match=r'hold queries.* name it: query=….*"frage", "absch'):
        Dataset.from_records(rows)
    data = Dataset.from_records(rows, query="frage", document=["abschnitt"], negative="nicht")
    assert texts(data) == [("q", ["d"])]
    assert data.hard_negatives is not None
    with pytest.raises(DatasetError, match=r'query: no column "fragen". Columns: "frage"'):
        Dataset.from_records(rows, query="fragen", document="abschnitt")
    with pytest.raises(OptionError, match=r'Unknown argument "quary". Did you mean "query"'):
        Dataset.from_records([{"query": "a", "document": "b"}], quary="query")


def test_rows_that_cannot_be_used_are_counted_once_or_refused(tmp_path):
    rows = [{"q": "a", "pos": "x", "score": 1}, {"q": "", "pos": "x"}, {"q": "b", "pos": None},
            {"q": "c", "pos": "y", "score": "high"}, {"q": 5, "pos": "x"}]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("\n".join([*map(json.dumps, rows), "{oops", '{"q": "d"}']))
    counted = r'1 rows without a query .first: "row 2".; %s rows without a document .first: "row 3"'
    graded = r'.*; 1 rows whose grade, vote or count is no number .first: "row 4".'
    graded += r'; 1 rows whose query is neither text nor a known id .first: "row 5".\.$'
    with pytest.warns(UserWarning, match=counted % 1 + graded):
        assert texts(Dataset.from_records(rows)) == [("a", ["x"])]
    lines = r'JSON objects .first: "row 6".; '
    with pytest.warns(UserWarning, match=lines + counted % 2 + ', "row 7"' + graded):
        assert texts(Dataset.from_file(tmp_path / "log.jsonl")) == [("a", ["x"])]
    with pytest.raises(DatasetError, match="1 rows without a query"):
        Dataset.from_records(rows, strict=True)


Named = type("Named", (), {"column_names": ["query", "document"]})  # as data sets of HuggingFace
LISTS = {"queries": ["a", "b"], "corpus": ["Do a", "Do b"], "relevant_docs": [[0], [1]]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text", r"rows: expected dicts, got str\. Files: from_file"),
        (LISTS, r'the objects queries and corpus \(id → text\) .*not an object: "queries", "corp'),
        ({**SHAPES["parts"], "relevant_docs": None}, 'missing or not an object: "relevant_docs"'),
        ({"queries": {}, "corpus": {}, "relevant_docs": {}}, "no answered query is left: it is em"),
        ({"query": ["a", "b"], "document": ["x x"]}, "of one length, got query: 2, document: 1"),
        (
            {"train": Named(), "test": Named()},
            'expected rows, got splits: "train", "test". Pass one',
        ),
        ({"queries": ["a", "b"], "documents": ["x", "y"]}, "no column is known to hold queries"),
    ],
)
def test_what_is_neither_rows_nor_columns_nor_parts_is_refused(rows, message):
    with pytest.raises(DatasetError, match=message):
        Dataset.from_records(rows)


def test_provenance_is_what_rows_say_or_what_is_said_of_them():
    ragas = [{"user_input": "q", "reference_contexts": ["d"], "synthesizer_name": "single_hop"}]
    assert Dataset.from_records(ragas).sources == {"llm": 1}
    by = {"query": "q", "reference_contexts": ["d"], "query_by": {"type": "human"}}
    assert Dataset.from_records({"examples": [by]}).sources == {"human": 1}
    assert Dataset.from_records(PAIRS, provenance="human").sources == {"human": 2}
    assert Dataset.from_records(PAIRS).sources == {}


ROWS = [{"query": q, "pos": [d]} for q, d in PAIRS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("rows.json", json.dumps(ROWS, indent=1)),
        ("one.json", json.dumps({"data": ROWS})),
        ("rows.csv", "query,document\r\n" + "\r\n".join(f'"{q}","{d}"' for q, d in PAIRS)),
        ("rows.csv", "query;document\n" + "\n".join(f"{q};{d}" for q, d in PAIRS)),
        ("rows.tsv", "query\tpos\n" + "\n".join(f"{q}\t{[d]}" for q, d in PAIRS)),
    ],
    ids=["lines", "list", "object", "commas", "semicolons", "tabs"],
)
def test_files_are_read_by_what_is_inside(tmp_path, name, content, encoding):
    for ending in (name, name.upper(), f"{name}.gz", "misnamed.txt"):
        data = content.encode(encoding)
        (tmp_path / ending).write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
        assert holds_pairs(tmp_path / ending) == (ending != "misnamed.txt")
        assert texts(Dataset.from_file(tmp_path / ending, strict=True)) == EXPECTED


def test_frames_tables_and_parquet_are_read(tmp_path, small):
    pandas = pytest.importorskip("pandas", reason="extra 'pandas' is missing")
    pytest.importorskip("pyarrow", reason="extra 'pandas' is missing")
    frame = pandas.DataFrame(PAIRS, columns=["anchor", "positive"])
    frame["negative"] = [None, WRONG]
    frame.to_parquet(tmp_path / "rows.parquet")
    for data in (Dataset.from_dataframe(frame), Dataset.from_parquet(tmp_path / "rows.parquet")):
        assert texts(data) == EXPECTED
        assert len(data.hard_negatives or {}) == 1
    small.save_json(tmp_path / "ours.json")
    assert Dataset.from_file(tmp_path / "ours.json") == small


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1 and no more", "expected parquet"),
        (b"only prose, or one column", "expected a table whose first line names|known to hold"),
        (b"{oops", "expected JSON or JSON lines"),
        (b'[{"q": "a"},\n{"q": }]', "file: expected JSON .*line 2 column 7"),
        (gzip.compress(b"q,doc\na,b\n", mtime=0)[:-9], "file: cannot be unzipped"),
        (gzip.compress(b"[]", mtime=0), "file: expected rows, it is empty"),
        ("query\tdocument\na\tb\n".encode("utf-16")[:-1], "file: cannot be read as utf-16"),
        (b"\0", "file: cannot be read as utf-16"),
    ],
)
def test_files_that_hold_no_rows_are_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        Dataset.from_file(tmp_path / "file")


def test_clicks_further_down_weigh_more_and_what_was_skipped_is_no_answer():
    log = [
        {"query": "reset", "document": text, "rank": place, "clicks": clicks, "session": [session]}
        for session in range(3)
        for text, place, clicks in (("first", 1, 0), ("second", 2, 1), ("fourth", 4, session < 2))
    ]
    log.append({"query": "other", "document": "first", "rank": 1, "clicks": 1, "session": 0})
    with pytest.warns(UserWarning, match="1 pairs below min_clicks=2 .first: .other.[)]"):
        found = Dataset.from_feedback(log)
    assert texts(found) == [("reset", ["second", "fourth"])]
    (grades,) = (found.grades or {}).values()
    assert list(grades.values()) == [6 / 8, 1.0]
    ((hard,),) = (found.hard_negatives or {}).values()
    assert found.corpus[hard] == "first"
    assert found.sources == {"feedback": 1}
    with pytest.warns(UserWarning, match="min_clicks=2"):
        assert Dataset.from_records(log) == found  # clicks with positions are read alike
    with pytest.warns(UserWarning, match=r": 2 pairs below min_clicks=3 \(first: [^;]*$"):
        least = Dataset.from_feedback(log, least=1.0, bias=0.0, min_clicks=3)
    assert texts(least) == [("reset", ["second"])]
    with pytest.raises(OptionError, match="min_clicks >= 1"):
        Dataset.from_feedback(log, min_clicks=0)


def test_a_row_with_more_cells_than_columns_is_left_out_and_counted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("query,document\na,one,,\nhow to pay,Pay, then wait\nb,two\nc,\n")
    left = (
        r"1 rows with more cells than columns .*needs quotes.*row 2.*; 1 rows without.*row 4..\.$"
    )
    with pytest.warns(UserWarning, match=left):
        data = Dataset.from_file(path)
    assert list(data.queries.values()) == ["a", "b"]
    path.write_text('query,document\n"a","one"\nhow to pay,"Pay\nb,two\n')
    with pytest.warns(UserWarning, match=r'1 wrong quote, .*first: "line 3"'):
        assert list(Dataset.from_file(path).queries.values()) == ["a", "how to pay"]
    with pytest.raises(DatasetError, match="1 wrong quote"):
        Dataset.from_file(path, strict=True)
    path.write_text("query,document,document\na,one,two\n")
    with pytest.warns(UserWarning, match='1 columns named twice, of which the last .*"document"'):
        assert texts(Dataset.from_file(path)) == [("a", ["two"])]
    path.write_text("query,document\nhow to pay,Pay, then wait\n")
    said = "expected a table: 1 rows with more cells than columns"
    with pytest.raises(DatasetError, match=said):
        Dataset.from_file(path)


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        (["a=bm25", "a=bm25"], "two are named 'a'. Name them: other=bm25$"),
        (["local:"], 'expected a folder after "local:", got .local:.'),
        (["a=adapted:"], 'expected a folder after "adapted:"'),
    ],
)
def test_models_without_a_name_or_a_folder_of_their_own_are_refused(specs, said):
    with pytest.raises(OptionError, match=said):
        named_models(specs, {"d": "text"})
