"""The model card of a saved adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.base_model import base_name

_METRICS = ("hit_rate@1", "hit_rate@5", "mrr@10", "ndcg@10", "recall@10")


def model_card(
    adapter: Adapter, base: BaseEmbedding, training: Mapping[str, Any], folder: str
) -> str:
    """Return ``README.md``: what the adapter belongs to, how it scored, how to load it."""
    report = training.get("report") or {}
    sections = [
        f"# Adapter for {base_name(base)}",
        f"`{adapter!r}`, applied to "
        + (
            "queries and documents."
            if adapter.adapts_documents
            else "queries; documents keep the "
            "vectors of the base model, so an existing index keeps working."
        ),
        scores_table(report) if report else "",
        "## Use\n\n```python\n"
        "from llama_index_embeddings_adapted import AdaptedEmbedding\n\n"
        f'embed_model = AdaptedEmbedding.from_pretrained("{folder}", base_embed_model)\n```\n\n'
        "Loading checks that `base_embed_model` is the model this adapter was trained on.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def scores_table(report: Mapping[str, Any]) -> str:
    """Return the scores of a report as a section of a card."""
    metrics = [metric for metric in _METRICS if metric in report["overall"]["base"]]
    lines = [
        "## Scores on held-out queries",
        "",
        f"Verdict: {report['verdict']}.",
        "",
        "| queries | model | " + " | ".join(metrics) + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for name, label in (
        ("overall", "all"),
        ("known", "documents with training questions"),
        ("new", "documents without"),
    ):
        part = report.get(name)
        if part:
            for model in ("base", "adapted"):
                values = " | ".join(f"{part[model][metric]:.4f}" for metric in metrics)
                lines.append(f"| {label} ({part['queries']}) | {model} | {values} |")
    if report.get("choice"):
        lines += ["", f"Chosen by cross-fitting: {report['choice']['recipe']}."]
    else:
        lines += ["", "The held-out queries also chose when training stopped."]
    return "\n".join(lines)
