import gzip
import json
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.bridge.pydantic import Field
from typer.testing import CliRunner

from benchmarks.robustness import fuzz, mutations
from benchmarks.robustness.formats import FORMATS
from benchmarks.robustness.watched import Misdeed, outcome
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset, LinearAdapter
from llama_index_embeddings_adapted.cli.app import app
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.data.reading import _MOST_IN_LINE
from llama_index_embeddings_adapted.encoding.serialize import describe_base, rebuild_base
from llama_index_embeddings_adapted.errors import AdaptedError, DatasetError, FolderError
from tests.conftest import CountingEmbedding

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux"),
    pytest.mark.filterwarnings("ignore:MemoryRetriever goes with"),
]


@pytest.mark.parametrize("name", FORMATS)
def test_every_example_of_a_format_is_read(name):
    for tree in FORMATS[name].trees:
        assert fuzz.survived(FORMATS[name], tree) == "valid"


@pytest.mark.parametrize("name", [*FORMATS, fuzz.ANSWER])
def test_damaged_input_is_read_or_refused_and_nothing_else_happens(name):
    counts: Counter[str] = Counter()
    fuzz.checked(name, counts, 40)()
    assert counts["valid"] + counts["refused"] >= 40
    assert counts["refused"] > 0


@pytest.mark.parametrize(
    ("reader", "expected", "message"),
    [
        (lambda folder: (folder.parent / "outside").write_text("x"), Misdeed, "open .*outside"),
        (lambda folder: __import__("stranger_module"), Misdeed, "import 'stranger_module'"),
        (lambda folder: bytearray(3 << 30), MemoryError, "^$"),
        (lambda folder: {}[folder], KeyError, "given"),
        (lambda folder: os.system("true"), Misdeed, r"os\.system"),
    ],
    ids=["writes", "imports", "floods", "crashes", "runs"],
)
def test_misdeeds_are_noticed(reader, expected, message, tmp_path):
    (tmp_path / "given").mkdir()
    with pytest.raises(expected, match=message):
        outcome(lambda: reader(tmp_path / "given"), tmp_path / "given")


ADAPTER, JSON, BEIR, TOML = "adapter folder", "dataset JSON", "BEIR folder", "run configuration"
ZERO = Path("/dev/zero")
TERABYTE = struct.pack("<Q", 1 << 40) + b"{}"
LYING = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 20, 1 << 18],
                               "data_offsets": [0, 1 << 40]}}).encode()  # fmt: skip
WEIGHTS = struct.pack("<Q", len(LYING)) + LYING
LINE = gzip.compress(b'{"_id": "d0", "text": "' + b"x" * _MOST_IN_LINE)
SAME = gzip.compress(b'{"_id": "d0", "text": "x"}\n' * 100_000)
FIELD = b"q0\t" + b"d" * 200_000 + b"\t1\n"
#: What it is → a format, which of its examples, the file that is replaced, by what, the message.
ENDLESS: dict[str, tuple[str, int, str, bytes | Path, str]] = {
    "a header of a terabyte": (ADAPTER, 0, "adapter.safetensors", TERABYTE, "damaged or not safe"),
    "weights of a terabyte": (ADAPTER, 0, "adapter.safetensors", WEIGHTS, "damaged or not safe"),
    "a device as a config": (ADAPTER, 0, "config.json", ZERO, "expected a file"),
    "a device as weights": (ADAPTER, 0, "adapter.safetensors", ZERO, "no adapter.safetensors"),
    "a device as a dataset": (JSON, 0, "pairs.json", ZERO, "expected a file"),
    "a device as a corpus": (BEIR, 0, "corpus.jsonl", ZERO, "expected a file"),
    "5,000 digits": (JSON, 0, "pairs.json", b'{"queries": ' + b"9" * 5000 + b"}", "expected JSON"),
    "lists in lists": (JSON, 0, "pairs.json", b"[" * 100_000, "expected JSON"),
    "lists in lists, TOML": (TOML, 0, "run.toml", b"a = " + b"[" * 50_000, "cannot be read"),
    "a megabyte of TOML": (TOML, 0, "run.toml", b"# " + b"x" * 1_000_000, "at most 65,536 bytes"),
    "one line, zipped": (BEIR, 1, "corpus.jsonl.gz", LINE, "expected lines of fewer"),
    "the same line, zipped": (BEIR, 1, "corpus.jsonl.gz", SAME, "1000 or more duplicate"),
    "a field": (BEIR, 0, "qrels/train.tsv", FIELD, "field larger than field limit"),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_has_no_end_is_refused(case, tmp_path):
    name, example, file, content, message = ENDLESS[case]
    mutations.write({**FORMATS[name].trees[example], file: content}, tmp_path)
    said: list[str] = []

    def read() -> None:
        try:
            FORMATS[name].read(tmp_path)
        except AdaptedError as error:
            said.append(str(error))
            raise

    assert outcome(read, tmp_path) == "refused"
    assert message in said[0]


def test_weights_of_no_space_on_disk_are_not_read_and_a_pipe_not_waited_for(tmp_path):
    LinearAdapter.identity(4).save(tmp_path / "a")
    os.truncate(tmp_path / "a" / "adapter.safetensors", 1 << 40)
    with pytest.raises(FolderError, match="expected at most 4,294,967,296 bytes, found 1,099,511"):
        folders.read(tmp_path / "a")
    os.mkfifo(tmp_path / "pairs.json")
    with pytest.raises(DatasetError, match="expected a file"):
        EmbeddingQAFinetuneDataset.from_json(tmp_path / "pairs.json")


@pytest.mark.parametrize("split", ["../outside", "/tmp/outside", "", "a/b"])
def test_a_split_is_a_name_and_no_path(split, small, tmp_path):
    small.to_beir(tmp_path / "data", "train")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DatasetError, match="split: expected a name such as train"):
        small.to_beir(tmp_path / "data", split)
    with pytest.raises(DatasetError, match="split: expected a name such as train"):
        EmbeddingQAFinetuneDataset.from_beir(tmp_path / "data", split)
    assert sorted(tmp_path.rglob("*")) == before


