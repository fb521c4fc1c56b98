"""Many callers at once; `python -m benchmarks soak` has a hundred times as many queries."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import soak


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_two_thousand_queries_at_once_are_answered_like_single_ones():
    found = soak.soak(2000, parts=4)
    assert found["served"] == 2000
    assert found["errors"] == found["wrong"] == 0, found
    assert found["swaps"] > 0
    assert sum(found["by_version"]) == 2000
    assert found["growth"] < 0.05


def test_wrong_vectors_and_errors_are_counted(monkeypatch):
    load, calls = soak.Load(threads=2, coroutines=2), []

    def answer(self: Any, query: str) -> list[float]:
        calls.append(query)
        if len(calls) % 10 == 0:
            raise RuntimeError("no")
        return soak._table()[soak.TEXTS[0]]

    monkeypatch.setattr(soak.TableEmbedding, "_get_query_embedding", answer)
    load.run(100)
    assert load.counts["errors"] == load.errors["RuntimeError: no"] == 5
    assert load.counts["wrong"] > 30
    assert load.counts["served"] == 95
