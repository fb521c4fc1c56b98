"""``python .ci/house.py``: the sizes of the house, beside what they are to become.

Exits with 1 where a size exceeds its bound. A bound is the target, or where the house stands today:
it goes down with the house, and rises only in a commit that says what new work it holds. Which room
may import which is the import contract's to hold (pyproject.toml).
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_index_embeddings_adapted"


@dataclass(frozen=True)
class Size:
    """What was counted, the most it may be now, and what it is to become."""

    name: str
    found: float
    bound: float
    target: float
    where: str = ""

    def __str__(self) -> str:
        mark = "! " if self.found > self.bound else "  "
        sizes = f"{self.found:>8,.0f}{self.bound:>8,.0f}{self.target:>8,.0f}"
        return f"{mark}{self.name:<38}{sizes}  {self.where if self.found > self.target else ''}"


def sizes() -> Iterator[Size]:
    """Yield every size that is held."""
    files = sorted(PACKAGE.rglob("*.py"))
    modules = {path: _lines(path) for path in files if path.name != "__init__.py"}
    lengths = {where: length for path in files for where, length in _functions(path)}
    longest_module = max(modules, key=lambda path: modules[path])
    longest = max(lengths, key=lambda where: lengths[where])
    entries = [path for path in PACKAGE.iterdir() if not _apart(path)]
    yield Size("entries at the top of the package", len(entries), 13, 13)
    yield Size("modules", len(modules), 71, 62)
    yield Size(
        "lines of the longest module", modules[longest_module], 450, 450, _name(longest_module)
    )
    yield Size("lines of the longest function", lengths[longest], 60, 60, longest)
    yield Size("lines of the median function", statistics.median(lengths.values()), 7, 8)
    lines = sum(map(_lines, [*files, *PACKAGE.rglob("*.pyi")]))
    yield Size("lines of the package", lines, 22_043, 17_000)
    yield Size("lines of tests", sum(map(_lines, (ROOT / "tests").rglob("*.py"))), 15_868, 14_500)
    yield Size(
        "lines of benchmarks", sum(map(_lines, (ROOT / "benchmarks").rglob("*.py"))), 5_319, 5_500
    )
    silent = [path for path in files if path.name == "__init__.py" and not _docstring(path)]
    yield Size(
        "rooms that do not say what they are", len(silent), 0, 0, ", ".join(map(_name, silent))
    )


def _apart(path: Path) -> bool:
    return path.name.startswith("__") or path.name == "py.typed"


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield place and lines of every function, docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{_name(path)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def main() -> int:
    """Print the sizes."""
    found = list(sizes())
    print(f"{'':40}{'now':>8}{'bound':>8}{'target':>8}")
    print("\n".join(map(str, found)))
    return int(any(size.found > size.bound for size in found))


if __name__ == "__main__":
    sys.exit(main())
