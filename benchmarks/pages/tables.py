"""Tables in the documentation, generated from the result files, so that neither drifts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import environment
from benchmarks.pages import (
    composed_tables,
    failure_tables,
    method_tables,
    scale_tables,
    service_tables,
)
from benchmarks.pages.method_tables import gain

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "docs" / "scale.md")
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def quality_table() -> str:
    """NDCG@10 on every test set: base, default adapter, known and new documents apart."""
    rows = [
        "| data set | test queries | base | adapted | gain | known documents | new documents |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, variants in environment.load("quality")["sets"].items():
        runs = [run["tests"]["test"] for run in variants["default"]]
        whole = [run["all"] for run in runs]
        base, adapted = (mean(r[m]["ndcg@10"] for r in whole) for m in ("base", "adapted"))
        parts = [gain(runs, part) for part in ("known", "new")]
        rows.append(
            f"| {name} | {whole[0]['queries']:,} | {base:.4f} | {adapted:.4f} "
            f"| {adapted / base - 1:+.1%} | {parts[0]} | {parts[1]} |"
        )
    return "\n".join(rows)


def files_table() -> str:
    """Every test file and seed: difference in NDCG@10 with its interval."""
    rows = [
        "| data set | test file | loss | seed | base | adapted | difference | 95 % interval "
        "| epoch | seconds, vectors cached |",
        "|---|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for name, variants in environment.load("quality")["sets"].items():
        for variant, runs in variants.items():
            for run in runs:
                for split, parts in run["tests"].items():
                    rows.append(_file_row(name, split, variant, run, parts["all"]))
    return "\n".join(rows)


def old_table() -> str:
    """The engine of llama-index-finetuning and ours, side by side."""
    found = environment.load("old")
    rows = [
        "| | texts embedded | calls | seconds | NDCG@10 | MRR@10 | hit rate@5 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| base model | | | | " + _scores(found["test"]["base"]) + " |",
    ]
    for name, run in found["runs"].items():
        model = "ours" if name.startswith("ours") else name
        rows.append(
            f"| {name} | {run['texts']:,} | {run['calls']:,} | {run['seconds']:.1f} | "
            + _scores(found["test"][model])
            + " |"
        )
    return "\n".join(rows)


def serving_table() -> str:
    """What serving costs."""
    found = environment.load("serving")
    speed = found["evaluator_queries_per_second"]
    rows = [
        "| what | measured |",
        "|---|---|",
        f"| adapter step, 384 dimensions | {found['adapter_step_us']:.0f} µs |",
        f"| a query, over calling the base model | {found['overhead_us']['ours']:.0f} µs "
        f"(`AdapterEmbeddingModel`: {found['overhead_us']['old']:.0f} µs) |",
        f"| import, over `import llama_index.core` | {found['import_ratio'] - 1:+.1%} |",
        f"| evaluation, {found['evaluator_documents']:,} documents | "
        f"{speed['evaluate_retrieval']:,.0f} queries/s (`RetrieverEvaluator`: "
        f"{speed['RetrieverEvaluator']:.0f}) |",
    ]
    return "\n".join(rows)


def questions_table() -> str:
    """What was kept of what SmolLM2 wrote, and why the rest was not."""
    found = environment.load("questions")["sets"]
    rows = ["| | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    judged = [each["questions"] for each in found.values()]
    reports = [each["report"] for each in judged]
    reasons = dict.fromkeys(reason for report in reports for reason in report["dropped"])
    lines: dict[str, list[str]] = {
        "passages asked about": [str(report["passages"]) for report in reports],
        "questions written": [str(report["written"]) for report in reports],
        "kept": [
            f"{r['kept']} ({each['kept_share']:.0%})"
            for r, each in zip(reports, judged, strict=True)
        ],
        "kept, passage in the base model's top 5": [
            f"{each['kept_in_top_5']:.0%}" for each in judged
        ],
        "kept, passage first": [f"{each['kept_first']:.0%}" for each in judged],
        "of so many passages": [f"{each['searched']:,}" for each in judged],
    }
    for reason in reasons:
        name = f"dropped: {reason.replace('_', ' ')}"
        lines[name] = [str(report["dropped"].get(reason, 0)) for report in reports]
    rows += [f"| {name} | " + " | ".join(values) + " |" for name, values in lines.items()]
    return "\n".join(rows)


def synthetic_table() -> str:
    """Adapters trained on nothing but what SmolLM2 wrote, on questions of other writers."""
    rows = [
        "| test set | trained on | queries | base | adapted | difference | 95 % interval "
        "| verdict |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for name, found in environment.load("questions")["sets"].items():
        for variant, run in found.items():
            if variant == "questions":
                continue
            low, high = run["interval"]
            rows.append(
                f"| {name} | {variant} | {run['train_queries']} | {run['base']['ndcg@10']:.4f} "
                f"| {run['adapted']['ndcg@10']:.4f} | {run['difference']:+.4f} "
                f"| [{low:+.4f}, {high:+.4f}] | {run['verdict']} |"
            )
    return "\n".join(rows)


def throughput_table() -> str:
    """Both functions on one local server."""
    found = environment.load("throughput")
    rows = [
        "| client | llama-index-finetuning | ours, median | times as fast | over the ideal |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, run in found["clients"].items():
        middle = run["old_seconds"] / run["times_as_fast"]
        rows.append(
            f"| {name} | {run['old_seconds']:.1f} s | {middle:.2f} s "
            f"| {run['times_as_fast']:.0f} | {run['over_ideal']:.2f} × |"
        )
    return "\n".join(rows)


def recovery_table() -> str:
    """What killing a run costs."""
    found = environment.load("recovery")
    rows = ["| what | measured |", "|---|---|"]
    names = {
        "passages": "passages",
        "kills": "kills while it ran",
        "same_dataset": "the final dataset is that of an uninterrupted run",
        "finished_passages_asked_again": "finished passages asked again",
        "in_flight_when_killed": "calls lost in flight",
        "in_flight_at_most": "of at most (kills × concurrency)",
    }
    values = {key: found[key] for key in names}
    shown = {k: ("yes" if v else "no") if isinstance(v, bool) else v for k, v in values.items()}
    rows += [f"| {names[key]} | {value} |" for key, value in shown.items()]
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    **method_tables.TABLES,
    **composed_tables.TABLES,
    **service_tables.TABLES,
    **failure_tables.TABLES,
    **scale_tables.TABLES,
    "quality": quality_table,
    "files": files_table,
    "old": old_table,
    "serving": serving_table,
    "questions": questions_table,
    "synthetic": synthetic_table,
    "throughput": throughput_table,
    "recovery": recovery_table,
}


def refresh() -> None:
    """Rewrite every ``<!-- results: NAME -->`` block of the documentation."""
    for path in DOCUMENTS:
        environment.replace(path, refreshed(path.read_text(encoding="utf-8")))


def refreshed(text: str) -> str:
    """Return a document with its blocks as the result files have them."""
    return _BLOCK.sub(lambda m: f"{m[1]}{_table(m[2])}\n{m[3]}", text)


def _table(name: str) -> str:
    try:
        return TABLES[name]()
    except FileNotFoundError:  # its result file
        return "Not measured yet."


def _scores(values: dict[str, float]) -> str:
    return " | ".join(f"{values[metric]:.4f}" for metric in ("ndcg@10", "mrr@10", "hit_rate@5"))


def _file_row(name: str, split: str, variant: str, run: Any, found: Any) -> str:
    low, high = found["interval"]
    return (
        f"| {name} | {split} | {variant} | {run['seed']} | {found['base']['ndcg@10']:.4f} "
        f"| {found['adapted']['ndcg@10']:.4f} | {found['difference']:+.4f} "
        f"| [{low:+.4f}, {high:+.4f}] | {run['epoch']} | {run['seconds']:.0f} |"
    )