def test_saving_over_a_link_leaves_what_it_points_to(tmp_path):
    LinearAdapter.identity(4).save(tmp_path / "theirs")
    before = mutations.read(tmp_path / "theirs")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    LinearAdapter.identity(8).save(tmp_path / "ours")
    assert mutations.read(tmp_path / "theirs") == before
    assert LinearAdapter.load(tmp_path / "ours").input_dim == 8


def test_ids_that_no_file_can_hold_are_refused_and_such_texts_are_kept(tmp_path):
    odd = EmbeddingQAFinetuneDataset({"q": "half a \ud83d"}, {"d": "text"}, {"q": ["d"]})
    odd.to_beir(tmp_path)
    assert EmbeddingQAFinetuneDataset.from_beir(tmp_path) == odd
    worse = EmbeddingQAFinetuneDataset({"q\ud83d": "text"}, {"d": "text"}, {"q\ud83d": ["d"]})
    with pytest.raises(DatasetError, match="no text that a file can hold"):
        worse.to_beir(tmp_path)


@pytest.mark.parametrize("key", ["source", "epochs", "method", "expect", "out", "styles", "seed"])
@pytest.mark.parametrize(
    "value", ["[]", "{a = 1}", "-1", "nan", '"a\\u0000b"', "[[1]]", "1979-05-27"]
)
def test_a_value_of_another_kind_is_one_line_on_the_command_line(key, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "" if key == "source" else 'source = "nowhere"\n'
    (tmp_path / "run.toml").write_text(f"[finetune]\n{source}{key} = {value}\n")
    done = CliRunner().invoke(app, ["finetune", "--config", "run.toml"])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


class Remote(CountingEmbedding):
    def __init__(self, *, api_base: str | None = None, **settings: Any) -> None:
        assert "num_workers" not in settings  # as of many classes of LlamaIndex
        given = {} if api_base is None else {"api_base": api_base}
        super().__init__(**given, **settings)

    api_base: str = Field(default_factory=lambda: os.environ.get("REMOTE", "https://good.example"))
    options: dict[str, Any] = Field(default_factory=dict)

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        raise AssertionError(f"{texts} were sent to {self.api_base}")


def described(**settings: Any) -> dict[str, Any]:
    found = describe_base(Remote())
    return {**found, "settings": {**found["settings"], **settings}}


@pytest.mark.parametrize(
    "settings",
    [
        {"api_base": "https://stranger.example/v1"},
        {"api_base": "stranger.example"},
        {"api_base": "http://[broken"},
        {"options": {"proxies": ["http://stranger.example:8080"]}},
    ],
)
def test_an_address_in_a_folder_has_to_be_confirmed(settings):
    name = next(iter(settings))
    with pytest.raises(FolderError, match=rf"name an address.*stranger|broken.*{name}=…"):
        rebuild_base(described(**settings))
    assert getattr(rebuild_base(described(**settings), **settings), name) == settings[name]


def test_addresses_that_would_be_asked_anyway_need_no_word(monkeypatch):
    rebuild_base(described(num_workers=2))
    rebuild_base(described(api_base="http://localhost:8000/v1"))
    monkeypatch.setenv("REMOTE", "https://ours.example")
    rebuild_base(described(api_base="https://ours.example"))
    with pytest.raises(FolderError, match=r"good\.example"):
        rebuild_base(described(api_base="https://good.example"))


def test_a_folder_cannot_have_code_loaded():
    inner = {"tokenizer": {"trust_remote_code": 1}}, {"parts": [{"trust_remote_code": "yes"}]}
    for settings in ({"trust_remote_code": True}, *({"options": each} for each in inner)):
        with pytest.raises(FolderError, match="ask for code to be loaded"):
            rebuild_base(described(**settings))
