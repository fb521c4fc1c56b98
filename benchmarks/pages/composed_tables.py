"""Tables of the composed model, generated from its result file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import environment

_METRICS = ("hit_rate@5", "mrr@10", "ndcg@10")


def composed_table() -> str:
    """Every model on the test queries, and its gain in hit rate over the black box."""
    rows = []
    for name, found in environment.load("composed")["sets"].items():
        counts, searched = found["queries"], f"{found['documents searched']:,}"
        if found.get("documents in all", 0) > found["documents searched"]:
            searched += f" of {found['documents in all']:,}"
        rows += [
            f"| {name}: {counts['train']:,} training, {counts['dev']:,} dev, {counts['test']:,} "
            f"test queries, {searched} documents | hit rate@5 | MRR@10 | "
            "NDCG@10 | hit rate@5 over the black box | 95 % interval |",
            "|---|---:|---:|---:|---:|---|",
        ]
        for model, scores in found["models"].items():
            over = scores["against the black box"]["hit_rate@5"]
            low, high = over["interval"]
            gain = f"{over['mean']:+.4f} | [{low:+.4f}, {high:+.4f}]"
            values = " | ".join(f"{scores[metric]:.4f}" for metric in _METRICS)
            rows.append(f"| {model} | {values} | {'– | –' if model == 'black box' else gain} |")
        rows.append("")
    return "\n".join(rows[:-1])


def composed_runs_table() -> str:
    """Validation scores by epoch."""
    rows = [
        "| set | trained | base model | hit rate@5 on dev, epochs 0, 1, … | kept | λ | "
        "computed in | seconds per epoch |",
        "|---|---|---:|---|---:|---:|---|---:|",
    ]
    for name, found in environment.load("composed")["sets"].items():
        for model, run in found["runs"].items():
            settings, history = run["settings"], run["history"]
            scores = ", ".join(f"{line['scores']['hit_rate@5']:.3f}" for line in history)
            weight = settings.get("tuned_weight")
            precision = settings["precision"].replace("auto", "float32")  # on a CPU
            seconds = sum(line["seconds"] for line in history[1:]) / (len(history) - 1)
            rows.append(
                f"| {name} | {model} | {settings['base_scores']['hit_rate@5']:.3f} | {scores} "
                f"| {run['best_epoch']} | {'–' if weight is None else f'{weight:.2f}'} "
                f"| {precision} | {seconds:.0f} |"
            )
    return "\n".join(rows)


def composed_costs_table() -> str:
    """Time of an epoch beside the original's loop, and memory of a step."""
    found = environment.load("composed")
    rows = ["| what | measured |", "|---|---|"]
    if "time" in found:
        rows += _time_rows(found["time"])
    memory = found["memory"]
    peaks = {size: batch["peak_mib"] for size, batch in memory["batches"].items()}
    shown = ", ".join(f"batch {size}: {peak:,.0f} MiB" for size, peak in peaks.items())
    rows.append(f"| peak memory of a process that takes one step | {shown} |")
    rows.append(f"| ratio | {memory['ratio of peaks']:.2f} |")
    return "\n".join(rows)


def _time_rows(found: dict[str, Any]) -> list[str]:
    rows = []
    for name in ("original's loop", "ours"):
        run = found[name]
        dev = ", ".join(f"{score:.3f}" for score in run["dev"])
        rows.append(
            f"| {name} | {run['seconds per epoch']:.0f} processor s an epoch; hit rate@5 on dev "
            f"{dev}, on test {run['test hit_rate@5']:.4f}, NDCG@10 {run['test ndcg@10']:.4f} |"
        )
    rounds = len(found["ratios"])
    label = "times as fast" + (f", median of {rounds} rounds" if rounds > 1 else "")
    return [*rows, f"| {label} | {found['ratio']:.2f} |"]


TABLES: dict[str, Callable[[], str]] = {
    "composed": composed_table,
    "composed_runs": composed_runs_table,
    "composed_costs": composed_costs_table,
}
