"""The part of a page that says how training went: the base model is the line to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llama_index_embeddings_adapted import charts

MOST_CANDIDATES = 20  #: rows of the table of what competed; the best
_PARTS = {
    "overall": "all",
    "known": "documents with training questions",
    "new": "documents without",
}


def training_section(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template shows of one training.

    Args:
        name: Of the model.
        report: ``FinetuneReport.to_dict()``, of this or an earlier version.
    """
    history = report.get("history") or []
    gains = _gains(history)
    drawn = _charts(report, history, gains) if len(history) > 1 else []
    if report.get("choice"):
        gains, drawn = _tried(report["choice"])
    return {
        "name": name,
        "lines": _lines(report, history),
        "charts": drawn,
        "legend": [_PARTS[part] for part in gains] if drawn else [],
        "parts": _parts(report),
        "candidates": _candidates(report.get("choice")),
        "settings": [
            [key, "–" if value is None else str(value)]
            for key, value in (report.get("settings") or {}).items()
        ],
    }


def _lines(report: Mapping[str, Any], history: list[Any]) -> list[str]:
    queries = report.get("train_queries", 0)
    choice = report.get("choice")
    if choice:
        share = f"{choice['expect']:.0%} of live queries are taken to ask for documents with "
        told = "as you said" if choice["expect_told"] else "an estimate"
        kept = f"{len(choice['gains'])} candidates competed; chosen: {choice['recipe']}."
        return [kept, f"{queries:,} training queries. {share}training questions ({told})."]
    best = report.get("best_epoch", 0)
    weight = (report.get("settings") or {}).get("tuned_weight")
    untrained = " (the base model)" if weight is None else " (the small model before training)"
    kept = f"Epoch {best} of {len(history) - 1} was kept" if history else "Trained in one step"
    stopped = "; training was stopped from the keyboard" if report.get("interrupted") else ""
    lines = [f"{kept}{untrained if history and not best else ''}{stopped}. "
             f"{queries:,} training queries."]  # fmt: skip
    if weight is not None:
        lines.append(
            f"λ = {weight:.2f}, the say of the small model, is best on the held-out queries."
            if weight
            else "λ = 0: the small model adds nothing on the held-out queries and is left out."
        )
    return lines


def _gains(history: list[Any]) -> dict[str, list[float]]:
    """Return the change per epoch of each part that has held-out queries."""
    lines = {
        part: [_number(epoch.get("gain", {}).get(part)) for epoch in history]
        for part in ("overall", "known", "new")
    }
    return {part: line for part, line in lines.items() if any(v == v for v in line)}


def _charts(
    report: Mapping[str, Any], history: list[Any], gains: dict[str, list[float]]
) -> list[Any]:
    epochs = [epoch["epoch"] for epoch in history]
    best = report.get("best_epoch", 0)
    mark = (epochs.index(best), "kept") if best in epochs else None
    if "scores" in history[0]:
        title, lines, level = _scores(report, history)
    else:
        title, level = "Change in NDCG@10 on held-out queries", 0.0
        lines = {_PARTS[part]: line for part, line in gains.items()}
    return [
        charts.curves(
            title, epochs, lines, horizontal="epoch", level=(level, "base model"), mark=mark
        ),
        charts.curves(
            "Training loss",
            epochs,
            {"loss": [_number(epoch["loss"]) for epoch in history]},
            horizontal="epoch",
            mark=mark,
        ),
    ]


def _scores(
    report: Mapping[str, Any], history: list[Any]
) -> tuple[str, dict[str, list[float]], float]:
    """Return title, line and the base model's level of the metric that chose the epoch."""
    metric = report["settings"]["metric"]
    line = [_number(epoch["scores"][metric]) for epoch in history]
    return f"{metric} while training", {metric: line}, report["settings"]["base_scores"][metric]


def _tried(choice: Mapping[str, Any]) -> tuple[dict[str, list[float]], list[Any]]:
    """Draw the gain of each candidate in the order they were tried."""
    pairs = list(choice["gains"].values())
    gains = {
        part: [_number(pair[place]) for pair in pairs]
        for place, part in enumerate(("known", "new"))
    }
    gains = {part: line for part, line in gains.items() if any(v == v for v in line)}
    names = list(choice["gains"])
    mark = (names.index(choice["recipe"]), "chosen") if choice["recipe"] in names else None
    drawn = charts.curves(
        "Change in NDCG@10 of what was tried",
        range(1, len(pairs) + 1),
        {_PARTS[part]: line for part, line in gains.items()},
        horizontal="candidate, as tried; the first is the base model",
        level=(0.0, "base model"),
        mark=mark,
    )
    return gains, [drawn]


def _parts(report: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for key, label in _PARTS.items():
        part = report.get(key)
        if part:
            low, high = part["difference"]["low"], part["difference"]["high"]
            values = [part[model]["ndcg@10"] for model in ("base", "adapted")]
            rows.append([
                label, f"{part['queries']:,}", *(f"{value:.4f}" for value in values),
                f"{values[1] - values[0]:+.4f}", f"{low:+.4f} … {high:+.4f}",
                f"{part['difference']['p_value']:.4f}",
            ])  # fmt: skip
    head = ["queries about", "number", "base NDCG@10", "adapted", "change", "95 % interval", "p"]
    return {"head": head, "rows": rows}


def _candidates(choice: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not choice:
        return None
    share = choice["expect"]

    def expected(gains: list[float | None]) -> float:
        known, new = (_number(gain) for gain in gains)
        if math.isnan(known) or math.isnan(new):
            return new if math.isnan(known) else known
        return float(share * known + (1 - share) * new)

    ranked = sorted(choice["gains"].items(), key=lambda item: -expected(item[1]))
    rows = [
        [recipe + (" (chosen)" if recipe == choice["recipe"] else ""), *map(_signed, gains)]
        for recipe, gains in ranked
        if recipe == choice["recipe"] or recipe in dict(ranked[:MOST_CANDIDATES])
    ]
    head = ["candidate", "documents with training questions", "documents without"]
    caption = "Change in NDCG@10 over the base model, cross-fitted; the best expected first"
    if len(rows) < len(ranked):
        caption += f" ({len(rows)} of {len(ranked)} shown)"
    return {"caption": caption, "head": head, "rows": rows}


def _signed(gain: float | None) -> str:
    return "–" if gain is None else f"{gain:+.4f}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
