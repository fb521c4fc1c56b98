"""``python -m benchmarks``: measure, write ``benchmarks/results/``, refresh the tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import environment, sets
from benchmarks.cost import against_old, load, scale, serving, speed, throughput, words
from benchmarks.pages import figures, tables
from benchmarks.quality import (
    clicks,
    composed,
    curves,
    methods,
    package_sets,
    parts,
    peers,
    questions,
    trust,
    upgrade,
    views,
    watching,
)
from benchmarks.robustness import frozen, fuzz, kills, soak


def _saved(name: str, results: dict[str, object]) -> None:
    environment.save(name, f"python -m benchmarks {name}", results)


def _upgrade(given: argparse.Namespace) -> None:
    if given.mpnet is None:
        raise SystemExit("upgrade needs --mpnet")
    upgrade.run(given.data, given.cache, given.mpnet, given.sets)


def _questions(given: argparse.Namespace) -> None:
    names = [name for name in questions.LABELS if name in given.sets]
    seeds = range(given.first, given.first + given.seeds)
    asked = (given.most, given.examples, seeds, given.weights)
    questions.run(given.load, given.cache, names, *asked)


PARTS: dict[str, Callable[[argparse.Namespace], object]] = {
    "methods": lambda g: methods.run(g.load, g.cache, g.sets, tuple(g.variants), g.seeds),
    "peers": lambda g: peers.run(g.load, g.cache, g.sets, tuple(g.peers), g.seeds),
    "calibration": lambda g: trust.calibrate(g.data, g.cache, g.runs or 200),
    "power": lambda g: trust.power(g.data, g.cache, g.sets, g.runs or 50),
    "clicks": lambda g: clicks.run(g.data, g.cache),
    "nulls": lambda g: trust.nulls(g.data, g.cache, g.runs or 500),
    "parts": lambda g: _saved("parts", {"queries": parts.run()}),
    "curves": lambda g: curves.run(g.data, g.cache, g.sets),
    "speed": lambda g: speed.run(g.data, g.cache, g.mpnet),
    "old": lambda g: _saved("old", against_old.run(g.data)),
    "serving": lambda g: _saved("serving", serving.run()),
    "load": lambda g: _saved("load", load.run(g.runs or 4800)),
    "questions": _questions,
    "throughput": lambda g: _saved("throughput", throughput.run()),
    "composed": lambda g: composed.run(g.data, g.cache, g.black_box, g.sets, g.epochs),
    "upgrade": _upgrade,
    "views": lambda g: views.run(g.load, g.cache, g.sets, g.seeds),
    "words": lambda g: _saved("words", words.run(g.data, g.cache)),
    "watching": lambda g: _saved("watching", {"rows": watching.run(g.data, g.cache)}),
    "frozen": lambda g: frozen.run(g.data, g.cache),
    "kills": lambda g: _saved("kills", kills.run(g.runs or 60)),
    "fuzz": lambda g: _saved("fuzz", fuzz.run(g.runs or 1000)),
    "soak": lambda g: _saved("soak", soak.run(g.runs or 200_000)),
    "scale": lambda g: scale.run(g.data, g.cache),
}

#: Of --runs, by command.
RUNS = "calibration 200, power 50 per size, kills 60, load 4800, fuzz 1000 per format, soak 200,000"


def main() -> None:
    variants = list(methods.VARIANTS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*PARTS, "tables", "all"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="BEIR folders")
    parser.add_argument("--cache", type=Path, default=Path("out/bench-cache"))
    every = [*sets.NAMES, *package_sets.SETS]
    parser.add_argument("--sets", nargs="+", choices=every, help="all that are at hand")
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--black-box", type=Path, help="folder of a frozen model; MiniLM without")
    parser.add_argument("--epochs", type=int, default=6, help="of composed, at most")
    parser.add_argument("--runs", type=int, help=RUNS)
    parser.add_argument("--mpnet", type=Path, help="folder of all-mpnet-base-v2")
    parser.add_argument("--packages", type=Path, help="folder of packages that sets are made of")
    parser.add_argument("--most", type=int, default=400, help="passages it is asked about")
    parser.add_argument("--examples", type=int, default=8, help="that it is shown")
    parser.add_argument("--weights", type=Path, help="of another Llama that writes, a GGUF file")
    parser.add_argument("--first", type=int, default=0, help="seed of questions")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each training")
    given = parser.parse_args()
    given.sets = tuple(given.sets or (every if given.packages else sets.NAMES))
    given.load = partial(sets.load, given.data, packages=given.packages)
    for part in _asked(given):
        PARTS[part](given)
    figures.refresh()  # first, as tables link to them
    tables.refresh()


def _asked(given: argparse.Namespace) -> list[str]:
    """Return which parts to run; of "all", those for which everything is there."""
    if given.what != "all":
        return [] if given.what == "tables" else [given.what]
    return [part for part in PARTS if part != "upgrade" or given.mpnet is not None]


if __name__ == "__main__":
    main()
