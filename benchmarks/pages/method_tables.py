"""Tables of methods: what each gains, where it can be proven, what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

from benchmarks import environment, sets
from benchmarks.quality import methods
from benchmarks.quality.trust import HARM

Runs = list[dict[str, Any]]  # of one method on one set, by seed; peers draw nothing and have one

_SHORT = 120  # characters of the recipes of several seeds that a table can take


def methods_table() -> str:
    """Gain in NDCG@10 over the base model on every test set: peers and ours."""
    found = _methods()
    columns = [c for c in _COLUMNS if any(c in runs for runs in found.values())]
    rows = [
        "| data set | base | " + " | ".join(columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for name, runs in found.items():
        base = runs["auto, query"][0]["tests"]["test"]["all"]["base"]["ndcg@10"]
        gains = [_relative(runs.get(column, [])) for column in columns]
        rows.append(f"| {name} | {base:.4f} | " + " | ".join(gains) + " |")
    return "\n".join(rows)


def _methods() -> dict[str, dict[str, Runs]]:
    """Set → method → runs, the peers first."""
    ours, peers = (environment.load(name)["sets"] for name in ("methods", "peers"))
    return {
        name: {
            **{peer: [run] for peer, run in peers.get(name, {}).items()},
            **{variant: methods.rows(found) for variant, found in ours[name].items()},
        }
        for name in sets.NAMES
        if name in ours
    }


def parts_table() -> str:
    """Every method on every test file: known and new documents, what was chosen, seconds."""
    rows = [
        "| data set | test file | method | all | known documents | new documents | chosen "
        "| seconds |",
        "|---|---|---|---|---|---|---|---:|",
    ]
    for name, found in _methods().items():
        for method, runs in found.items():
            last = f"{_chosen(runs)} | {_seconds(runs):.0f}"
            for split in runs[0]["tests"]:
                tests = [run["tests"][split] for run in runs]
                shown = " | ".join(gain(tests, part) for part in ("all", "known", "new"))
                rows.append(f"| {name} | {split} | {method} | {shown} | {last} |")
    return "\n".join(rows)


def _seconds(runs: Runs) -> float:
    """Return the mean over the runs that name no machine of their own, so were on the file's."""
    return mean(run["seconds"] for run in runs if "machine" not in run)


def _chosen(runs: Runs) -> str:
    """Return what was chosen with every seed, or with the first where that is too long."""
    chosen = list(dict.fromkeys(run.get("recipe") or run["setting"] for run in runs))
    shown = "; ".join(chosen)
    return shown if len(shown) <= _SHORT else chosen[0]


