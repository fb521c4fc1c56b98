import gzip
import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import MetadataMode, TextNode

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.errors import DatasetError, OptionError

ONE_FOLDER = [HealthCheck.function_scoped_fixture]
FAST = settings(max_examples=30, deadline=None, suppress_health_check=ONE_FOLDER)
TEXT = st.text(min_size=1, max_size=20).filter(lambda text: bool(text.strip()))
PLAIN_ID = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)


@st.composite
def datasets(draw: st.DrawFn, *, graded: bool = False) -> Dataset:
    corpus = draw(st.dictionaries(PLAIN_ID, TEXT.map(str.strip), min_size=1, max_size=6))
    queries = draw(st.dictionaries(PLAIN_ID, TEXT, min_size=1, max_size=6))
    some = st.lists(st.sampled_from(sorted(corpus)), min_size=1, max_size=3, unique=True)
    relevant = {query: draw(some) for query in queries}
    grade = st.sampled_from([1.0, 2.0, 3.0])
    grades = {q: {d: draw(grade) for d in docs} for q, docs in relevant.items()}
    return Dataset(queries, corpus, relevant, grades=grades if graded else None)


def test_the_json_is_that_of_the_old_class_byte_for_byte(tmp_path, small):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = pytest.importorskip("llama_index.finetuning", reason="the old package is missing")
    parts = {"queries": small.queries, "corpus": small.corpus, "relevant_docs": small.relevant_docs}
    theirs = old.EmbeddingQAFinetuneDataset(**parts)
    theirs.save_json(str(tmp_path / "theirs.json"))
    small.save_json(tmp_path / "ours.json")
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    assert Dataset.from_json(tmp_path / "theirs.json") == small
    again = old.EmbeddingQAFinetuneDataset.from_json(str(tmp_path / "ours.json"))
    assert again.model_dump() == theirs.model_dump()
    assert small.query_docid_pairs == theirs.query_docid_pairs


@FAST
@given(data=st.one_of(datasets(), datasets(graded=True)))
def test_json_and_beir_round_trips_give_back_the_same(tmp_path, data):
    data.save_json(tmp_path / "data.json")
    assert Dataset.from_json(tmp_path / "data.json") == data
    folder = tmp_path / "beir"
    (folder / "queries.jsonl").unlink(missing_ok=True)  # other splits' queries would be kept
    data.to_beir(folder, split="dev")
    back = Dataset.from_beir(folder, split="dev")
    assert (back.queries, back.corpus) == (data.queries, data.corpus)
    for query, documents in data.relevant_docs.items():
        assert set(back.relevant_docs[query]) == set(documents)
        for document in documents:
            assert back.grade(query, document) == data.grade(query, document)


def test_splits_of_a_folder_share_their_corpus_and_never_an_id(tmp_path):
    first, second = Dataset.from_records([("a?", "b")]), Dataset.from_records([("c?", "d")])
    for split, data in (("train", first), ("train.2", second), ("train", first)):
        data.to_beir(tmp_path, split)
    for split, data in (("train", first), ("train.2", second)):
        found = Dataset.from_file(tmp_path, split=split)
        assert (found.queries, found.relevant_docs) == (data.queries, data.relevant_docs)
        assert found.corpus == {**first.corpus, **second.corpus}
    [query], [document] = second.queries, second.corpus
    for queries, corpus in (({query: "x"}, {"d": "y"}), ({"q": "x"}, {document: "y"})):
        clash = Dataset(queries, corpus, {q: list(corpus) for q in queries})
        with pytest.raises(DatasetError, match="of another split there has another text"):
            clash.to_beir(tmp_path, "train")


def test_numbers_of_numpy_and_pandas_are_numbers():
    parts = {"queries": {"q": "who"}, "corpus": {"a": "x", "b": "y"}}
    graded = {"q": {"a": np.int64(2), "b": np.float32(0)}}
    assert Dataset.from_records({**parts, "relevant_docs": graded}).relevant_docs == {"q": ["a"]}
    assert Dataset(**parts, relevant_docs=graded).grade("q", "a") == 2
    assert Dataset.from_records({"who": {"me": np.int64(2)}}).grades
    frame = pd.DataFrame({"query_id": [1, 2], "document_id": [7, 8], "score": [1, 1]})
    texts = {"queries": pd.Series({1: "a", 2: "b"}), "corpus": pd.Series({7: "x", 8: "y"})}
    for rows in (frame, [dict(row) for _, row in frame.iterrows()]):
        assert Dataset.from_records(rows, **texts).relevant_docs == {"1": ["7"], "2": ["8"]}
    split = Dataset.from_records([(f"query {n}", f"text {n}") for n in range(20)]).train_test_split
    assert split(np.float32(0.5), seed=np.int64(3)) == split(0.5, seed=3)


