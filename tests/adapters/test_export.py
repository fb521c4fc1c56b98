import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted import Adapter, LinearAdapter
from llama_index_embeddings_adapted.adapters.export import export
from llama_index_embeddings_adapted.adapters.maps import KernelAdapter, UnitAdapter
from llama_index_embeddings_adapted.core.arrays import Role, l2_normalize
from llama_index_embeddings_adapted.errors import FolderError, OptionError
from tests.adapters.test_adapters import DIM, TRAINED, kernel, linear, random_array
from tests.conftest import ROOT
from tests.support.pages import blocks
from tests.support.tiny import tiny_model

MOST = 1e-5
PAGE = ROOT / "docs" / "export.md"

ADAPTERS = {name: make() for name, make in TRAINED.items() if name != "of a user"}
ADAPTERS["unit"] = UnitAdapter(DIM)
#: These know documents by their texts.
BY_TEXT = ("nudges", "stack", "stack, shared", "stack of stacks", "nudges on two sides", "prior",
           "prior behind a map")  # fmt: skip
#: Parts of the names of those that are more than one map of queries.
MORE = ("kernel", "gate", "two layers", "prior", "of stacks", "leaves documents")
VECTORS = random_array(9, DIM)
VECTORS[:6], VECTORS[8] = l2_normalize(VECTORS[:6]), 0


@pytest.fixture(params=[*ADAPTERS])
def name(request) -> str:
    return str(request.param)


@pytest.fixture
def adapter(name) -> Adapter:
    return ADAPTERS[name]


def close(found: Any, adapter: Adapter, role: Role = "query") -> bool:
    wanted = adapter.apply(VECTORS, role)
    assert np.shape(found) == wanted.shape
    return bool(np.abs(np.asarray(found) - wanted).max() <= MOST * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("role", ["query", "document"])
def test_onnxruntime_gives_what_the_adapter_gives(name, adapter, role, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="extra 'dev' is missing")
    if role == "document" and name in BY_TEXT:
        with pytest.raises(OptionError, match=r"has no trace\(\) for a document"):
            adapter.export(tmp_path / "a.onnx", role=role)
        assert not [*tmp_path.iterdir()]
        return
    path = adapter.export(tmp_path / "a.onnx", role=role)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert close(session.run(["adapted"], {"vectors": VECTORS})[0], adapter, role)


def test_node_reads_the_json(adapter, tmp_path):
    node = shutil.which("node") or pytest.skip("node is missing")
    (code,) = blocks(PAGE, "javascript")
    assert len(code.splitlines()) <= 30
    path = adapter.export(tmp_path / "a.json", "json")
    ask = f"\nconst f = reader({json.dumps(str(path))});\n"
    ask += f"console.log(JSON.stringify({json.dumps(VECTORS.tolist())}.map(f)));"
    (tmp_path / "ask.js").write_text(code + ask)
    done = subprocess.run([node, tmp_path / "ask.js"], capture_output=True, text=True, check=True)
    assert close(json.loads(done.stdout), adapter)


def test_the_page_has_every_operation():
    from llama_index_embeddings_adapted.adapters.export import _EACH, _NODES, Program

    (code,) = blocks(PAGE, "javascript")
    known = set(re.findall(r"^  (\w+): ", code, re.MULTILINE))
    assert known == {*_NODES, "clip", "mean_top"}
    assert known == set(re.findall(r"``([a-z_]{3,})``", Program.__doc__ or ""))
    assert set(_EACH) < known


@pytest.fixture(scope="module")
def database(pg_server) -> Iterator[Any]:
    psycopg2 = pytest.importorskip("psycopg2", reason="extra 'dev' is missing")
    connection = psycopg2.connect(pg_server.get_uri())
    connection.autocommit = True
    with connection.cursor() as cursor:
        yield cursor
    connection.close()


def test_postgresql_gives_what_the_adapter_gives(adapter, database, tmp_path):
    for _ in range(2):  # a new version replaces the old one
        path = adapter.export(tmp_path / "My adapter.sql", "sql")
        database.execute(path.read_text())
    found = []
    for vector in VECTORS:
        database.execute("select my_adapter(%s::vector)::real[]", (str(vector.tolist()),))
        found.append(database.fetchone()[0])
    assert close(found, adapter)


def test_postgresql_refuses_vectors_of_another_dimension(database, tmp_path):
    database.execute(linear().export(tmp_path / "other.sql", "sql").read_text())
    with pytest.raises(Exception, match=f"expected {DIM} dimensions, got 2"):
        database.execute("select other('[1,2]')")


def test_three_lines_of_numpy_read_the_npz(tmp_path):
    for name, adapter in ADAPTERS.items():
        path = tmp_path / "a.npz"
        if any(part in name for part in MORE):
            match = r'"numpy" holds normalise\(W q \+ b\) only.*"onnx", "json" and "sql"'
            with pytest.raises(OptionError, match=match):
                adapter.export(path, "numpy")
            continue
        part = np.load(adapter.export(path, "numpy"))
        found = VECTORS @ part["weight"].T + part["bias"]
        if part["normalize"]:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
        assert close(found, adapter), name


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["linear", "low rank", "linear, shared", "two layers, sigmoid"])
def test_sentence_transformers_adapts_queries_and_leaves_documents(name, tmp_path):
    from sentence_transformers import SentenceTransformer

    base, adapter = tiny_model(dim=DIM), ADAPTERS[name]
    path = adapter.export(tmp_path / "model", "sentence-transformers", base=base)
    model = SentenceTransformer(str(path), device="cpu")
    texts = ["why is the sky blue?", "a whale", "deep sea"]
    plain = base.encode(texts)
    assert np.abs(model.encode_query(texts) - adapter.apply(plain)).max() <= MOST
    wanted = adapter.apply(plain, "document")
    assert np.abs(model.encode_document(texts) - wanted).max() <= MOST
    assert (path / "modules.json").read_text().count("llama_index") == 0
    with pytest.raises(FolderError, match="expected a new or empty folder"):
        adapter.export(path, "sentence-transformers", base=base)


