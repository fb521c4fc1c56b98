"""Code that runs in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def fresh(code: str, *arguments: object) -> Any:
    """Run code in a fresh interpreter; return what it printed last, as JSON."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
