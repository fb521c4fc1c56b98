"""Tables of growth: what was measured up to a million documents, and what follows for more."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks import environment

STEPS = {
    "encode": "encode, a base model that costs nothing",
    "read": "read into arrays",
    "train": "train, one epoch of all pairs",
    "evaluate": "evaluate, 1,000 queries, reading included",
    "finetune": "`finetune()`, two epochs, judging included",
    "rebuild, vectors": "rebuild into a file",
    "rebuild, LanceDB": "rebuild into LanceDB",
}
PLANNED = 100_000_000
CORE_HOUR, GB_MONTH, TOKENS = 0.05, 0.08, 0.02  # assumed USD; tokens: of an API, per million
TOKENS_PER_WORD = 1.3
ASKED, PROMPT, ANSWER = 200_000, 400, 40  # passages asked about, tokens of each call
PROMPT_PRICE, ANSWER_PRICE = 0.15, 0.60  # assumed USD per million tokens of a small hosted LLM


def scale_table() -> str:
    """Every step at every size: processor seconds, documents per second, memory, bytes."""
    rows = [
        "| step | documents | pairs | processor seconds | documents per second | peak memory "
        "| bytes per document |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in _runs():
        stored = f"{run['bytes_per_document']:,.0f}" if "bytes_per_document" in run else ""
        rows.append(
            f"| {STEPS[run['work']]} | {run['documents']:,} | {run['pairs']:,} "
            f"| {run['cpu_seconds']:.1f} | {run['documents_per_second']:,.0f} "
            f"| {run['peak_memory_mib'] / 1024:.2f} GiB | {stored} |"
        )
    return "\n".join(rows)


def ray_table() -> str:
    """One embedding job, in this process and on a local Ray."""
    found = environment.load("ray")
    rows = [
        "| who embeds | seconds, median | texts per second | start of Ray, seconds "
        "| load average |",
        "|---|---:|---:|---:|---:|",
    ]
    for actors in dict.fromkeys(run["actors"] for run in found["rows"]):
        runs = [run for run in found["rows"] if run["actors"] == actors]
        seconds = median(run["seconds"] for run in runs)
        start = median(run["start_seconds"] for run in runs)
        loads = [run["load_average"] for run in runs]
        who = f"Ray, {actors} actor{'s' * (actors > 1)}" if actors else "this process"
        rows.append(
            f"| {who} | {seconds:.0f} | {found['texts'] / seconds:.1f} "
            f"| {f'{start:.0f}' if actors else ''} | {min(loads):.0f} to {max(loads):.0f} |"
        )
    return "\n".join(rows)


def plan_table() -> str:
    """A hundred million documents: where, what was measured, what follows from it."""
    rows = ["| step | where | measured | 100 million, arithmetic |", "|---|---|---|---|"]
    largest = {run["work"]: run for run in _runs() if run["documents"] == 1_000_000}
    rows += [_embed_row(), _api_row(), _disk_row(largest["encode"])]
    rows += [
        _linear_row("bookkeeping of that", "the process that calls", largest["encode"]),
        _questions_row(),
        _sample_row("train and judge", largest["finetune"]),
        _sample_row("evaluate", largest["evaluate"]),
        _linear_row("rebuild into files", "one core", largest["rebuild, vectors"]),
        _linear_row("rebuild into LanceDB", "one process", largest["rebuild, LanceDB"]),
    ]
    return "\n".join(f"| {' | '.join(row)} |" if isinstance(row, tuple) else row for row in rows)


def _runs() -> list[dict[str, Any]]:
    return list(environment.load("scale")["rows"])


def _embed_row() -> tuple[str, ...]:
    found = environment.load("ray")
    alone = [run for run in found["rows"] if not run["actors"] and "cpu_seconds_here" in run]
    rate = median(found["texts"] / run["cpu_seconds_here"] for run in alone)
    hours = PLANNED / rate / 3600
    words = alone[0]["words_per_text"]
    return (
        "embed, MiniLM",
        "Ray actors, a core each",
        f"{rate:.1f} texts of {words:.0f} words per processor second",
        f"{hours:,.0f} core-hours: {hours / 1000:,.1f} hours on 1,000 cores, "
        f"${hours * CORE_HOUR:,.0f}",
    )


def _api_row() -> tuple[str, ...]:
    words = environment.load("ray")["rows"][0]["words_per_text"]
    tokens = PLANNED * words * TOKENS_PER_WORD
    cost = tokens / 1e6 * TOKENS
    return ("or embed, an API", "its provider", "", f"{tokens / 1e9:,.0f}·10⁹ tokens, ${cost:,.0f}")


def _disk_row(run: dict[str, Any]) -> tuple[str, ...]:
    size = run["bytes_per_document"] * PLANNED / 1e9
    measured = f"{run['bytes_per_document']:,.0f} bytes per document"
    return ("keep", "disk", measured, f"{size:,.0f} GB, ${size * GB_MONTH:,.0f} a month")


def _linear_row(step: str, where: str, run: dict[str, Any]) -> tuple[str, ...]:
    hours = PLANNED / run["documents_per_second"] / 3600
    measured = (
        f"{run['documents_per_second']:,.0f} documents per second, "
        f"{run['peak_memory_mib'] / 1024:.1f} GiB, at a million"
    )
    return (step, where, measured, f"{hours:,.1f} core-hours, ${hours * CORE_HOUR:,.2f}")


def _questions_row() -> tuple[str, ...]:
    cost = ASKED * (PROMPT * PROMPT_PRICE + ANSWER * ANSWER_PRICE) / 1e6
    return (
        "write questions",
        "a hosted LLM",
        "",
        f"a sample of {ASKED:,} passages, {PROMPT} + {ANSWER} tokens each: ${cost:,.0f}",
    )


def _sample_row(step: str, run: dict[str, Any]) -> tuple[str, ...]:
    minutes = run["cpu_seconds"] / 60
    memory = run["peak_memory_mib"] / 1024
    return (
        step,
        "one process",
        f"{minutes:.1f} minutes of a core, {memory:.1f} GiB, at a million",
        "the same: on a sample of a million",
    )


TABLES: dict[str, Callable[[], str]] = {
    "scale": scale_table,
    "ray": ray_table,
    "plan": plan_table,
}
