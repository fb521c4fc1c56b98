import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment
from benchmarks.pages import method_tables, tables
from benchmarks.quality import methods

ADDS = """
import sys
from pathlib import Path
from benchmarks import environment
environment.RESULTS = Path(sys.argv[1])
environment.describe = dict
for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    row = {"seed": seed}
    environment.add("some", "command", ("rows",), row, by=("seed",))
"""


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(environment, "RESULTS", tmp_path)
    return tmp_path


def run(seed: int, adapted: float) -> dict[str, Any]:
    scores = {"ndcg@10": adapted, "mrr@10": adapted, "hit_rate@5": adapted}
    intervals = {metric: [seed / 10, 0.5] for metric in scores}
    whole = {"base": dict.fromkeys(scores, 0.5), "adapted": scores, "intervals": intervals}
    row = {"seed": seed, "version": "abc", "recipe": "linear", "seconds": 10.0 + seed}
    return {**row, "base_calls": seed, "tests": {"test": {"all": whole, "known": whole}}}


def keep(found: Any) -> None:
    environment.save("methods", "command", {"sets": {"scifact": {"auto, query": found}}})


def test_two_processes_add_to_one_file(results):
    command = [sys.executable, "-c", ADDS, str(results)]
    started = [subprocess.Popen([*command, first]) for first in ("0", "20")]
    assert [one.wait(timeout=120) for one in started] == [0, 0]
    found = environment.load("some")
    assert [row["seed"] for row in found["rows"]] == list(range(40))
    assert found["command"] == "command"
    assert [path.name for path in results.iterdir()] == ["some.json"]


def test_what_fails_while_it_changes_a_file_leaves_it_as_it_was(results):
    environment.save("some", "command", {"rows": [1]})
    before = (results / "some.json").read_text(encoding="utf-8")
    with pytest.raises(KeyError):
        environment.update("some", "other", lambda found: found["missing"])
    assert (results / "some.json").read_text(encoding="utf-8") == before


def test_a_run_replaces_that_of_its_seed():
    for seed, adapted in ((2, 0.7), (1, 0.8), (1, 0.9)):
        keys = ("sets", "scifact", "auto, query")
        environment.add("methods", "command", keys, run(seed, adapted), by=("seed",))
    rows = environment.found("methods", "sets", "scifact", "auto, query")
    assert [row["seed"] for row in rows] == [1, 2]
    assert rows[0]["tests"]["test"]["all"]["adapted"]["ndcg@10"] == 0.9
    assert methods._there("scifact", "auto, query", 2, "abc")
    assert not methods._there("scifact", "auto, query", 2, "def")
    assert not methods._there("scifact", "auto, both", 0, "abc")


def test_tables_have_means_over_seeds_with_a_spread_or_say_that_there_are_none():
    block = "<!-- results: targets -->\n{}\n<!-- end -->"
    assert tables.refreshed(block.format("old")) == block.format("Not measured yet.")
    keep([run(0, 0.6)])
    assert "| scifact | – | +20.0% |" in method_tables.targets_table()
    keep([run(0, 0.6), run(1, 0.62)])
    assert "| scifact | – | +22.0% ± 2.8 |" in method_tables.targets_table()


def test_peers_have_means_and_a_star_where_most_seeds_lose():
    good, bad = run(0, 0.6), run(1, 0.4)
    bad["tests"]["test"]["all"]["interval"] = [-0.2, -0.1]
    good["tests"]["test"]["all"]["interval"] = [0.1, 0.2]
    peers = {"wins": [good], "loses": [bad], "draws": [good, bad]}
    environment.save("peers", "command", {"sets": {"scifact": peers}})
    views = {"base": {"ndcg@10": 0.5}, "auto": {"ndcg@10": 0.7, "interval": [0.1, 0.3]}}
    environment.save("views", "command", {"sets": {"scifact": {"views": views}}})
    shown = method_tables.peers_table()
    for row in ("wins | +20.0% | 0", "loses | -20.0%* | 1", "draws | +0.0% ± 28.3 | 0",
                "ours, one vector | +40.0% | 0", "BM25 | – | 0"):  # fmt: skip
        assert f"| {row} |" in shown
    shown = method_tables.front_table()
    assert "| scifact | 0.5000 | – | +20.0% (wins) | – | +40.0% | – |" in shown
