"""What the folder of a saved adapter says, without asking any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted import store
from llama_index_embeddings_adapted.adapters import Adapter, CompositeAdapter
from llama_index_embeddings_adapted.errors import FolderError
from llama_index_embeddings_adapted.nudges import NudgeAdapter

_PARTS = (
    ("overall", "all held-out queries"),
    ("known", "about documents with training questions"),
    ("new", "about documents without"),
)


def folder_facts(folder: str | Path) -> dict[str, Any]:
    """Return what is known of a saved adapter, as JSON knows it.

    Returns:
        ``adapter`` (class, shape, roles), ``base_model`` (name, dimension, fingerprint),
        ``saved_at``, ``age_days``, ``library_version``, ``format_version``, ``bytes`` per file,
        ``moved_documents`` (how many, how far; None for an adapter that moves none), ``verdict``,
        ``scores``, ``data`` and ``settings`` of the training, each None where the folder does not
        say.

    Raises:
        FolderError: Missing, damaged, foreign, or newer than this library.
    """
    path = Path(folder)
    saved = store.load(path)
    config = folders.read_config(path) if (path / folders.CONFIG).is_file() else {}
    report = _report(saved.training, path)
    base = saved.base or {}
    return {
        "folder": str(path),
        "adapter": {
            "description": repr(saved.adapter),
            "input_dim": saved.adapter.input_dim,
            "output_dim": saved.adapter.output_dim,
            "roles": ["query", "document"] if saved.adapter.adapts_documents else ["query"],
        },
        "base_model": {key: base.get(key) for key in ("name", "dim", "fingerprint")},
        "saved_at": config.get("saved_at"),
        "age_days": _age(config.get("saved_at")),
        "library_version": config.get("library_version"),
        "format_version": config.get("format_version"),
        "bytes": {file.name: file.lstat().st_size for file in sorted(path.iterdir())},
        "moved_documents": _moved(saved.adapter),
        "verdict": report.get("verdict"),
        "scores": {key: report[key] for key, _ in _PARTS if report.get(key)} or None,
        "data": report.get("data") or None,
        "settings": report.get("settings"),
    }


def _report(training: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what is known of the training, in a form that can be shown.

    Raises:
        FolderError: It has another form.
    """
    report = training.get("report") or {}
    try:
        for key, _ in _PARTS:
            if report.get(key):
                _score(report[key])
        data = report.get("data") or {}
        sound = not data or all(isinstance(data[key], int) for key in ("queries", "documents"))
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise FolderError(
            f"{folder}: what it says of its training is damaged ({cause!r})."
        ) from cause
    if not sound:
        raise FolderError(f"{folder}: what it says of its training data is damaged.")
    return dict(report)


def facts_as_text(facts: Mapping[str, Any]) -> str:
    """Return what :func:`folder_facts` found as lines to read."""
    adapter, base, age = facts["adapter"], facts["base_model"], facts["age_days"]
    moved, data = facts["moved_documents"], facts["data"] or {}
    lines = [
        ("adapter", f"{adapter['description']}, applied to {' and '.join(adapter['roles'])}"),
        ("dimensions", f"{adapter['input_dim']} → {adapter['output_dim']}"),
        ("base model", base["name"] and f"{base['name']}, fingerprint {base['fingerprint']}"),
        ("saved", facts["saved_at"] and str(facts["saved_at"])
         + ("" if age is None else f", {age:.1f} days ago")),
        ("by version", facts["library_version"]),
        ("size", f"{sum(facts['bytes'].values()):,} bytes in {len(facts['bytes'])} files"),
        ("moved documents", moved and f"{moved['documents']:,}, by {moved['mean_drift']:.3f} on "
         f"average and {moved['largest_drift']:.3f} at most"),
        ("trained on", data and f"{data['queries']:,} queries, {data['documents']:,} documents"
         + (", written by an LLM" if data.get("synthetic") else "")),
        ("verdict", facts["verdict"]),
        *((name, _score(facts["scores"][key])) for key, name in _PARTS
          if key in (facts["scores"] or {})),
    ]  # fmt: skip
    return "\n".join(f"{name}: {'unknown' if text is None else text}" for name, text in lines
                     if text or name not in ("moved documents", "trained on"))  # fmt: skip


def _score(part: Mapping[str, Any]) -> str:
    found = part["difference"]
    return (
        f"NDCG@10 {part['base']['ndcg@10']:.4f} → {part['adapted']['ndcg@10']:.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}], {part['queries']:,} queries"
    )


def _age(saved_at: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(saved_at))
        days = (datetime.now(timezone.utc) - moment).total_seconds() / 86_400
    except (TypeError, ValueError):  # no date, or one without a time zone
        return None
    return days if days >= 0 else None  # saved by a clock that was ahead of this one


def _moved(adapter: Adapter) -> dict[str, Any] | None:
    drifts = [
        np.linalg.norm(part.offsets, axis=1)
        for part in _parts(adapter)
        if isinstance(part, NudgeAdapter)
    ]
    if not drifts:
        return None
    lengths = np.concatenate(drifts)
    moved = lengths[lengths > 0]
    mean, largest = (float(moved.mean()), float(moved.max())) if len(moved) else (0.0, 0.0)
    return {"documents": len(moved), "mean_drift": mean, "largest_drift": largest}


def _parts(adapter: Adapter) -> Iterator[Adapter]:
    yield adapter
    if isinstance(adapter, CompositeAdapter):
        for part in adapter.parts().values():
            yield from _parts(part)
