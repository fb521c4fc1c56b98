"""Tables in the documentation, generated from the result files, so that neither drifts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import environment
from benchmarks.pages import cost_tables, method_tables

ROOT = Path(__file__).parents[2]
_PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
_BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: Pages that have tables of results.
DOCUMENTS = [page for page in _PAGES if "<!-- results:" in page.read_text(encoding="utf-8")]

TABLES: dict[str, Callable[[], str]] = {
    name.removesuffix("_table"): function
    for module in (method_tables, cost_tables)
    for name, function in vars(module).items()
    if name.endswith("_table")
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
