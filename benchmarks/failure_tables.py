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


TABLES: dict[str, Callable[[], str]] = {"kills": kills_table}
