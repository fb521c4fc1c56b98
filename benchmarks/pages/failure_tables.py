"""Tables of what was done to the package, and what it did then: kills, hostile input, load."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import environment

_JOBS = {
    "encode": "fill the vector cache",
    "train": "embed, train, save over an older adapter, write the report",
    "save": "save over an older adapter",
    "generate": "have questions written",
    "rebuild": "rebuild an index into a new collection (Qdrant)",
}


def kills_table() -> str:
    """What was left after every kill, and where the resumed runs ended."""
    rows = [
        "| work | seconds, left alone | kills | neither old nor new | other results | finished and "
        "asked for again | in flight, at most |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in environment.load("kills")["jobs"].items():
        flying = f"{found['most_in_flight']} of {found['in_flight_allowed']}"
        rows.append(
            f"| {_JOBS[name]} | {found['seconds']:.2f} | {found['kills']} | {found['broken']} "
            f"| {found['other_results']} | {found['finished_asked_again']} | {flying} |"
        )
    return "\n".join(rows)


def fuzz_table() -> str:
    """What came of damaged and hostile input."""
    rows = ["| format | inputs | read | refused with an error of ours | anything else |",
            "|---|---:|---:|---:|---:|"]  # fmt: skip
    for name, found in environment.load("fuzz")["formats"].items():
        rows.append(
            f"| {name} | {found['inputs']:,} | {found['valid']:,} | {found['refused']:,} "
            f"| {found['anything_else'] or 0} |"
        )
    return "\n".join(rows)


def guided_table() -> str:
    """What came of input chosen by coverage."""
    rows = ["| format | inputs | read | refused | covered, first and last | anything else |",
            "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, found in environment.load("guided")["formats"].items():
        covered = " → ".join(map(str, found["covered"])) or "–"
        rows.append(
            f"| {name} | {found['inputs']:,} | {found['valid']:,} | {found['refused']:,} "
            f"| {covered} | {found['anything_else'] or 0} |"
        )
    return "\n".join(rows)


def soak_table() -> str:
    """What came of many queries at once."""
    found = environment.load("soak")
    memory = found["resident_mb"]
    return "\n".join(
        [
            "| what | measured |",
            "|---|---:|",
            f"| queries served, from 32 threads and 32 coroutines | {found['served']:,} |",
            f"| errors | {found['errors']} |",
            f"| vectors other than those of single calls | {found['wrong']} |",
            f"| swaps of the adapter meanwhile | {found['swaps']:,} |",
            f"| resident memory after the first tenth | {memory['warm']:.1f} MiB |",
            f"| at most after that | {memory['most']:.1f} MiB ({found['growth']:+.1%}) |",
            f"| at the end | {memory['end']:.1f} MiB |",
        ]
    )


TABLES: dict[str, Callable[[], str]] = {
    "kills": kills_table,
    "fuzz": fuzz_table,
    "guided": guided_table,
    "soak": soak_table,
}
