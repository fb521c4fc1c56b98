from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.pages import use

nbformat = pytest.importorskip("nbformat", reason="extra 'dev' is missing")
shells = pytest.importorskip("IPython.core.interactiveshell", reason="extra 'dev' is missing")

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def folder(model_server, page_cache, tmp_path, monkeypatch) -> Path:
    """Where a shell works; what it leaves at home stays here, too."""
    use(model_server, tmp_path, monkeypatch, page_cache)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, set[str]]:
    """Run a notebook; return what it printed, and the kinds of what its cells ended in."""
    shell, kinds = shells.InteractiveShell(), set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            done = shell.run_cell(cell.source)
            done.raise_error()
            kinds |= set(shell.display_formatter.format(done.result)[0])
    return capsys.readouterr().out, kinds


def test_the_first_notebook_ends_with_an_adapter_that_helps(folder, capsys):
    said, kinds = run(EXAMPLES / "first_adapter.ipynb", capsys)
    assert "Verdict: ship" in said
    assert {"image/png", "text/html"} <= kinds
    assert (folder / "adapter" / "adapter.safetensors").exists()


def test_the_notebook_of_methods_compares_them_and_watches(folder, capsys):
    said, _ = run(EXAMPLES / "methods.ipynb", capsys)
    assert "retrain" in said
    assert len(list((folder / "methods").glob("*/adapter.safetensors"))) == 4
    assert (folder / "methods.html").stat().st_size > 10_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_every_notebook_is_linked_from_the_guides():
    index = (EXAMPLES.parent / "docs" / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"(../examples/{path.name})" in index
