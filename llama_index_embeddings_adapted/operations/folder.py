"""What the folder of a saved adapter says, without asking any model, and shipping a candidate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import saving
from ..adapters.base import Adapter, CompositeAdapter
from ..adapters.maps import NudgeAdapter
from ..core import files
from ..errors import FolderError

_PARTS = (
    ("overall", "all held-out queries"),
    ("known", "about known documents"),
    ("new", "about new documents"),
    ("people", "of people alone"),
)


def inspect_adapter(folder: str | Path) -> dict[str, Any]:
    """Return what is known of a saved adapter, as JSON knows it, or raise a FolderError.

    Returns:
        ``adapter`` (class, shape, roles), ``saved`` (``"base"`` where the adapter changes nothing,
        else ``"candidate"``), ``candidate`` (the folder of the one that was kept aside, or None),
        ``holds`` (both in words), ``base_model`` (name, dimension, fingerprint), ``saved_at``,
        ``age_days``, ``library_version``, ``format_version``, ``bytes`` per file,
        ``moved_documents`` (how many, how far), ``verdict``, ``scores``, ``data`` and ``settings``
        of the training, each None where the folder does not say.
    """
    path = files.named(Path(folder))
    found = saving.load(path)
    adapter, report, base = found.adapter, _report(found.training, path), found.base or {}
    config = files.read_config(path) if (path / files.CONFIG).is_file() else {}
    candidate, is_kept, moved = candidate_of(path), _has_candidate(found.training), None
    if nudges := nudges_in(adapter):
        lengths = np.concatenate([np.linalg.norm(part.offsets, axis=1) for part in nudges])
        far = lengths[lengths > 0] if lengths.any() else np.zeros(1)
        moved = {"mean_drift": float(far.mean()), "largest_drift": float(far.max())}
        moved = {"documents": int(np.count_nonzero(lengths)), **moved}
    facts = {
        "folder": str(path),
        "adapter": {
            "description": repr(adapter),
            "input_dim": adapter.input_dim,
            "output_dim": adapter.output_dim,
            "roles": ["query", "document"] if adapter.adapts_documents else ["query"],
        },
        "saved": "base" if adapter.is_identity else "candidate",
        "candidate": str(candidate) if is_kept and (candidate / files.CONFIG).is_file() else None,
        "shipped_at": found.training.get("shipped_at"),
        "base_model": {key: base.get(key) for key in ("name", "dim", "fingerprint")},
        "saved_at": config.get("saved_at"),
        "age_days": _age(config.get("saved_at")),
        "library_version": config.get("library_version"),
        "format_version": config.get("format_version"),
        "bytes": {file.name: file.lstat().st_size for file in sorted(path.iterdir())},
        "moved_documents": moved,
        "verdict": report.get("verdict"),
        "scores": {key: report[key] for key, _ in _PARTS if report.get(key)} or None,
        "data": report.get("data") or None,
        "settings": report.get("settings"),
    }
    return {**facts, "holds": _holding(facts)}


def candidate_of(folder: Path) -> Path:
    """Return where the candidate of a folder is kept, if there is one."""
    whole = files.named(folder)
    return whole.parent / f"{whole.name}.candidate"


def ship_candidate(folder: str | Path) -> Path:
    """Put the candidate that training kept beside a folder into the folder, and return that.

    Training with ``method="auto"`` saves the base model, unchanged, where the verdict is against
    the candidate, and the candidate in ``<folder>.candidate``. Judge it on queries of your own with
    :func:`compare_retrieval`, then ship it. No model is asked. The candidate's folder stays. Where
    there is none, or it belongs to another base model or training, that is a FolderError.
    """
    path = Path(folder)
    source = candidate_of(path)
    if not (source / files.CONFIG).is_file():
        raise FolderError(f"{path}: no candidate to ship: there is no {source.name} beside it.")
    candidate, now = saving.load(source), saving.load(path)
    if candidate.adapter.is_identity:
        raise FolderError(f"{path}: no candidate to ship: {source.name} is the base model, too.")
    if (candidate.base or {}).get("fingerprint") != (now.base or {}).get("fingerprint"):
        raise FolderError(f"{source}: was trained on another base model than {path} holds.")
    if not _has_candidate(now.training):
        raise FolderError(f"{path}: no candidate to ship: {source.name} is of an earlier training.")
    files.check_target_folder(path)
    config = files.read_config(source)
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
    config["training"] = {**candidate.training, "shipped_at": moment}
    with files.atomic_folder(path) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        (temporary / files.CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        base = str((candidate.base or {}).get("name", "unknown"))
        card = saving.model_card(candidate.adapter, base, config["training"], path.name)
        (temporary / files.CARD).write_text(card, encoding="utf-8")
    return path


def _has_candidate(training: Mapping[str, Any]) -> bool:
    """Whether this training kept one; what lies beside the folder may be of an earlier one."""
    return bool((training.get("report") or {}).get("candidate") or "shipped_at" in training)


def _holding(facts: Mapping[str, Any]) -> str:
    if facts["saved"] == "candidate":
        at = facts["shipped_at"]
        return "the adapter" + (f", shipped {at} though the verdict was not to" if at else "")
    if not facts["candidate"]:
        return "the base model, unchanged"
    how = f"to put it here: llama-index-adapted ship {facts['folder']}"
    return f"the base model, unchanged; the candidate is in {facts['candidate']}; {how}"


def as_text(facts: Mapping[str, Any]) -> str:
    """Return what :func:`inspect_adapter` found as lines to read."""
    adapter, base, age = facts["adapter"], facts["base_model"], facts["age_days"]
    moved, data = facts["moved_documents"], facts["data"] or {}
    of = "candidate, " if facts["saved"] == "base" else ""  # whose scores these are
    lines = [
        ("holds", facts["holds"]),
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
        *((of + name, _score(facts["scores"][key])) for key, name in _PARTS
          if key in (facts["scores"] or {})),
    ]  # fmt: skip
    return "\n".join(f"{name}: {'unknown' if text is None else text}" for name, text in lines
                     if text or name not in ("moved documents", "trained on"))  # fmt: skip


def _report(training: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what is known of the training, fit to be shown, or raise a FolderError."""
    report = training.get("report") or {}
    try:
        for key, _ in _PARTS:
            if report.get(key):
                _score(report[key])
        data = report.get("data") or {"queries": 0, "documents": 0}
        if not all(isinstance(data[key], int) for key in ("queries", "documents")):
            raise TypeError("numbers of queries and documents")
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        what = "what it says of its training is damaged"
        raise FolderError(f"{folder}: {what} ({cause!r}).") from cause
    return dict(report)


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


def nudges_in(adapter: Adapter) -> list[NudgeAdapter]:
    """Return the nudges of single documents in an adapter, or in its parts."""
    own = [adapter] if isinstance(adapter, NudgeAdapter) else []
    parts = adapter.parts().values() if isinstance(adapter, CompositeAdapter) else ()
    return own + [nudges for part in parts for nudges in nudges_in(part)]
