"""Tables of what the package costs, up to a million documents, and of what it withstands."""

from __future__ import annotations

from typing import Any

from benchmarks import environment
from benchmarks.pages.markdown import table

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


def old_table() -> str:
    """The engine of llama-index-finetuning and ours, side by side."""
    found = environment.load("old")
    rows: list[tuple[object, ...]] = [("base model", "", "", "", *_scores(found["test"]["base"]))]
    for name, run in found["runs"].items():
        scores = _scores(found["test"]["ours" if name.startswith("ours") else name])
        cost = f"{run['texts']:,}", f"{run['calls']:,}", f"{run['seconds']:.1f}"
        rows.append((name, *cost, *scores))
    return table(" | texts embedded | calls | seconds | NDCG@10 | MRR@10 | hit rate@5", rows)


def _scores(values: dict[str, float]) -> list[str]:
    return [f"{values[metric]:.4f}" for metric in ("ndcg@10", "mrr@10", "hit_rate@5")]


def words_table() -> str:
    found = environment.load("words")["cost"]
    rows = [tuple(f"{value:,}" for value in row.values()) for row in found]
    return table(" | ".join(found[0]), rows)


def serving_table() -> str:
    found = environment.load("serving")
    speed, over = found["evaluator_queries_per_second"], found["overhead_us"]
    return table(
        "what | measured",
        [
            ("adapter step, 384 dimensions", f"{found['adapter_step_us']:.0f} µs"),
            ("a query, over calling the base model",
             f"{over['ours']:.0f} µs (`AdapterEmbeddingModel`: {over['old']:.0f} µs)"),
            ("import (of `llama_index.core`, which comes where it is used)",
             "{ours:.2f} s ({core:.2f} s)".format(**found["import_seconds"])),
            (f"evaluation, {found['evaluator_documents']:,} documents",
             f"{speed['evaluate_retrieval']:,.0f} queries/s (`RetrieverEvaluator`: "
             f"{speed['RetrieverEvaluator']:.0f})"),
        ],
    )  # fmt: skip


def load_table() -> str:
    """What an adapter adds to the base model, under many clients."""
    found = environment.load("load")
    base = found["models"]["base"]
    return table(
        "model | requests | errors | median | 95th percentile | added: median | 95th percentile",
        [
            (name, f"{run['requests']:,}", run["errors"],
             *(f"{run[at]:.1f} ms" for at in ("p50_ms", "p95_ms")),
             *(f"{run[at] - base[at]:+.1f} ms" for at in ("p50_ms", "p95_ms")))
            for name, run in found["models"].items()
        ],
    )  # fmt: skip


def throughput_table() -> str:
    """Both functions on one local server."""
    return table(
        "client | llama-index-finetuning | ours, median | times as fast | over the ideal",
        [
            (name, f"{run['old_seconds']:.1f} s",
             f"{run['old_seconds'] / run['times_as_fast']:.2f} s",
             f"{run['times_as_fast']:.0f}", f"{run['over_ideal']:.2f} ×")
            for name, run in environment.load("throughput")["clients"].items()
        ],
    )  # fmt: skip


def speed_table() -> str:
    found = environment.load("speed")
    rows = [
        *((f"{name}: linear fit until dev is as good as the old loop's",
           f"{run['ours_seconds']:.2f} s (old loop {run['old_seconds']:.1f} s: "
           f"{run['ratio']:.0f} times as long)")
          for name, run in found["old_loop"].items()),
        *((f'`method="auto"`, {name}, adapts="{adapts}"', f"{seconds:.0f} s")
          for name, sides in found["auto"].items() for adapts, seconds in sides.items()),
        *(("of it, on vectors alone: {pairs:,} pairs, {documents:,} documents, "
           "{dimensions:,} dimensions".format(**run), f"{run['seconds']:.0f} s, {run['gain']:+.1%}")
          for run in found["auto_vectors"]),
        *((f"of it, MiniLM and mpnet side by side: {run['dimensions']:,} dimensions",
           f"{run['seconds']:.0f} s, {run['gain']:+.1%}") for run in found["auto_two_models"]),
    ]  # fmt: skip
    return table("what | measured", rows)


def scale_table() -> str:
    """Every step at every size: processor seconds, documents per second, memory, bytes."""
    return table(
        "step | documents | pairs | processor seconds | documents per second | peak memory "
        "| bytes per document",
        [
            (STEPS[run["work"]], f"{run['documents']:,}", f"{run['pairs']:,}",
             f"{run['cpu_seconds']:.1f}", f"{run['documents_per_second']:,.0f}",
             f"{run['peak_memory_mib'] / 1024:.2f} GiB",
             f"{run['bytes_per_document']:,.0f}" if "bytes_per_document" in run else "")
            for run in environment.load("scale")["rows"]
        ],
    )  # fmt: skip


