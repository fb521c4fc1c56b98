"""``kill -9`` at random moments: what is left, what is lost, and where a resumed run ends.

A process that has imported everything forks each run, so that a kill falls into the work and not
into the imports. A moment is drawn from a seed, between the start and the time that the same work
takes when it is left alone.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.processes import in_a_process, timed
from benchmarks.robustness.kill_jobs import JOBS, Paid

KILLS_PER_RUN = 2  # a run is killed so often before it may finish
_COUNTED = (
    "kills", "broken", "other_results", "finished_asked_again", "in_flight", "most_in_flight"
)  # fmt: skip
#: What the work imports when it needs it: here once, instead of in every child.
_IMPORTED_LATE = ("llama_index.vector_stores.qdrant", "scipy.stats", "tiktoken", "torch._dynamo")


def run(kills: int = 60, *, seed: int = 0) -> dict[str, Any]:
    """Kill every job, all of them so often together."""
    each = -(-kills // len(JOBS))
    return in_a_process("-m", __name__, each, seed)


def killed(kills: int, seed: int) -> dict[str, Any]:
    """Kill each job so often, in children of this process."""
    for module in _IMPORTED_LATE:
        importlib.import_module(module)
    jobs = {name: experiment(job, kills, seed=seed) for name, job in JOBS.items()}
    return {"jobs": jobs, "seed": seed}


def experiment(job: Any, kills: int, *, seed: int = 0) -> dict[str, Any]:
    """Kill one job so often, and compare with a run that was left alone."""
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The first run in a process is slower, and its length would put kills past the others' end.
        seconds = min(_alone(job, folder / "first"), _alone(job, folder / "whole"))
        expected = job.result(folder / "whole")
        counts = dict.fromkeys(_COUNTED, 0)
        counts["other_results"] = int(job.result(folder / "first") != expected)
        while counts["kills"] < kills:
            place = folder / f"run{counts['kills']}-{moments.random()}"
            place.mkdir()
            job.prepare(place)
            for _ in range(min(KILLS_PER_RUN, kills - counts["kills"])):
                _kill(job, place, moments.uniform(0, seconds), counts)
            _finish(job, place, counts)
            counts["other_results"] += job.result(place) != expected
    return {**counts, "in_flight_allowed": job.most_in_flight, "seconds": round(seconds, 3)}


def _alone(job: Any, folder: Path) -> float:
    folder.mkdir()
    job.prepare(folder)
    child = _fork(job, folder)
    _, seconds = timed(lambda: _wait(child))
    job.check(folder)
    return seconds


def _kill(job: Any, folder: Path, moment: float, counts: dict[str, int]) -> None:
    """Start the work, kill it at the moment, and look at what it left; too late is no kill."""
    before = job.paid(folder)
    child = _fork(job, folder)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return
    counts["kills"] += 1
    try:
        job.check(folder)
    except Exception:
        traceback.print_exc()
        counts["broken"] += 1
    _count(before, job.paid(folder), counts)


def _finish(job: Any, folder: Path, counts: dict[str, int]) -> None:
    before = job.paid(folder)
    _wait(_fork(job, folder))
    job.check(folder)
    _count(before, job.paid(folder), counts)


def _count(before: Paid, after: Paid, counts: dict[str, int]) -> None:
    asked = set(after.asked[len(before.asked) :])
    flying = len(asked - after.kept)
    counts["finished_asked_again"] += len(asked & before.kept)
    counts["in_flight"] += flying
    counts["most_in_flight"] = max(counts["most_in_flight"], flying)


def _fork(job: Any, folder: Path) -> int:
    """Start the work in a child; return once it has begun."""
    begun, began = os.pipe()
    child = os.fork()
    if child:
        os.close(began)
        os.read(begun, 1)
        os.close(begun)
        return child
    status = 1
    try:
        os.write(began, b"!")
        job.work(folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _wait(child: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise RuntimeError(f"The work ended with status {status}.")


if __name__ == "__main__":
    print(json.dumps(killed(*map(int, sys.argv[1:]))))
