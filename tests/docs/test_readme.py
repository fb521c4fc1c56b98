from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmarks.pages import tables
from llama_index_embeddings_adapted.questions import local_llama
from tests.support.pages import remember_minilm, run_page, use

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("default")
def test_every_block_of_the_readme_runs_in_order(
    model_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("embeddings.openai", "embeddings.ollama", "llms.ollama", "llms.openai_like"):
        pytest.importorskip(f"llama_index.{package}", reason="extra 'dev' is missing")
    for package in ("xllamacpp", local_llama.BUNDLED):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing; make test installs it")
    remember_minilm(monkeypatch)
    from llama_index.core import Settings

    use(model_server, tmp_path, monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(Settings, "_embed_model", None)
    names = run_page(ROOT / "README.md", model_server)
    assert (tmp_path / "comparison.png").stat().st_size > 5_000
    assert (tmp_path / "my_adapter" / "adapter.safetensors").exists()
    assert names["scores"]["ndcg@10"] > 0.3
    assert len(names["written"]) > 0


def test_the_tables_are_those_of_the_result_files() -> None:
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert "<!-- results:" in text
        assert tables.refreshed(text) == text, f"{path}: run python -m benchmarks tables"