def plan_table() -> str:
    """A hundred million documents: where, what was measured, what follows from it."""
    runs = environment.load("scale")["rows"]
    largest = {run["work"]: run for run in runs if run["documents"] == 1_000_000}
    questions = ASKED * (PROMPT * PROMPT_PRICE + ANSWER * ANSWER_PRICE) / 1e6
    return table(
        "step | where | measured | 100 million, arithmetic",
        [
            *_embed_rows(),
            _disk_row(largest["encode"]),
            _linear_row("bookkeeping of that", "the process that calls", largest["encode"]),
            ("write questions", "a hosted LLM", "",
             f"a sample of {ASKED:,} passages, {PROMPT} + {ANSWER} tokens each: ${questions:,.0f}"),
            _sample_row("train and judge", largest["finetune"]),
            _sample_row("evaluate", largest["evaluate"]),
            _linear_row("rebuild into files", "one core", largest["rebuild, vectors"]),
            _linear_row("rebuild into LanceDB", "one process", largest["rebuild, LanceDB"]),
        ],
    )  # fmt: skip


def _embed_rows() -> list[tuple[str, ...]]:
    found = environment.load("scale")["MiniLM"]
    rate, words = found["texts"] / found["cpu_seconds"], found["words_per_text"]
    hours, tokens = PLANNED / rate / 3600, PLANNED * words * TOKENS_PER_WORD
    return [
        ("embed, MiniLM", "Ray actors, a core each",
         f"{rate:.1f} texts of {words:.0f} words per processor second",
         f"{hours:,.0f} core-hours: {hours / 1000:,.1f} hours on 1,000 cores, "
         f"${hours * CORE_HOUR:,.0f}"),
        ("or embed, an API", "its provider", "",
         f"{tokens / 1e9:,.0f}·10⁹ tokens, ${tokens / 1e6 * TOKENS:,.0f}"),
    ]  # fmt: skip


def _disk_row(run: dict[str, Any]) -> tuple[str, ...]:
    size = run["bytes_per_document"] * PLANNED / 1e9
    measured = f"{run['bytes_per_document']:,.0f} bytes per document"
    return "keep", "disk", measured, f"{size:,.0f} GB, ${size * GB_MONTH:,.0f} a month"


def _linear_row(step: str, where: str, run: dict[str, Any]) -> tuple[str, ...]:
    hours = PLANNED / run["documents_per_second"] / 3600
    measured = (
        f"{run['documents_per_second']:,.0f} documents per second, "
        f"{run['peak_memory_mib'] / 1024:.1f} GiB, at a million"
    )
    return step, where, measured, f"{hours:,.1f} core-hours, ${hours * CORE_HOUR:,.2f}"


def _sample_row(step: str, run: dict[str, Any]) -> tuple[str, ...]:
    minutes, memory = run["cpu_seconds"] / 60, run["peak_memory_mib"] / 1024
    measured = f"{minutes:.1f} minutes of a core, {memory:.1f} GiB, at a million"
    return step, "one process", measured, "the same: on a sample of a million"


_JOBS = {
    "encode": "fill the vector cache",
    "train": "embed, train, save over an older adapter, write the report",
    "save": "save over an older adapter",
    "generate": "have questions written",
    "rebuild": "rebuild an index into a new collection (Qdrant)",
}


def kills_table() -> str:
    """What was left after every kill, and where the resumed runs ended."""
    return table(
        "work | seconds, left alone | kills | neither old nor new | other results | finished and "
        "asked for again | in flight, at most",
        [
            (_JOBS[name], f"{found['seconds']:.2f}", found["kills"], found["broken"],
             found["other_results"], found["finished_asked_again"],
             f"{found['most_in_flight']} of {found['in_flight_allowed']}")
            for name, found in environment.load("kills")["jobs"].items()
        ],
    )  # fmt: skip


def fuzz_table() -> str:
    return table(
        "format | inputs | read | refused with an error of ours | anything else",
        [
            (name, f"{found['inputs']:,}", f"{found['valid']:,}", f"{found['refused']:,}",
             found["anything_else"] or 0)
            for name, found in environment.load("fuzz")["formats"].items()
        ],
    )  # fmt: skip


def soak_table() -> str:
    found = environment.load("soak")
    memory = found["resident_mb"]
    return table(
        "what | measured",
        [
            ("queries served, from 32 threads and 32 coroutines", f"{found['served']:,}"),
            ("errors", found["errors"]),
            ("vectors other than those of single calls", found["wrong"]),
            ("swaps of the adapter meanwhile", f"{found['swaps']:,}"),
            ("resident memory after the first tenth", f"{memory['warm']:.1f} MiB"),
            ("at most after that", f"{memory['most']:.1f} MiB ({found['growth']:+.1%})"),
            ("at the end", f"{memory['end']:.1f} MiB"),
        ],
    )
