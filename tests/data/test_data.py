"""The text side: datasets, BEIR folders, splits, files."""

from __future__ import annotations

import gzip
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import MetadataMode, TextNode

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.errors import DatasetError, OptionError, require_extra
from tests.conftest import real_data

FAST = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


# --- JSON -------------------------------------------------------------------------------------


def test_the_json_is_that_of_the_old_class_byte_for_byte(tmp_path: Path, small: Dataset) -> None:
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
def test_json_and_beir_round_trips_give_back_the_same(tmp_path: Path, data: Dataset) -> None:
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "expected a JSON object, got list"),
        ("{", "expected JSON"),
        ('{"queries": {}, "corpus": []}', 'missing or not an object: "corpus", "relevant_docs"'),
        ('{"queries": {}, "corpus": {}, "relevant_docs": {}, "x": 1}', 'Unknown keys: "x"'),
        ('{"queries": {"a": "b", "a": "c"}}', 'duplicate key ids .first: "a"'),
        ('{"queries": {"a": 1}, "corpus": {"d": "t"}, "relevant_docs": {}}', "1 of 1 are not"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        Dataset.from_json(tmp_path / "data.json")


# --- bad data ---------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "queries": {"q1": "one", "q2": "two"},
    "corpus": {"d1": "first", "d2": "second"},
    "relevant_docs": {"q1": ["d1"], "q2": ["d1", "d2"]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relevant_docs": {"q1": ["d9"], "q2": ["d8"]}}, r'2 document ids.*first: "d9", "d8"'),
        ({"relevant_docs": {"q1": ["d1"]}}, r'1 of 2 queries have no relevant.*"q2".*judged'),
        ({"relevant_docs": {"q1": ["d1"], "q2": []}}, r'1 of 2 queries have no relevant.*"q2"'),
        ({"relevant_docs": {**GOOD["relevant_docs"], "q3": ["d1"]}}, r'1 query ids.*"q3"'),
        ({"relevant_docs": {"q1": ["d1", "d1"], "q2": ["d1"]}}, 'name a document twice.*"q1"'),
        ({"relevant_docs": {"q1": "d1", "q2": ["d1"]}}, 'expected lists.*1 of 2.*"q1"'),
        ({"relevant_docs": [("q1", "d1")]}, "expected a dict of query id .*got list"),
        ({"queries": {"q1": " ", "q2": ""}}, 'queries: 2 of 2 texts are empty.*"q1", "q2"'),
        ({"corpus": {"d1": "", "d2": "b"}}, 'corpus: 1 of 2 texts are empty.*"d1"'),
        ({"corpus": {"d1": None, "d2": "b"}}, 'string texts; 1 of 2 are not.*"d1"'),
        ({"corpus": {1: "a", "d2": "b"}}, "string ids and string texts; 1 of 2"),
        ({"queries": ["one"]}, "queries: expected a dict of id → text, got list"),
        ({"queries": {}, "relevant_docs": {}}, "queries: expected at least one text"),
        ({"grades": {"q1": {"d2": 1.0}}}, 'grades document "d2", which is not among'),
        ({"grades": {"q1": {"d1": 0}}}, "expected a number > 0, got 0"),
    ],
)
def test_bad_data_is_refused_with_numbers_and_names(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset(**{**GOOD, **change})


def test_unjudged_queries_can_be_read_and_dropped_with_a_word_about_how_many() -> None:
    relevant = {"q1": ["d1"], "q2": []}
    data = Dataset(GOOD["queries"], GOOD["corpus"], relevant, allow_unjudged=True)
    with pytest.warns(UserWarning, match="Dropped 1 of 2 queries"):
        judged = data.judged()
    assert list(judged.queries) == ["q1"]
    assert judged.judged() == judged


def test_nodes_give_the_text_that_an_index_embeds() -> None:
    node = TextNode(id_="n", text="body", metadata={"title": "head", "hidden": "x"})
    node.excluded_embed_metadata_keys = ["hidden"]
    data = Dataset.from_nodes([node], {"q": "?"}, {"q": ["n"]})
    assert data.corpus["n"] == node.get_content(MetadataMode.EMBED) == "title: head\n\nbody"
    with pytest.raises(DatasetError, match=r'1 duplicate node ids .first: "n"'):
        Dataset.from_nodes([node, node], {"q": "?"}, {"q": ["n"]})


def test_the_fingerprint_tells_datasets_apart_and_the_repr_is_short(small: Dataset) -> None:
    changed = {**small.corpus, "d0": "another text"}
    other = Dataset(small.queries, changed, small.relevant_docs)
    assert small.fingerprint != other.fingerprint
    assert small.fingerprint == small.subset(list(small.queries)).fingerprint
    assert repr(small) == "EmbeddingQAFinetuneDataset(12 queries, 6 documents)"


# --- BEIR -------------------------------------------------------------------------------------


def beir_folder(folder: Path, *, qrels: str, corpus: str = "", queries: str = "") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = corpus or '{"_id": "d1", "title": "T", "text": "t"}\n{"_id": "d2", "text": "u"}\n'
    queries = queries or '{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": "two"}\n'
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.encode()))
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def test_plain_and_gzipped_files_titles_and_grades_are_read(tmp_path: Path) -> None:
    data = Dataset.from_beir(beir_folder(tmp_path / "b", qrels="q1\td1\t2\nq1\td2\t0\n"), "test")
    assert data.corpus == {"d1": "T t", "d2": "u"}
    assert data.queries == {"q1": "one"}
    assert data.relevant_docs == {"q1": ["d1"]}
    assert data.grade("q1", "d1") == 2
    assert data.grade("q1", "d2") == 0


