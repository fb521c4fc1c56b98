"""Damaged and hostile input for every format: refused with an error of ours, or read."""

from __future__ import annotations

import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings

from benchmarks.robustness import mutations
from benchmarks.robustness.formats import ANSWERS, FORMATS, Format
from benchmarks.robustness.mutations import Tree
from benchmarks.robustness.watched import outcome
from llama_index_embeddings_adapted.questions.answers import read_questions

ANSWER = "answer of an LLM"
_CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
QUIET = settings(deadline=None, database=None, suppress_health_check=_CHECKS)


def run(inputs: int = 1000) -> dict[str, Any]:
    """Feed so many inputs to every format; count what came of them."""
    return {"formats": {name: fed(name, inputs) for name in (*FORMATS, ANSWER)}}


def fed(name: str, inputs: int) -> dict[str, Any]:
    """Feed one format until it has had all inputs or one of them breaks it."""
    counts: Counter[str] = Counter()
    anything_else = ""
    try:
        checked(name, counts, inputs)()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        traceback.print_exc()
        anything_else = f"{type(error).__name__}: {error}"[:200]
    found = {"inputs": counts.total(), "valid": counts["valid"], "refused": counts["refused"]}
    return {**found, "anything_else": anything_else}


def checked(name: str, counts: Counter[str], inputs: int) -> Callable[[], None]:
    """Return a hypothesis test of one format that counts its outcomes."""
    inputs_of, judge = mutations.damaged_text(ANSWERS), answered
    if name in FORMATS:
        inputs_of, judge = mutations.damaged(FORMATS[name].trees), partial(survived, FORMATS[name])

    @settings(QUIET, max_examples=inputs)
    @given(inputs_of)
    def check(damaged: Tree | str) -> None:
        counts[judge(damaged)] += 1

    return hypothesis.seed(0)(check)


def survived(form: Format, tree: Tree) -> str:
    """Read a damaged folder; nothing beside it may change."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "given"
        place.mkdir()
        mutations.write(tree, place)
        (Path(name) / "outside").write_text("untouched")
        found = outcome(lambda: form.read(place), place)
        beside = {path.name: path.is_file() and path.read_text() for path in Path(name).iterdir()}
        assert beside == {"given": False, "outside": "untouched"}, beside
    return found


def answered(answer: str) -> str:
    """Read the questions of an answer: each is one clean line."""
    found: list[str] = []
    outcome(lambda: found.extend(read_questions(answer, limit=5)), Path("/nowhere"))
    assert len(found) <= 5
    assert all(line and "\n" not in line for line in found), found
    return "valid" if found else "refused"
