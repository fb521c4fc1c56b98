"""Measurements that need a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def in_a_process(arguments: list[str]) -> dict[str, Any]:
    """Run Python with these arguments, free of the threads of this process; return its JSON."""
    command = [sys.executable, "-W", "ignore", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=3600
    )
    return dict(json.loads(done.stdout))