def test_queries_judged_irrelevant_throughout_are_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "b", qrels="q1\td1\t1\nq2\td2\t0\n")
    with pytest.warns(UserWarning, match='1 queries have only irrelevant.*"q2"'):
        assert list(Dataset.from_beir(folder, "test").queries) == ["q1"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"qrels": "q1\td1\n"}, r"test.tsv, line 2: expected query-id, corpus-id and a numeric"),
        ({"qrels": "q1\td1\thigh\n"}, r"test.tsv, line 2: expected query-id"),
        ({"qrels": "q1\td1\t1\nq1\td1\t2\n"}, r"line 3: .* judged twice, with different scores"),
        ({"qrels": "q1\td9\t1\n"}, r'1 document ids are not in the corpus.*"d9"'),
        ({"qrels": "q7\td1\t1\n"}, r'1 query ids of qrels/test.tsv are not in queries.*"q7"'),
        ({"qrels": "", "corpus": '{"_id": 1, "text": ""}'}, r"line 1: expected an object with str"),
        ({"qrels": "", "corpus": "{oops"}, r"corpus.jsonl, line 1: expected a JSON object"),
        (
            {"qrels": "q1\td1\t1\n", "queries": '{"_id": "q1", "text": "a"}\n' * 2},
            r'queries.jsonl: 1 duplicate _id ids .first: "q1"',
        ),
    ],
)
def test_malformed_folders_are_refused_with_file_and_line(
    tmp_path: Path, parts: dict[str, str], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset.from_beir(beir_folder(tmp_path / "b", **parts), "test")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "b", qrels="q1\td1\t1\n")
    with pytest.raises(DatasetError, match=r"no split 'dev'. Splits there: .test."):
        Dataset.from_beir(folder, "dev")
    packed = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DatasetError, match=r"corpus.jsonl.gz: cannot be read"):
        Dataset.from_beir(folder, "test")
    (folder / "corpus.jsonl.gz").unlink()
    with pytest.raises(DatasetError, match=r"corpus.jsonl: no such file, nor corpus.jsonl.gz"):
        Dataset.from_beir(folder, "test")


def test_a_real_graded_set_is_read_whole() -> None:
    data = Dataset.from_beir(real_data("nfcorpus"), "test")
    assert (len(data.queries), len(data.corpus)) == (323, 3633)
    assert {grade for judged in (data.grades or {}).values() for grade in judged.values()} == {1, 2}


# --- splits -----------------------------------------------------------------------------------


@FAST
@given(data=datasets(), by=st.sampled_from(["query", "document"]), seed=st.integers(0, 5))
def test_splits_do_not_leak_and_do_not_depend_on_order(data: Dataset, by: Any, seed: int) -> None:
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
    texts = [
        {" ".join(t.casefold().split()) for t in part.queries.values()} for part in (train, test)
    ]
    assert not texts[0] & texts[1]
    assert train.corpus == test.corpus == data.corpus
    if by == "query":
        assert len(train) + len(test) == len(data)
    else:
        asked = [
            {d for docs in part.relevant_docs.values() for d in docs} for part in (train, test)
        ]
        assert not asked[0] & asked[1]


def test_the_size_of_a_split_is_a_share_or_a_number(small: Dataset) -> None:
    assert [len(part) for part in small.train_test_split(0.25)] == [9, 3]
    assert [len(part) for part in small.train_test_split(5)] == [7, 5]
    assert [len(part) for part in small.train_test_split(4, by="document")] == [8, 4]
    other = small.train_test_split(0.25, seed=1)[1].queries
    assert other != small.train_test_split(0.25, seed=0)[1].queries


def test_equal_questions_stay_together_whatever_their_case() -> None:
    queries = {f"q{i}": ("What is it?" if i < 5 else f"other {i}") for i in range(10)}
    queries["q1"] = "what  IS it?"
    data = Dataset(queries, {"d": "x"}, {query: ["d"] for query in queries})
    for seed in range(5):
        train, _ = data.train_test_split(0.5, seed=seed)
        assert len({f"q{i}" for i in range(5)} & set(train.queries)) in (0, 5)


def test_splits_that_cannot_be_are_errors(small: Dataset) -> None:
    with pytest.raises(
        OptionError, match=r"test_size: expected a share .* between 1 and 11, got 1"
    ):
        small.train_test_split(1.5)
    with pytest.raises(OptionError, match="test_size"):
        small.train_test_split(12)
    with pytest.raises(OptionError, match='by: expected "query" or "document", got \'topic\''):
        small.train_test_split(by="topic")  # type: ignore[arg-type]
    shared = Dataset(small.queries, small.corpus, {q: ["d0"] for q in small.queries})
    with pytest.raises(DatasetError, match='shared by too many queries: split by="query"'):
        shared.train_test_split(0.2, by="document")


def test_queries_that_ask_for_both_sides_are_dropped_with_a_warning() -> None:
    corpus = {f"d{i}": str(i) for i in range(6)}
    relevant = {f"q{i}": [f"d{i}", f"d{(i + 1) % 6}"] for i in range(6)}  # a ring
    data = Dataset({q: f"text {q}" for q in relevant}, corpus, relevant)
    with pytest.warns(UserWarning, match="2 of 6 queries ask for documents of both parts"):
        train, test = data.train_test_split(1, by="document")
    assert (len(train), len(test)) == (3, 1)


# --- files ------------------------------------------------------------------------------------


def test_a_file_is_old_or_new_never_half(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    files.write_json(path, {"version": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        files.write_json(path, {"version": 2, "bad": object()})
    assert json.loads(path.read_text()) == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["data.json"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
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


def test_a_missing_extra_is_answered_with_the_command_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r'pip install "llama-index-embeddings-adapted\[plot\]"'):
        require_extra("a_module_that_does_not_exist", extra="plot")
