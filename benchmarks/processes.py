"""Measurements that need a process of their own, and the memory it took; loads next to nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
Found = TypeVar("Found")


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    """Return what the work returns, and the seconds it took."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def in_a_process(*arguments: object) -> dict[str, Any]:
    """Run Python with these arguments and one thread; return the JSON of its last line."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=36_000
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory(what: str = "VmRSS") -> float:
    """Return the resident memory of this process, mapped files included, in MiB.

    ``"VmHWM"`` is the peak so far. Not ``ru_maxrss``: a child inherits that of its parent.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{what}:")[1].split()[0]) / 1024