def test_no_text_is_in_both_parts_whatever_its_ids():
    corpus = {f"{n}{copy}": f"text {n}" for n in range(20) for copy in "ab"}
    queries = {name: f"asks {name}" for name in corpus}
    whole = Dataset(queries, corpus, {name: [name] for name in corpus})
    parts = whole.train_test_split(0.3, by="document", seed=0)
    asked = [{corpus[d] for docs in part.relevant_docs.values() for d in docs} for part in parts]
    assert not asked[0] & asked[1]
    assert sum(map(len, parts)) == len(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected a JSON object, got list"),
        ("{", "expected JSON"),
        ('{"queries": {}, "corpus": []}', 'missing or not an object: "corpus", "relevant_docs"'),
        ('{"queries": {"a": "b", "a": "c"}}', 'duplicate key ids .first: "a"'),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        Dataset.from_json(tmp_path / "data.json", strict=True)


CORPUS = {"d": "so", "e": "no"}
QA = {"queries": {"q": "wie heißt es?"}, "corpus": CORPUS, "relevant_docs": {"q": ["d"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant_docs": {"q": "d"}}, None),
        ({"relevant_docs": {"q": {"d": 1, "e": 0}}}, None),
        ({"relevant_docs": {"q": [1]}, "corpus": {"1": "so", "e": "no"}}, None),
        ({"negative_docs": {"q": ["e"]}}, None),
        ({"relevant_docs": {"q": ["d", "d"]}}, '1 documents named twice.*"d"'),
        ({"relevant_docs": {"q": ["d", "x"]}}, '1 judgements of documents that are not.*"x"'),
        ({"queries": {**QA["queries"], "r": "why?"}}, '1 queries without a relevant.*"r"'),
        ({"queries": {**QA["queries"], "r": " "}}, '1 queries without text.*"r"'),
        ({"reference_answers": {}}, '1 unknown keys .first: "reference_answers"'),
        ({"grades": {"q": {"d": "high"}}}, '1 grades that are no numbers.*"high"'),
        ({"hard_negatives": {"q": ["d", "e"]}}, '1 hard negatives that are relevant.*"d"'),
    ],
)
def test_json_as_others_write_it_is_read_and_what_is_left_out_is_counted(tmp_path, change, message):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({**QA, **change}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = Dataset.from_json(path)
    assert (list(data.queries), [len(docs) for docs in data.relevant_docs.values()]) == (["q"], [1])
    assert data.hard_negatives == ({"q": ["e"]} if "neg" in str(change) else None)
    if message is None:
        assert not caught
        assert Dataset.from_json(path, strict=True) == data
    else:
        assert re.search(message, str(caught[0].message))
        with pytest.raises(DatasetError, match=message):
            Dataset.from_json(path, strict=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_marks_and_wide_characters_are_no_fault(tmp_path, encoding):
    (tmp_path / "data.json").write_text(json.dumps(QA, ensure_ascii=False), encoding=encoding)
    assert Dataset.from_json(tmp_path / "data.json", strict=True).queries == QA["queries"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "wie heißt es?"),
        ("cp1252", "¿cómo reinicio el señalador del año?"),
        ("cp1252", "hvordan nulstiller jeg på færgen, og hvad gør den?"),
        ("cp1251", "как сбросить пароль устройства"),
        ("cp1250", "jak zresetować hasło, gdy żółty świeci"),
        ("cp932", "パスワードをリセットする方法は何ですか"),
    ],
)
def test_windows_code_pages_are_read_and_named(tmp_path, encoding, text):
    path = tmp_path / "data.json"
    data = {**QA, "queries": {"q": text}}
    path.write_text(json.dumps(data, ensure_ascii=False), encoding=encoding)
    with pytest.warns(UserWarning, match="not all UTF-8, read as cp"):
        assert Dataset.from_json(path).queries == data["queries"]
    with pytest.raises(DatasetError, match="not all UTF-8, read as cp"):
        Dataset.from_json(path, strict=True)


def test_a_damaged_byte_does_not_make_utf_8_another_encoding(tmp_path):
    text = json.dumps({**QA, "queries": {"q": "größte Höhe übersät"}}, ensure_ascii=False)
    (tmp_path / "data.json").write_bytes(text.encode().replace("Höhe".encode(), b"H\xf6he"))
    with pytest.warns(UserWarning, match="read as utf-8"):
        data = Dataset.from_json(tmp_path / "data.json")
    assert data.queries == {"q": "größte H\N{REPLACEMENT CHARACTER}he übersät"}


def test_provenance_is_kept_through_files_parts_and_merges(tmp_path, small):
    written = small.with_provenance("llm")
    written.save_json(tmp_path / "data.json")
    written.to_beir(tmp_path / "beir")
    for read in (Dataset.from_json(tmp_path / "data.json"), Dataset.from_beir(tmp_path / "beir")):
        assert read.provenance == written.provenance == dict.fromkeys(small.queries, "llm")
        assert read.synthetic
    train, test = written.train_test_split(3)
    assert (train.sources, test.sources) == ({"llm": 9}, {"llm": 3})
    answer = {"d0": small.corpus["d0"]}
    asked = Dataset({"h": "who?"}, answer, {"h": ["d0"]}, provenance={"h": "human"})
    both = train.merged(asked).merged(test)
    assert both.sources == {"llm": 12, "human": 1}
    assert not both.synthetic
    assert small.merged(asked).sources == {"unknown": 12, "human": 1}
    assert written.fingerprint == small.fingerprint  # the same texts and judgements
    with pytest.raises(DatasetError, match=r'expected one of human, .*; 12 are not .*: "robot"'):
        small.with_provenance("robot")


PARTS = {"queries": {"q1": "one", "q2": "two"}, "corpus": {"d1": "first", "d2": "second"}}
APART = {"q1": ["d1"], "q2": ["d2"]}
GOOD: dict[str, Any] = {**PARTS, "relevant_docs": {"q1": ["d1"], "q2": ["d1", "d2"]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant_docs": {"q1": ["d9"], "q2": ["d8"]}}, r'2 document ids.*first: "d9", "d8"'),
        ({"relevant_docs": {"q1": ["d1"]}}, r'1 of 2 queries have no relevant.*"q2".*judged'),
        ({"relevant_docs": {**GOOD["relevant_docs"], "q3": ["d1"]}}, r'1 query ids.*"q3"'),
        ({"relevant_docs": {"q1": ["d1", "d1"], "q2": ["d1"]}}, 'name a document twice.*"q1"'),
        ({"relevant_docs": {"q1": "d1", "q2": ["d1"]}}, 'expected lists.*1 of 2.*"q1"'),
        ({"hard_negatives": {"q1": ["d9"]}}, 'hard_negatives: 1 document ids.*"d9"'),
        ({"hard_negatives": {"q1": ["d1"]}}, r"hard_negatives: 1 pairs .* are relevant.*q1 → d1"),
        ({"provenance": {"q9": "llm"}}, 'provenance: 1 query ids are not in queries.*"q9"'),
        ({"relevant_docs": [("q1", "d1")]}, "expected a dict of query id .*got list"),
        ({"queries": {"q1": " ", "q2": ""}}, 'queries: 2 of 2 texts are empty.*"q1", "q2"'),
        ({"corpus": {"d1": "", "d2": "b"}}, 'corpus: 1 of 2 texts are empty.*"d1"'),
        ({"corpus": {"d1": None, "d2": "b"}}, 'string texts; 1 of 2 are not.*"d1"'),
        ({"queries": ["one"]}, "queries: expected a dict of id → text, got list"),
        ({"queries": {}, "relevant_docs": {}}, "queries: expected at least one text"),
        ({"grades": {"q1": {"d2": 1}}}, "grades: 1 pairs .* are not among relevant_docs.*q1 → d2"),
        ({"grades": {"q1": {"d1": 0}}}, "grades: expected numbers > 0; 1 are not .*q1 → d1: 0"),
    ],
)
def test_bad_data_is_refused_with_numbers_and_names(change, message):
    with pytest.raises(DatasetError, match=message):
        Dataset(**{**GOOD, **change})


def test_relevance_may_be_sets_grades_or_missing_and_is_dropped_with_a_word():
    relevant = {"q1": ["d1"], "q2": []}
    data = Dataset(GOOD["queries"], GOOD["corpus"], relevant, allow_unjudged=True)
    with pytest.warns(UserWarning, match="Dropped 1 of 2 queries"):
        judged = data.judged()
    assert list(judged.queries) == ["q1"]
    assert judged.judged() == judged
    parts = ({"q": "?"}, {"a": "1", "b": "2"})
    assert Dataset(*parts, {"q": {"b", "a"}}).relevant_docs == {"q": ["a", "b"]}
    graded = Dataset(*parts, {"q": {"a": 2, "b": 0}})
    assert (graded.relevant_docs, graded.grades) == ({"q": ["a"]}, {"q": {"a": 2}})


def test_nodes_give_the_text_that_an_index_embeds():
    node = TextNode(id_="n", text="body", metadata={"title": "head", "hidden": "x"})
    node.excluded_embed_metadata_keys = ["hidden"]
    data = Dataset.from_nodes([node], {"q": "?"}, {"q": ["n"]})
    assert data.corpus["n"] == node.get_content(MetadataMode.EMBED) == "title: head\n\nbody"
    with pytest.raises(DatasetError, match=r'1 duplicate node ids .first: "n"'):
        Dataset.from_nodes([node, node], {"q": "?"}, {"q": ["n"]})


def test_the_fingerprint_tells_datasets_apart_and_the_repr_is_short(small):
    many = {**small.corpus, "d0": "another text", **{f"e{n}": "é" for n in range(40)}}  # in parts
    other = Dataset(small.queries, many, small.relevant_docs)
    assert small.fingerprint != other.fingerprint
    whole = json.dumps([other.queries, other.corpus, other.relevant_docs, None], sort_keys=True)
    assert other.fingerprint == hashlib.sha256(whole.encode()).hexdigest()[:16]
    assert small.fingerprint == small.subset(list(small.queries)).fingerprint
    assert repr(small) == "EmbeddingQAFinetuneDataset(12 queries, 6 documents)"


def beir_folder(folder: Path, *, qrels: str, corpus: str = "", queries: str = "") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = corpus or '{"_id": "d1", "title": "T", "text": "t"}\n{"_id": "d2", "text": "u"}\n'
    queries = queries or '{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": "two"}\n'
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_plain_and_gzipped_files_titles_and_grades_are_read(tmp_path):
    data = Dataset.from_beir(beir_folder(tmp_path / "b", qrels="q1\td1\t2\nq1\td2\t0\n"), "test")
    assert data.corpus == {"d1": "T t", "d2": "u"}
    assert data.queries == {"q1": "one"}
    assert data.relevant_docs == {"q1": ["d1"]}
    assert data.grade("q1", "d1") == 2
    assert data.grade("q1", "d2") == 0


LINES = {name: json.dumps({"_id": name, "text": name}) + "\n" for name in ("d1", "q1")}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"qrels": "q1\td1\t1\nq2\td2\t0\n"}, r'1 queries without a relevant document.*"q2"'),
        ({"qrels": "q1\td1\t1\nq1\td2\n"}, r'1 lines of test.tsv that are no judgement.*"line 3"'),
        ({"qrels": "q1\td1\t1\nq1\td2\thigh\n"}, r"1 lines of test.tsv that are no judgement"),
        ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, r"1 pairs judged twice, .* higher grade"),
        ({"qrels": "q1\td1\t1\nq1\td9\t1\n"}, r'1 judgements of documents that are not .*"d9"'),
        ({"qrels": "q1\td1\t1\nq7\td1\t1\n"}, r'1 judged queries without a text .first: "q7"'),
        ({"corpus": LINES["d1"] + '{"_id": "d2", "text": ""}'}, r'1 texts of corpus.*empty.*"d2"'),
        ({"corpus": LINES["d1"] + "{oops"}, r'1 lines of corpus.jsonl without an id.*"line 2"'),
        ({"corpus": LINES["d1"] * 2}, r'1 ids of corpus.jsonl given twice .first: "d1"'),
        ({"queries": LINES["q1"] + '{"_id": "q1", "text": "b"}'}, r"given twice, with two texts"),
    ],
)
def test_what_published_folders_have_too_much_is_counted_or_refused(tmp_path, parts, message):
    folder = beir_folder(tmp_path / "b", **{"qrels": "q1\td1\t1\n", **parts})
    with pytest.warns(UserWarning, match=message):
        data = Dataset.from_beir(folder, "test")
    assert (list(data.queries), data.relevant_docs) == (["q1"], {"q1": ["d1"]})
    with pytest.raises(DatasetError, match=message):
        Dataset.from_beir(folder, "test", strict=True)


