"""The same damaged input, chosen by coverage: atheris (libFuzzer) drives what hypothesis checks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

_PACKAGE = "llama_index_embeddings_adapted"
_NOTE_EVERY = 100


def run(names: list[str], seconds: int) -> dict[str, Any]:
    """Feed each format for so long, each in a process of its own.

    Raises:
        MissingExtraError: atheris is not installed.
    """
    from llama_index_embeddings_adapted.errors import require_extra

    require_extra("atheris", extra="fuzz")
    return {name: _fed(name, seconds) for name in names}


def _fed(name: str, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-m", __name__, name, str(seconds), folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        noted = Path(folder) / "counts.json"
        counts = json.loads(noted.read_text()) if noted.exists() else {}
    covered = re.findall(r"cov: (\d+)", done.stderr)
    found = re.findall(r"=== Uncaught Python exception: ===\n(.*)", done.stderr)
    failed = "" if not done.returncode else f"status {done.returncode}"
    return {
        "inputs": sum(counts.values()),
        "valid": counts.get("valid", 0),
        "refused": counts.get("refused", 0),
        "covered": [int(covered[0]), int(covered[-1])] if covered else [],
        "anything_else": (found[0] if found else failed)[:200],
    }


def main() -> None:
    """Feed one format; libFuzzer ends the process."""
    import atheris

    name, seconds, folder = sys.argv[1:]
    with atheris.instrument_imports(include=[_PACKAGE]):
        from benchmarks.robustness import fuzz
    counts: Counter[str] = Counter()
    check = fuzz.checked(name, counts, 1)

    def one(data: bytes) -> None:
        check.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]
        if counts.total() % _NOTE_EVERY == 0:
            (Path(folder) / "counts.json").write_text(json.dumps(counts))

    # Alarms are ours; what takes too long or too much memory is noticed for each input.
    options = [f"-max_total_time={seconds}", "-handle_alrm=0", "-timeout=0", "-rss_limit_mb=0",
               "-max_len=4096", "-len_control=0", f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