@pytest.mark.filterwarnings("default")
def test_sentence_transformers_gives_what_the_served_model_gives(minilm, tmp_path):
    """With the scaling to length 1 and the prompts that LlamaIndex adds."""
    from sentence_transformers import SentenceTransformer

    from llama_index_embeddings_adapted import AdaptedEmbedding

    adapter = LinearAdapter(np.eye(384) + 0.05 * random_array(384, 384), 0.1 * random_array(384))
    served = AdaptedEmbedding(minilm, adapter)
    path = adapter.export(tmp_path / "model", "sentence-transformers", base=minilm)
    model = SentenceTransformer(str(path), device="cpu")
    found = model.encode_query("why is the sky blue?")
    assert np.abs(found - served.get_query_embedding("why is the sky blue?")).max() <= MOST
    found = model.encode_document("a whale")
    assert np.abs(found - served.get_text_embedding("a whale")).max() <= MOST
    assert (path / "router_config.json").read_text().count("_Transformer") == 3  # saved once


@pytest.mark.parametrize(
    ("name", "start"), [("a.JSON", b"{"), ("a.npz", b"PK"), ("a.sql", b"begin;"), ("a.b", b"\x08")]
)
def test_a_file_is_of_the_format_that_it_ends_in(name, start, tmp_path):
    path = export(linear()._written_down, tmp_path / name, None, role="query", base=None)
    assert path.read_bytes().startswith(start)


class Unknown(LinearAdapter):
    trace = Adapter.trace


@pytest.mark.parametrize(
    ("adapter", "name", "settings", "message"),
    [
        (linear(), "a.bin", {"format": "pickle"}, "format: expected one of onnx, json, numpy, sql"),
        (linear(), "a.onnx", {"role": "both"}, "role: expected one of query, document"),
        (linear(), "a", {}, "expected the name of a file, such as .*a.onnx"),
        (linear(), "a", {"format": "sentence-transformers"}, "needs the base model.*NoneType"),
        (Unknown(np.eye(DIM)), "a.onnx", {}, r"Unknown has no trace\(\) for a query"),
    ],
)
def test_what_cannot_be_exported_is_refused(adapter, name, settings, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        adapter.export(tmp_path / name, **settings)
    assert not [*tmp_path.iterdir()]


@pytest.mark.filterwarnings("default")
def test_formats_that_know_fewer_operations_name_those_that_know_more(tmp_path):
    with pytest.raises(OptionError, match=r'"sentence-transformers" holds layers in a row only'):
        kernel(linear()).export(tmp_path / "a", "sentence-transformers", base=tiny_model(dim=DIM))
    many = l2_normalize(random_array(16_001, 2))
    large = KernelAdapter(LinearAdapter.identity(2), many, many)
    with pytest.raises(OptionError, match=r'at most 16,000 dimensions.*"onnx" and "json" have no'):
        large.export(tmp_path / "a.sql", "sql")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OptionError, match="expected the path of a file, this is a folder"):
        linear().export(tmp_path / "folder.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]