@pytest.mark.parametrize(
    ("name", "qrels"),
    [
        ("test.tsv", "query_id\tcorpus_id\tscore\r\nq1\td1\t1\r\nq2\td2\t1\r\n"),
        ("test.tsv", "q1 0 d1 1\nq2 0 d2 1\n"),
        ("test.trec", "q1\t0\td1\t1\nq2\t0\td2\t1\n"),
        ("test.tsv", "q1\td1\t1\nq1\td1\t1\nq2\td2\t1\nq2\td1\t-1\n"),
        ("test.jsonl", '{"query-id": "q1", "corpus-id": "d1", "score": 1}\n'
                       '{"query-id": "q2", "corpus-id": "d2", "score": 1}\n'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_shapes_of_qrels_that_circulate_are_one(tmp_path, name, qrels, encoding):
    folder = beir_folder(tmp_path / "b", qrels="")
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / name).write_text(qrels, encoding=encoding, newline="")
    data = Dataset.from_beir(folder, "test", strict=True)
    assert data.relevant_docs == {"q1": ["d1"], "q2": ["d2"]}
    assert data.grades is None


def test_ids_are_numbers_have_another_name_or_quotes(tmp_path):
    corpus = '{"id": 1, "title": null, "text": "t"}\n'
    corpus += '{"_id": "\\"Weird Al\\"", "title": "only", "text": null}'
    qrels = 'q1\t1\t1\nq1\t"Weird Al"\t1\n'
    data = Dataset.from_beir(beir_folder(tmp_path / "b", qrels=qrels, corpus=corpus), "test")
    assert data.corpus == {"1": "t", '"Weird Al"': "only"}
    assert data.relevant_docs == {"q1": ["1", '"Weird Al"']}
    data.to_beir(tmp_path / "again")  # where quotes mark
    assert Dataset.from_beir(tmp_path / "again", strict=True) == data


def test_a_split_that_is_written_loses_no_query_of_others(tmp_path, small):
    small.to_beir(tmp_path, "train")
    known = tmp_path / "queries.jsonl"
    zipped = tmp_path / "queries.jsonl.gz"
    zipped.write_bytes(gzip.compress(known.read_bytes()))
    known.unlink()
    one = next(iter(small.corpus))
    Dataset({"new": "another"}, small.corpus, {"new": [one]}).to_beir(tmp_path, "test")
    assert Dataset.from_beir(tmp_path, "train") == small
    with known.open("a", encoding="utf-8") as stream:
        stream.write('{"_id": "torn", "te')
    with pytest.raises(DatasetError, match=r"1 lines of queries.jsonl without.*would be lost"):
        small.to_beir(tmp_path, "train")


def test_missing_and_broken_files_and_those_of_which_nothing_is_left_are_named(tmp_path):
    nothing = beir_folder(tmp_path / "a", qrels="q9\td9\t1\n")
    with pytest.raises(DatasetError, match=r"no answered query is left: 1 judged queries without"):
        Dataset.from_beir(nothing, "test")
    nothing = beir_folder(tmp_path / "c", qrels="q1\td1\t1\n", corpus="{oops")
    with pytest.raises(DatasetError, match=r'corpus.jsonl: expected at least one text.*"line 1"'):
        Dataset.from_beir(nothing, "test")
    folder = beir_folder(tmp_path / "b", qrels="q1\td1\t1\n")
    there = "no split 'dev'. Splits there: .test."
    for place, why in ((folder, there), (Path("x"), "no such fold")):
        with pytest.raises(DatasetError, match=why):
            Dataset.from_beir(place, "dev")
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "test.csv")
    with pytest.raises(DatasetError, match=r"no split 'test'. Splits there: none of .tsv, .jsonl"):
        Dataset.from_beir(folder, "test")
    (folder / "qrels" / "test.csv").rename(folder / "qrels" / "test.tsv")
    packed = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DatasetError, match=r"corpus.jsonl.gz: cannot be read"):
        Dataset.from_beir(folder, "test")
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DatasetError, match=r"one text with an id, found none: it is empty"):
        Dataset.from_beir(folder, "test")
    (folder / "corpus.jsonl.gz").unlink()
    with pytest.raises(DatasetError, match=r"corpus.jsonl: no such file, nor corpus.jsonl.gz"):
        Dataset.from_beir(folder, "test")


