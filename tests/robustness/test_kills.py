"""``kill -9`` during every kind of work; `python -m benchmarks kills` does more of it."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import in_a_process
from benchmarks.robustness.kill_jobs import JOBS, Paid

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the work that is killed")

#: One process for all, which has loaded torch and stores before it forks.
WORK = """
import json, os
from benchmarks.robustness import kills
from tests.robustness.test_kills import Careless
found = kills.killed(2, int.from_bytes(os.urandom(3), "big"))
found["jobs"]["careless"] = kills.experiment(Careless(), 6)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return in_a_process("-c", WORK)


@pytest.mark.parametrize("job", JOBS)
def test_a_kill_leaves_old_or_new_and_the_next_run_ends_as_if_there_had_been_none(found, job):
    counts, seed = found["jobs"][job], found["seed"]
    assert counts["kills"] == 2
    assert counts["broken"] == 0, seed
    assert counts["other_results"] == 0, seed
    assert counts["finished_asked_again"] == 0, seed
    assert counts["most_in_flight"] <= counts["in_flight_allowed"], seed


class Careless:
    """Writes in place, asks for everything again, and ends where it happens to."""

    most_in_flight = 0

    def prepare(self, folder: Path) -> None:
        (folder / "file").write_text("old")

    def work(self, folder: Path) -> None:
        with (folder / "asked").open("a") as asked, (folder / "file").open("w") as stream:
            for number in range(400):
                print("text", file=asked, flush=True)
                print(number, file=stream, flush=True)
                os.sched_yield()
            print(os.getpid(), "end", file=stream)

    def check(self, folder: Path) -> None:
        content = (folder / "file").read_text()
        assert content == "old" or content.endswith("end\n")

    def result(self, folder: Path) -> object:
        return (folder / "file").read_text()

    def paid(self, folder: Path) -> Paid:
        asked = folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        return Paid(lines, {"text"} if lines else set())


def test_careless_work_is_seen_through(found):
    counts = found["jobs"]["careless"]
    assert counts["kills"] == 6
    assert counts["broken"] > 0
    assert counts["other_results"] > 0
    assert counts["finished_asked_again"] > 0