def candidates_table() -> str:
    """What cross-fitting found of the candidates of ``method="auto"``, on known / new documents."""
    found = {name: runs["auto, query"] for name, runs in _methods().items()}
    rows = ["| candidate | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for label, pattern in _CANDIDATES.items():
        cells = [_candidate(runs, re.compile(pattern)) for runs in found.values()]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _candidate(runs: Runs, pattern: re.Pattern[str]) -> str:
    """Return its gains on known / new documents, as means over the seeds that have it."""
    named = [
        [gains for name, gains in run["candidates"].items() if pattern.fullmatch(name)]
        for run in runs
    ]
    last = [matching[-1] for matching in named if matching]
    if not last:
        return "–"
    parts = ([gain for gain in part if gain is not None] for part in zip(*last, strict=True))
    return " / ".join(f"{mean(part):+.3f}" if part else "–" for part in parts)


_PART = r"{}\(epochs=\d+, share={}\)"
_WHOLE = r"{}\(epochs=\d+\)"
_KERNEL = r"kernel\(\w+(\([^()]*\))?, temperature={}, weight={}\)"
_CANDIDATES = {
    "label-free whitening": r"whitening\(.*",
    **{
        f"{method}, {share:.0%} of the way": _PART.format(method, f"{share:g}")
        for method in ("mnr", "linear", "corpus")
        for share in (0.5, 0.75)
    },
    **{method: _WHOLE.format(method) for method in ("mnr", "linear", "corpus")},
    "mean of linear and corpus": rf"mean\({_WHOLE.format('linear')}, .*",
    "kernel on a map, temperature .1, weight 1": _KERNEL.format("0.1", "1"),
    "kernel on a map, temperature .2, weight 1": _KERNEL.format("0.2", "1"),
    "kernel on a map, temperature .4, weight 2": _KERNEL.format("0.4", "2"),
    "gate from base to the best by heart, log odds -4": r"gate\(identity, .*, odds=-4\)",
    "gate from base to the best by heart, log odds 0": r"gate\(identity, .*, odds=0\)",
}

_COLUMNS = (
    "llama-index-finetuning, as shipped",
    "llama-index-finetuning, tuned",
    "NUDGE-M",
    "NUDGE-N",
    "auto, query",
    "auto, query, told",
    "auto, both",
    "auto, both, told",
)


def metrics_table() -> str:
    """Every method on every set: three metrics with intervals, seconds, base calls."""
    rows = [
        "| data set | method | NDCG@10 | MRR@10 | hit rate@5 | seconds | base calls |",
        "|---|---|---|---|---|---:|---:|",
    ]
    for name, found in _methods().items():
        for method, runs in found.items():
            wholes = [run["tests"]["test"]["all"] for run in runs]
            shown = " | ".join(
                _with_interval(wholes, m) for m in ("ndcg@10", "mrr@10", "hit_rate@5")
            )
            calls = runs[0].get("base_calls", "–")
            rows.append(f"| {name} | {method} | {shown} | {_seconds(runs):.0f} | {calls} |")
    return "\n".join(rows)


def _with_interval(wholes: Runs, metric: str) -> str:
    """Return the mean difference over seeds, and the interval of the first."""
    shown = f"{mean(one['adapted'][metric] - one['base'][metric] for one in wholes):+.3f}"
    if "intervals" not in wholes[0]:
        return shown
    low, high = wholes[0]["intervals"][metric]
    return f"{shown} [{low:+.3f}, {high:+.3f}]"


def targets_table() -> str:
    """What ``method="auto"`` gains where it is told what to expect, and where it is not."""
    variants = ("auto, query", "auto, query, told", "auto, both", "auto, both, told")
    rows = [
        "| data set | " + " | ".join(variants) + " | known, not told | new, not told |",
        "|---|" + "---:|" * len(variants) + "---|---|",
    ]
    for name, found in _methods().items():
        gains = " | ".join(_relative(found.get(v, []), spread=True) for v in variants)
        tests = [run["tests"]["test"] for run in found.get("auto, both", found["auto, query"])]
        parts = " | ".join(gain(tests, part) for part in ("known", "new"))
        rows.append(f"| {name} | {gains} | {parts} |")
    return "\n".join(rows)


def alone_table() -> str:
    """Each method alone: mean change in NDCG@10 on known / new documents, and its spread."""
    found = environment.load("alone")["sets"]
    methods = dict.fromkeys(method for runs in found.values() for method in runs)
    rows = ["| method | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for method in methods:
        cells = [_alone(runs.get(method, [])) for runs in found.values()]
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _alone(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "–"
    parts = [[run[part]["difference"] for run in runs if part in run] for part in ("known", "new")]
    shown = " / ".join(f"{mean(part):+.3f}" if part else "–" for part in parts)
    spread = max(stdev(part) if len(part) > 1 else 0.0 for part in parts)
    return f"{shown} ± {spread:.3f}" if len(runs) > 1 else shown


def tried_table() -> str:
    """What was tried on top of the plain maps: known / new documents, in cross-fitting."""
    found = environment.load("tried")["sets"]
    variants = dict.fromkeys(name for run in found.values() for name in run["gains"])
    rows = ["| variant | " + " | ".join(found) + " |", "|---|" + "---|" * len(found)]
    for variant in variants:
        gains = [run["gains"].get(variant, [None, None]) for run in found.values()]
        cells = (
            " / ".join("–" if gain is None else f"{gain:+.3f}" for gain in pair) for pair in gains
        )
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def calibration_table() -> str:
    """How often the verdict is "ship" where there is nothing to learn."""
    rows = [
        "| vectors | relevance | runs | ship | harm |",
        "|---|---|---:|---:|---:|",
    ]
    for key, runs in environment.load("calibration")["runs"].items():
        shipped = [run for run in runs if run["ship"]]
        harm = sum(run["gain"] < -HARM * run["base"] for run in shipped)
        vectors, relevance = key.split(", ")
        rows.append(f"| {vectors} | {relevance} | {len(runs)} | {len(shipped)} | {harm} |")
    return "\n".join(rows)


def power_table() -> str:
    """How often the verdict is "ship" where there is something to learn."""
    rows = [
        "| data set | pairs | runs | announced as provable | mean gain of the candidate on test | "
        "ship | harm |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, runs in environment.load("power")["runs"].items():
        name, pairs = key.split(", ")
        shipped = [run for run in runs if run["ship"]]
        harm = sum(run["gain"] < -HARM * run["base"] for run in shipped)
        rows.append(
            f"| {name} | {int(pairs):,} | {len(runs)} | {mean(r['announced'] for r in runs):.4f} "
            f"| {mean(r['gain'] for r in runs):+.4f} | {len(shipped) / len(runs):.0%} | {harm} |"
        )
    return "\n".join(rows)


def curves_table() -> str:
    """Change in NDCG@10 on test against the number of training pairs, and its figure."""
    found = environment.load("curves")["sets"]
    methods = dict.fromkeys(m for sizes in found.values() for runs in sizes.values() for m in runs)
    rows = ["| data set | pairs | " + " | ".join(methods) + " |"]
    rows.append("|---|---:|" + "---:|" * len(methods))
    for name, sizes in found.items():
        for size, runs in sizes.items():
            cells = [f"{runs[m]['all']['difference']:+.4f}" if m in runs else "–" for m in methods]
            rows.append(f"| {name} | {int(size):,} | " + " | ".join(cells) + " |")
    # Here, as the document is to have no link to a figure that has not been drawn.
    figure = "![Change in NDCG@10 against the number of training pairs](results/curves.svg)"
    return "\n".join([*rows, "", figure])


def unseen_table() -> str:
    """Peers and ours on sets that no choice was made on."""
    found = environment.load("unseen")["sets"]
    methods = [m for m in _COLUMNS if any(m in measured for measured in found.values())]
    rows = [
        "| data set | train queries | test queries, of them new | base | "
        + " | ".join(methods)
        + " | known, both | new, both |",
        "|---|---:|---:|---:|" + "---:|" * len(methods) + "---|---|",
    ]
    for name, measured in found.items():
        ours = measured["auto, both"]
        test = ours["tests"]["test"]
        whole, new = test["all"], test.get("new", {"queries": 0})
        gains = [_relative([measured[m]] if m in measured else []) for m in methods]
        shown = [gain([test], part) for part in ("known", "new")]
        rows.append(
            f"| {name} | {ours['train_queries']:,} | {whole['queries']:,}, {new['queries']:,} "
            f"| {whole['base']['ndcg@10']:.4f} | " + " | ".join([*gains, *shown]) + " |"
        )
    return "\n".join(rows)


def speed_table() -> str:
    """Speed on cached vectors."""
    found = environment.load("speed")
    rows = ["| what | measured |", "|---|---|"]
    for name, run in found["old_loop"].items():
        rows.append(
            f"| {name}: linear fit until dev is as good as the old loop's "
            f"| {run['ours_seconds']:.2f} s (old loop {run['old_seconds']:.1f} s: "
            f"{run['ratio']:.0f} times as long) |"
        )
        rows.append(
            f"| {name}: ridge, dev {run['ridge_dev']:.4f} (old loop {run['old_dev']:.4f}) "
            f"| {run['ridge_seconds']:.3f} s (old loop {run['ridge_ratio']:.0f} times as long) |"
        )
    products = found["products"]
    rows += [
        f"| ridge at 6,000 × 384, {found['ridge_strengths']} strengths "
        f"| {found['ridge_seconds']:.2f} s |",
        f"| listwise nudge, nfcorpus | {found['nudge_nfcorpus_seconds']:.1f} s |",
        *(
            f'| `method="auto"`, {name}, adapts="{adapts}" | {seconds:.0f} s |'
            for name in ("nfcorpus", "nl2bash")
            for adapts, seconds in found[f"auto_{name}_seconds"].items()
        ),
        f"| scoring 1,600 × 10,000 × 384, speed over `torch.mm` "
        f"| {products['share_of_torch_mm']:.0%} |",
    ]
    return "\n".join(rows)


def growth_table() -> str:
    """Seconds and peak memory against pairs and documents."""
    rows = [
        "| work | pairs | documents | seconds | peak memory, vectors included |",
        "|---|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {run['work']} | {run['pairs']:,} | {run['documents']:,} | {run['seconds']:.1f} "
        f"| {run['peak_memory_mib'] / 1024:.1f} GiB |"
        for run in environment.load("growth")["rows"]
    ]
    return "\n".join(rows)


def gain(runs: list[Any], part: str) -> str:
    """Return the mean scores of the base model and the adapted one, as text."""
    if part not in runs[0]:
        return "–"
    base, adapted = (mean(r[part][m]["ndcg@10"] for r in runs) for m in ("base", "adapted"))
    return f"{base:.4f} → {adapted:.4f}"


def _relative(runs: Runs, *, spread: bool = False) -> str:
    """Return the mean over seeds, and with several their standard deviation where it fits."""
    if not runs:
        return "–"
    wholes = [run["tests"]["test"]["all"] for run in runs]
    gains = [one["adapted"]["ndcg@10"] / one["base"]["ndcg@10"] - 1 for one in wholes]
    shown = f"{mean(gains):+.1%}"
    return f"{shown} ± {100 * stdev(gains):.1f}" if spread and len(gains) > 1 else shown


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "parts": parts_table,
    "candidates": candidates_table,
    "metrics": metrics_table,
    "targets": targets_table,
    "alone": alone_table,
    "tried": tried_table,
    "calibration": calibration_table,
    "power": power_table,
    "curves": curves_table,
    "unseen": unseen_table,
    "speed": speed_table,
    "growth": growth_table,
}
