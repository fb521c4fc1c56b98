"""Tables of quality: what each method gains, where it can be proven, what questions are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from statistics import mean, stdev
from typing import Any

from benchmarks import environment
from benchmarks.pages.markdown import interval, table
from benchmarks.quality.trust import HARM

Runs = list[dict[str, Any]]  # of one method on one set, by seed

_METRICS = ("hit_rate@5", "mrr@10", "ndcg@10")
_VIEWS = {
    "BM25 alone": "words alone",
    "LlamaIndex's rank fusion": "rank fusion",
    "words": "words",
    "prior": "prior",
    "words and prior": "both, no label",
    "with the adapter": "all, no label",
    "two weights on dev": "both, dev",
}
_USUAL = {"BM25": "words alone", "LlamaIndex's rank fusion": "rank fusion"}
_OURS = {
    "ours, no labels": "all, no label", "ours, one vector": "auto",
    "ours, with words": "auto + views",
}  # fmt: skip
_VARIANTS = ("linear", "auto, query", "auto, both")


def front_table() -> str:
    """What a user would switch on instead, the best peer, and ours, on every set."""
    peers = environment.load("peers")["sets"]
    rows = []
    for name, found in environment.load("views")["sets"].items():
        others = peers.get(name, {})
        best = max(others, key=lambda peer: mean(_gains(others[peer])), default=None)
        shown = "–" if best is None else f"{_relative(others[best])} ({best.split(',')[0]})"
        rank, *ours = (
            _relative(_runs_of(found, view)) for view in ("rank fusion", *_OURS.values())
        )
        rows.append((name, f"{found['views']['base']['ndcg@10']:.4f}", rank, shown, *ours))
    return table(
        " | ".join(["data set | base | LlamaIndex's rank fusion | best peer", *_OURS]), rows
    )


def peers_table() -> str:
    """Every peer and ours, on every set; the last column counts sets with a proven loss."""
    views, peers = environment.load("views")["sets"], environment.load("peers")["sets"]
    starts = [next(iter(found.values()))[0]["tests"]["test"]["all"] for found in peers.values()]
    bases = (f"{start['base']['ndcg@10']:.4f}" for start in starts)
    rows: list[tuple[Any, ...]] = [("base model, NDCG@10", *bases, "")]
    usual, ours = (
        {
            label: [_runs_of(views.get(name, {}), view) for name in peers]
            for label, view in of.items()
        }
        for of in (_USUAL, _OURS)
    )
    names = dict.fromkeys(peer for found in peers.values() for peer in found)
    others = {peer: [found.get(peer, []) for found in peers.values()] for peer in names}
    for label, runs in {**usual, **others, **ours}.items():
        cells = [_relative(each, spread=True) + "*" * _loses(each) for each in runs]
        rows.append((label, *cells, sum(map(_loses, runs))))
    return table(" | ".join(["method", *peers, "below base"]), rows)


def _runs_of(found: dict[str, Any], view: str) -> Runs:
    """Return what a view found on a set, by seed, as runs of peers are kept."""
    seeds = [found.get("views", {}), *found.get("seeds", {}).values()]
    each = [{"adapted": rows[view], **rows[view]} for rows in seeds if view in rows]
    return [{"tests": {"test": {"all": {"base": seeds[0]["base"], **one}}}} for one in each]


def _loses(runs: Runs) -> bool:
    """Whether the intervals of most seeds lie below zero."""
    below = [run["tests"]["test"]["all"]["interval"][1] < 0 for run in runs]
    return sum(below) > len(below) / 2


def targets_table() -> str:
    """What one matrix gains and what ``"auto"`` does, by kinds of documents with the query side."""
    rows = []
    for name, found in environment.load("methods")["sets"].items():
        tests = [run["tests"]["test"] for run in found["auto, query"]]
        gains = (_relative(found.get(variant, []), spread=True) for variant in _VARIANTS)
        rows.append((name, *gains, gain(tests, "known"), gain(tests, "new")))
    return table(" | ".join(["data set", *_VARIANTS, "known, query", "new, query"]), rows)


def calibration_table() -> str:
    """How often the verdict is "ship" where there is nothing to learn."""
    return table(
        "vectors | relevance | runs | ship | harm",
        [
            (*key.split(", "), len(runs), *_shipped(runs))
            for key, runs in environment.load("calibration")["runs"].items()
        ],
    )


def _shipped(runs: Runs) -> tuple[int, int]:
    """Return how many runs would ship, and how many of those do harm."""
    shipped = [run for run in runs if run["ship"]]
    return len(shipped), sum(run["gain"] < -HARM * run["base"] for run in shipped)


def nulls_table() -> str:
    """How often single methods would ship where there is nothing to learn."""
    runs = environment.load("nulls")["runs"].items()
    return table(
        "method | relevance | pairs | runs | ship | do not ship | open",
        [
            (*key.removesuffix(" pairs").split(", "), sum(found.values()), found.get("ship", 0),
             sum(found.get(name, 0) for name in ("do_not_ship", "keep_base", "saturated")),
             sum(found.get(name, 0) for name in ("promising", "inconclusive")))
            for key, found in runs
        ],
    )  # fmt: skip


def clicks_table() -> str:
    """What labels from simulated clicks are worth."""
    rows = []
    for name, found in environment.load("clicks")["sets"].items():
        rows.append((name, "none (base model)", "", "", "", f"{found['base']:.4f}"))
        rows += [
            (name, labels, f"{own['queries']:,}", f"{own['pairs']:,}", f"{own['right']:.0%}",
             f"{own['ndcg@10']:.4f}")
            for labels, own in found.items() if labels != "base"
        ]  # fmt: skip
    return table("data set | labels | queries | pairs | of them right | NDCG@10 on test", rows)


def power_table() -> str:
    """How often the verdict is "ship" where there is something to learn."""
    rows = []
    for key, runs in environment.load("power")["runs"].items():
        name, pairs = key.split(", ")
        shipped, harm = _shipped(runs)
        announced, found = (mean(run[field] for run in runs) for field in ("announced", "gain"))
        rows.append(
            (name, f"{int(pairs):,}", len(runs), f"{announced:.4f}", f"{found:+.4f}",
             f"{shipped / len(runs):.0%}", harm)
        )  # fmt: skip
    return table(
        "data set | pairs | runs | announced as provable | mean gain of the candidate on test | "
        "ship | harm",
        rows,
    )


def composed_table() -> str:
    """Every model on the test queries, and its gain in hit rate over the black box."""
    shown = []
    for name, found in environment.load("composed")["sets"].items():
        counts, searched = found["queries"], f"{found['documents searched']:,}"
        if found.get("documents in all", 0) > found["documents searched"]:
            searched += f" of {found['documents in all']:,}"
        head = (
            f"{name}: {counts['train']:,} training, {counts['dev']:,} dev, {counts['test']:,} test "
            f"queries, {searched} documents | hit rate@5 | MRR@10 | NDCG@10 | "
            "hit rate@5 over the black box | 95 % interval"
        )
        rows = []
        for model, scores in found["models"].items():
            over = scores["against the black box"]["hit_rate@5"]
            more = (f"{over['mean']:+.4f}", interval(*over["interval"]))
            values = (f"{scores[metric]:.4f}" for metric in _METRICS)
            rows.append((model, *values, *(("–", "–") if model == "black box" else more)))
        shown.append(table(head, rows))
    return "\n\n".join(shown)


def _written(*, alike: bool) -> Iterator[tuple[tuple[Any, ...], Runs]]:
    """Yield set, writer, examples and passages, and the rows of the seeds of that.

    ``alike``: as the writer asks by itself, eight examples and many passages; else by 100 passages.
    """
    named = itemgetter("model", "examples", "passages")
    for name, rows in environment.load("questions").items():
        if name not in ("command", "environment"):
            for (model, examples, passages), runs in groupby(rows, named):
                if alike == (passages > 100 or "SmolLM2" not in model):
                    yield (name, model.split("-")[0], examples, passages), list(runs)


def questions_table() -> str:
    """What was kept of what was written, why the rest was not, and what a retriever gains."""
    rows = []
    for (name, writer, _, passages), runs in _written(alike=True):
        dropped = sum((Counter(run["dropped"]) for run in runs), Counter())
        reasons = (f"{reason.replace('_', ' ')} {n}" for reason, n in dropped.most_common())
        found = (f"{mean(run[each] for run in runs):.0%}" for each in ("first", "in top 20"))
        counts = (sum(run[each] for run in runs) for each in ("written", "kept"))
        gain = _over_base([run["gains"][_GAINS[-1]] for run in runs], runs[0]["ndcg@10"])
        rows.append((name, writer, passages, len(runs), *counts, *found, gain, ", ".join(reasons)))
    return table(f"{_WRITTEN} | written | kept | first | in the top 20 | gain | dropped", rows)


def synthetic_table() -> str:
    """What the questions are good for: gains on queries that people wrote, in percent."""
    rows = []
    for (name, writer, _, passages), runs in _written(alike=True):
        if writer != "SmolLM2":
            continue
        base = runs[0]["ndcg@10"]
        cells = (_over_base([run["gains"][view] for run in runs], base) for view in _GAINS)
        rows.append((name, writer, passages, len(runs), f"{base:.4f}", *cells))
    return table(" | ".join([_WRITTEN, "base", *_GAINS]), rows)


def examples_table() -> str:
    """What examples are worth: kept of 100 questions, and the gains of a map and of all views."""
    counts = (0, 3, 8, 20)
    found: dict[str, dict[int, str]] = {}
    for (name, _, examples, _), (run, *_) in _written(alike=False):
        views = "linear", "auto, words, prior"
        gains = (run["gains"][view][0] / run["ndcg@10"] for view in views)
        found.setdefault(name, {})[examples] = " ".join(
            [f"{run['kept']}:", *(f"{gain:+.1%}" for gain in gains)]
        )
    rows = [(name, *(cells.get(count, "–") for count in counts)) for name, cells in found.items()]
    return table(" | ".join(["set", *(f"{count} examples" for count in counts)]), rows)


def _over_base(gains: list[list[float]], base: float) -> str:
    """Return the mean gain of several seeds, and the mean interval: as if all erred alike."""
    found, low, high = (mean(each) / base for each in zip(*gains, strict=True))
    return f"{found:+.1%} [{low:+.1%}, {high:+.1%}]"


_WRITTEN = "set | writer | passages | seeds"
_GAINS = (
    "linear", "auto", "base, prior", "base, words", "base, words, prior", "retriever",
)  # fmt: skip


def upgrade_table() -> str:
    """New queries over the old index, beside the old model and a real re-embedding."""
    rows = []
    for name, part in environment.load("upgrade")["sets"].items():
        for run in part["runs"]:
            models = [v for n, v in run.items() if "model" in n and isinstance(v, dict)]
            rows.append(
                (name, run["old"].split("-")[1], run["new"].split("-")[1], part["documents"],
                 f"{run['agreement']:.0%} ({run['chance']:.0%})",
                 *(f"{v['ndcg@10']:.4f}" for v in models), f"{run['kept']['ndcg@10']:.1%}",
                 interval(*run["against re-embedding"][1:]))
            )  # fmt: skip
    return table(
        "data set | index | queries | texts | agreement (chance) | old model | through the map "
        "| re-embedded | kept | lost, 95 % interval",
        rows,
    )


def watching_table() -> str:
    """Alarms on queries like those of training, on test queries, and on those of other sets."""
    rows = []
    found = environment.load("watching")["rows"]
    for name in dict.fromkeys(row["trained on"] for row in found):
        mine = {row["live"]: row for row in found if row["trained on"] == name}
        cells = [cell for kind in ("the same", "test") for cell in _far(mine.pop(kind))]
        shares = [row["far_share"] for row in mine.values()]
        alarms = f"{sum(row['retrain'] for row in mine.values())} of {len(mine)}"
        rows.append((name, *cells, f"{min(shares):.0%} to {max(shares):.0%}", alarms))
    return table(
        "trained on | the same: far | alarm | test: far | alarm | other sets: far | alarms", rows
    )


def _far(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['far_share']:.1%}", "yes" if row["retrain"] else "no"


def views_table() -> str:
    """What words and a document prior add to the base model, with no map trained."""
    rows = []
    for name, found in environment.load("views")["sets"].items():
        base = found["views"]["base"]["ndcg@10"]
        cells = (_of_base(base, found["views"][view]) for view in _VIEWS.values())
        rows.append((name, f"{base:.4f}", *cells))
    return table(" | ".join(["data set", "base", *_VIEWS]), rows)


def _of_base(base: float, view: dict[str, Any]) -> str:
    """Return a gain relative to the base model, with its 95 % interval."""
    low, high = (f"{bound / base:+.0%}" for bound in view["interval"])
    return f"{view['ndcg@10'] / base - 1:+.1%} [{low}, {high}]"


def gain(runs: list[Any], part: str) -> str:
    """Return the mean scores of the base model and the adapted one, as text."""
    if part not in runs[0]:
        return "–"
    base, adapted = (mean(r[part][m]["ndcg@10"] for r in runs) for m in ("base", "adapted"))
    return f"{base:.4f} → {adapted:.4f}"


def _relative(runs: Runs, *, spread: bool = False) -> str:
    """Return the mean over seeds, and with several their standard deviation where it fits."""
    gains = _gains(runs)
    if not gains:
        return "–"
    shown = f"{mean(gains):+.1%}"
    return f"{shown} ± {100 * stdev(gains):.1f}" if spread and len(gains) > 1 else shown


def _gains(runs: Runs) -> list[float]:
    """Return the gain of each seed in NDCG@10, relative to the base model."""
    wholes = [run["tests"]["test"]["all"] for run in runs]
    return [one["adapted"]["ndcg@10"] / one["base"]["ndcg@10"] - 1 for one in wholes]