@FAST
@given(data=datasets(), by=st.sampled_from(["query", "document"]), seed=st.integers(0, 5))
def test_splits_do_not_leak_and_do_not_depend_on_order(data, by, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            train, test = data.train_test_split(0.3, by=by, seed=seed)
        except DatasetError:
            return  # too few distinct questions, or documents, for two parts
        ids = list(reversed(data.queries))
        again = data.subset(ids).train_test_split(0.3, by=by, seed=seed)
    assert {*again[0].queries} == {*train.queries}
    assert {*again[1].queries} == {*test.queries}
    texts = [{" ".join(t.casefold().split()) for t in p.queries.values()} for p in (train, test)]
    assert not texts[0] & texts[1]
    assert train.corpus == test.corpus == data.corpus
    if by == "query":
        assert len(train) + len(test) == len(data)
    else:
        asked = [{d for docs in p.relevant_docs.values() for d in docs} for p in (train, test)]
        assert not asked[0] & asked[1]


def test_the_size_of_a_split_is_a_share_or_a_number_that_can_be(small):
    assert [len(part) for part in small.train_test_split(0.25)] == [9, 3]
    assert [len(part) for part in small.train_test_split(5)] == [7, 5]
    assert [len(part) for part in small.train_test_split(4, by="document")] == [8, 4]
    other = small.train_test_split(0.25, seed=1)[1].queries
    assert other != small.train_test_split(0.25, seed=0)[1].queries
    said = r"test_size: expected a share .* between 1 and 11, got 1"
    with pytest.raises(OptionError, match=said):
        small.train_test_split(1.5)
    for wrong in (12, "0.25", True):
        with pytest.raises(OptionError, match="test_size"):
            small.train_test_split(wrong)
    with pytest.raises(OptionError, match="by: expected one of query, document, got 'topic'"):
        small.train_test_split(by="topic")
    shared = Dataset(small.queries, small.corpus, {q: ["d0"] for q in small.queries})
    with pytest.raises(DatasetError, match='shared by too many queries: split by="query"'):
        shared.train_test_split(0.2, by="document")
    one, two = small.subset([*small.queries][:1]), Dataset(**PARTS, relevant_docs=APART)
    for data, share, advice in ((one, 0.2, "More distinct"), (two, 0.999, "Choose a smaller")):
        said = rf"leaves 0 for training and {len(data)} for testing\. {advice}"
        for by in ("query", "document"):
            with pytest.raises(DatasetError, match=said):
                data.train_test_split(share, by=by)


def test_queries_that_ask_for_both_sides_are_dropped_with_a_warning():
    corpus = {f"d{i}": str(i) for i in range(6)}
    relevant = {f"q{i}": [f"d{i}", f"d{(i + 1) % 6}"] for i in range(6)}  # a ring
    data = Dataset({q: f"text {q}" for q in relevant}, corpus, relevant)
    with pytest.warns(UserWarning, match="2 of 6 queries ask for documents of both parts"):
        train, test = data.train_test_split(1, by="document")
    assert (len(train), len(test)) == (3, 1)


def test_a_file_is_old_or_new_never_half(tmp_path):
    path = tmp_path / "data.json"
    files.write_json(path, {"version": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_json(path, {"version": 2, "bad": object()})
    assert json.loads(path.read_text()) == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]
    (plain := tmp_path / "plain").touch()
    assert path.stat().st_mode & 0o777 == plain.stat().st_mode & 0o777


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder"
    with files.atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with files.atomic_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [p.name for p in target.iterdir()] == ["b"]
    with pytest.raises(FileNotFoundError, match="absent"), files.atomic_folder(target) as folder:
        (folder / "absent").read_text()
    assert [p.name for p in target.iterdir()] == ["b"]
    assert os.listdir(tmp_path) == ["folder"]
