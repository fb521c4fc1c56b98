"""Many callers at once; `python -m benchmarks soak` has a hundred times as many queries."""

from pathlib import Path

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
