"""Figures in the documentation, drawn from the result files."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks import environment

_STYLE = {"svg.hashsalt": "benchmarks", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
_TICKS = (50, 200, 500, 2_000, 5_000)  # pairs


def refresh() -> None:
    """Draw every figure whose results are there."""
    for name, draw in {"power": _power, "curves": _curves}.items():
        if environment.exists(name):
            _draw(name, draw)


def _draw(name: str, draw: Any) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        figure = draw(pyplot, environment.load(name))
        figure.tight_layout()
        # No date, so that the same results give the same file.
        figure.savefig(environment.RESULTS / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _power(pyplot: Any, found: dict[str, Any]) -> Any:
    """Share of runs whose verdict is to ship, against the number of pairs."""
    figure, axes = pyplot.subplots(figsize=(5.5, 3.2))
    curves: dict[str, list[tuple[int, float]]] = {}
    for key, runs in found["runs"].items():
        name, pairs = key.split(", ")
        curves.setdefault(name, []).append((int(pairs), mean(run["ship"] for run in runs)))
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="training pairs", ylabel="share of “ship”")
    axes.legend(frameon=False)
    return figure


def _curves(pyplot: Any, found: dict[str, Any]) -> Any:
    """Gain on the test set against the number of pairs, one panel a set."""
    sets = found["sets"]
    every = (runs for sizes in sets.values() for runs in sizes.values())
    methods = list(dict.fromkeys(method for runs in every for method in runs))
    figure, panels = pyplot.subplots(1, len(sets), figsize=(3.1 * len(sets), 3.0), squeeze=False)
    for panel, (name, sizes) in zip(panels[0], sets.items(), strict=True):
        for method in methods:  # also those that are not there, for the same colours everywhere
            pairs = sorted((size for size in sizes if method in sizes[size]), key=int)
            gains = [sizes[size][method]["all"]["difference"] for size in pairs]
            panel.plot(list(map(int, pairs)), gains, marker="o", markersize=3, label=method)
        panel.axhline(0.0, color="black", linewidth=0.8)
        panel.set(xscale="log", title=name, xlabel="training pairs")
        ticks = [tick for tick in _TICKS if tick <= max(map(int, sizes))]
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.minorticks_off()
    panels[0][0].set_ylabel("change in NDCG@10")
    panels[0][-1].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
