"""Figures, drawn with matplotlib (extra ``plot``) and written to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_index_embeddings_adapted.errors import need
from llama_index_embeddings_adapted.significance import Interval

_COLOURS = ("#8a94a6", "#2f6fde", "#e08a1e", "#3c9d5b", "#9b59b6", "#c0392b")


def plot_bars(
    models: Mapping[str, Mapping[str, Interval]], path: str | Path, *, title: str = ""
) -> Path:
    """Draw one group of bars per metric, one bar with its interval per model.

    Args:
        models: Model name → metric → mean and interval, in [0, 1].
        path: Where to write; the suffix chooses the format.
        title: Above the figure.

    Returns:
        The path written.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure_module = need("matplotlib.figure", extra="plot")
    metrics = list(next(iter(models.values())))
    width = 0.8 / len(models)
    figure = figure_module.Figure(figsize=(2.6 + 1.9 * len(metrics), 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(models.items()):
        places = [index + (number - (len(models) - 1) / 2) * width for index in range(len(metrics))]
        means = [values[metric][0] for metric in metrics]
        bars = axes.bar(
            places,
            means,
            width * 0.92,
            yerr=_error_bars([values[metric] for metric in metrics]),
            label=name,
            color=_COLOURS[number % len(_COLOURS)],
            ecolor="#333333",
            capsize=3,
        )
        axes.bar_label(bars, labels=[f"{mean:.3f}" for mean in means], padding=3, fontsize=8)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_ylim(0, min(1.08, 1.2 * max(v[2] for m in models.values() for v in m.values()) + 0.02))
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    return target


def _error_bars(values: Sequence[Interval]) -> list[list[float]]:
    return [
        [max(0.0, mean - low) for mean, low, _ in values],
        [max(0.0, high - mean) for mean, _, high in values],
    ]
