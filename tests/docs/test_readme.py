import csv
import runpy
from pathlib import Path

import pytest
from llama_index.core import Settings

from benchmarks.pages import tables
from llama_index_embeddings_adapted import Decision
from tests.support.pages import remember_minilm, run_page, use

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("default")
def test_every_block_of_the_readme_runs_in_order(model_server, page_cache, tmp_path, monkeypatch):
    remember_minilm(monkeypatch)
    use(model_server, tmp_path, monkeypatch, page_cache)
    monkeypatch.setattr(Settings, "_embed_model", None)
    write_log(tmp_path / "log.csv")
    names = run_page(ROOT / "README.md", model_server)
    assert names["engine"].report.verdict.decision is Decision.SHIP
    assert (tmp_path / "adapter" / "adapter.safetensors").exists()
    assert len(names["retriever"].retrieve("smooth a noisy signal")) == 5
    assert Settings.embed_model is names["base"]


def write_log(path: Path) -> None:
    """Write a log of queries: summary lines of reference pages, and the pages they found."""
    pages = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["reference_pages"]()
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "document"])
        rows.writerows(page.text[:300].split("\n\n", 1) for page in pages[::3])


def test_the_readme_is_short_and_tables_are_those_of_the_result_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1_400
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- results:" in text
        assert tables.refreshed(text) == text, f"{path}: run python -m benchmarks tables"
