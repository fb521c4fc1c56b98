"""Tables of what was done to the package, and what it did then: kills, hostile input, load."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import environment
from benchmarks.pages.markdown import table

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
    """What came of damaged and hostile input."""
    return table(
        "format | inputs | read | refused with an error of ours | anything else",
        [
            (name, f"{found['inputs']:,}", f"{found['valid']:,}", f"{found['refused']:,}",
             found["anything_else"] or 0)
            for name, found in environment.load("fuzz")["formats"].items()
        ],
    )  # fmt: skip


def guided_table() -> str:
    """What came of input chosen by coverage."""
    return table(
        "format | inputs | read | refused | covered, first and last | anything else",
        [
            (name, f"{found['inputs']:,}", f"{found['valid']:,}", f"{found['refused']:,}",
             " → ".join(map(str, found["covered"])) or "–", found["anything_else"] or 0)
            for name, found in environment.load("guided")["formats"].items()
        ],
    )  # fmt: skip


def soak_table() -> str:
    """What came of many queries at once."""
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


TABLES: dict[str, Callable[[], str]] = {
    "kills": kills_table,
    "fuzz": fuzz_table,
    "guided": guided_table,
    "soak": soak_table,
}
