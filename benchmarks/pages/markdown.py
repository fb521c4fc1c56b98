"""A table in Markdown; columns of numbers are aligned to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NUMBERS = frozenset("+-–.0123456789")


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table whose ``head`` has the names of the columns, between ``|``."""
    names = [name.strip() for name in head.split("|")]
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True)) or [()] * len(names)
    marks = ["---:" if {c[:1] for c in column if c} <= _NUMBERS else "---" for column in columns]
    lines = (f"| {' | '.join(row)} |" for row in [names, *cells])
    return "\n".join([next(lines), f"|{'|'.join(marks)}|", *lines])


def interval(low: float, high: float) -> str:
    return f"[{low:+.4f}, {high:+.4f}]"
