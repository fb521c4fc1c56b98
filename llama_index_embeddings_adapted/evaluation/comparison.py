"""Models side by side: tables, a figure, a page, and whether the difference is more than chance."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import EmbeddingQAFinetuneDataset, answered, data_statistics
from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir
from ..errors import OptionError, check_choice, require_extra
from .page import Texts, write_page
from .retrieval import DEFAULT_KS, RetrievalScores, Retrieving, evaluate_retrieval
from .verdict import METRIC, Difference, compared, mean_interval

_COLOURS = ("#8a94a6", "#2f6fde", "#e08a1e", "#3c9d5b", "#9b59b6", "#c0392b")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scores of several models on the same queries; ``comparison["base"]`` is one of them.

    Args:
        scores: Model name → scores.
        texts: Of the queries and documents, for :meth:`to_html`; None shows none.
        data: Numbers about the dataset, see :func:`data_statistics`.
        trained: Model name → what is known of its training, as ``FinetuneReport.to_dict()``.
    """

    scores: Mapping[str, RetrievalScores]
    texts: Texts | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> RetrievalScores:
        if name not in self.scores:
            raise OptionError(f"No model {name!r} here; models are {', '.join(self.scores)}.")
        return self.scores[name]

    def significance(
        self, base: str, adapted: str, *, metric: str = METRIC, seed: int = 0
    ) -> Difference:
        """Compare two models by name, query by query: interval, p-value and verdict.

        ``adapted`` should be better, by a ``metric`` such as ``"hit_rate@5"``; ``seed`` is that of
        the resampling.
        """
        return compared(self[base], self[adapted], metric=metric, seed=seed)

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """Return a table with a row per model, best value of each column in bold."""
        columns, values = self._means(metrics)
        best = [max(column) for column in zip(*values.values(), strict=True)]
        lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in values.items():
            cells = zip(row, best, strict=True)
            shown = [f"**{one:.4f}**" if one == top else f"{one:.4f}" for one, top in cells]
            lines.append(f"| {name} | {' | '.join(shown)} |")
        return "\n".join(lines)

    def to_dataframe(self, metrics: Sequence[str] | None = None) -> Any:
        """Return a pandas data frame, models by metrics; without pandas, a MissingExtraError."""
        pandas = require_extra("pandas", extra="pandas")
        columns, rows = self._means(metrics)
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)

    def plot(
        self, path: str | Path, metrics: Sequence[str] = ("hit_rate@5", "mrr@10"), title: str = ""
    ) -> Path:
        """Draw bars with 95 % intervals per metric, in the suffix's format; needs matplotlib."""
        metrics = self._asked(metrics)
        axes, width = _axes(2.6 + 1.9 * len(metrics)), 0.8 / len(self.scores)
        highest = 0.0
        for number, (name, scores) in enumerate(self.scores.items()):
            found = [mean_interval(scores.values(metric)) for metric in metrics]
            means, lows, highs = np.array(found).T
            places = np.arange(len(metrics)) + (number - (len(self.scores) - 1) / 2) * width
            colours = {"color": _COLOURS[number % len(_COLOURS)], "ecolor": "#333333", "capsize": 3}
            errors = np.maximum(0.0, [means - lows, highs - means])
            bars = axes.bar(places, means, width * 0.92, yerr=errors, label=name, **colours)
            axes.bar_label(bars, labels=[f"{mean:.3f}" for mean in means], padding=3, fontsize=8)
            highest = max(highest, float(highs.max()))
        axes.set_xticks(range(len(metrics)), metrics)
        axes.set_ylim(0, min(1.08, 1.2 * highest + 0.02))
        axes.set_title(title, fontsize=10)
        return _written(axes, path, loc="upper left", bbox_to_anchor=(1, 1))

    def to_html(self, path: str | Path, *, title: str | None = None) -> Path:
        """Write a page to look at: one file that needs no other and no network.

        It has the verdict, scores with intervals, how the adapters were trained, wins and losses
        against the first model with the passages, the data and the cost. It holds texts of yours.
        The title is by default the names of the models. Returns the path written.
        """
        title = title or ", ".join(self.scores) + " compared"
        return write_page(path, title, self.scores, self.texts, self.trained, data=self.data)

    def to_dict(self) -> dict[str, Any]:
        """Return scores and differences to the first model as JSON knows them."""
        first, *others = self.scores
        models = {name: scores.to_dict() for name, scores in self.scores.items()}
        told = {n: {"against": first, **self.significance(first, n).to_dict()} for n in others}
        return {"models": models, "differences": told}

    def __str__(self) -> str:
        return self.to_markdown()

    def _means(self, metrics: Sequence[str] | None) -> tuple[list[str], dict[str, list[float]]]:
        metrics = self._asked(metrics)
        return metrics, {name: [found[m] for m in metrics] for name, found in self.scores.items()}

    def _asked(self, metrics: str | Sequence[str] | None) -> list[str]:
        if not self.scores:
            raise OptionError("scores: expected those of at least one model, got none.")
        if metrics is None:
            metrics = next(iter(self.scores.values())).headline
        asked = [metrics] if isinstance(metrics, str) else [*metrics]
        if not asked:
            raise OptionError('metrics: expected at least one, such as "mrr@10", got none.')
        return asked


def compare_retrieval(
    models: Mapping[str, Retrieving],
    dataset: EmbeddingQAFinetuneDataset,
    *,
    ks: tuple[int, ...] = DEFAULT_KS,
    batch_size: int | None = None,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> Comparison:
    """Score several models on one dataset; warn of those that were trained on its queries.

    Args:
        models: At least one: name → whatever :func:`evaluate_retrieval` scores, such as
            ``{"base": …, "adapted": …, "words": BM25Index.of(dataset.corpus)}``.
        dataset, ks, batch_size, cache_dir, show_progress: See :func:`evaluate_retrieval`.
    """
    if not models or not isinstance(models, Mapping):
        raise OptionError('models: expected at least one, such as {"base": model}.')
    dataset = answered(dataset, "dataset")
    models = {  # all of them are there before any is asked
        name: check_base(one, f"models[{name!r}]") if isinstance(one, (str, type(None))) else one
        for name, one in models.items()
    }
    settings: dict[str, Any] = {"ks": ks, "batch_size": batch_size, "cache_dir": cache_dir}
    settings["show_progress"] = show_progress
    scores = {name: evaluate_retrieval(one, dataset, **settings) for name, one in models.items()}
    seen = [f"{name}: {found.seen}" for name, found in scores.items() if found.seen]
    if seen:
        warnings.warn(f"{'; '.join(seen)}. Split first, then train.", stacklevel=2)
    texts = Texts(tuple(dataset.queries.values()), tuple(dataset.corpus.values()))
    reports = {name: getattr(one, "training", {}).get("report") for name, one in models.items()}
    trained = {name: report for name, report in reports.items() if report}
    return Comparison(scores, texts, data_statistics(dataset), trained)


def plot_history(
    scores: Sequence[float], base: float, path: str | Path, *, metric: str, best: int
) -> Path:
    """Draw scores of epochs 0, 1, …, the ``best`` marked, and the base model's as a line."""
    axes = _axes(6.4)
    axes.axhline(base, color=_COLOURS[0], linestyle="--", label=f"base model, {base:.3f}")
    axes.plot(range(len(scores)), scores, color=_COLOURS[1], marker="o", label="composed")
    axes.plot([best], [scores[best]], color=_COLOURS[2], marker="o", linestyle="", label="kept")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{metric} on validation queries")
    axes.set_xticks(range(len(scores)))
    return _written(axes, path)


def _axes(width: float) -> Any:
    matplotlib = require_extra("matplotlib.figure", extra="plot")
    axes = matplotlib.Figure(figsize=(width, 4.2), layout="constrained").subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _written(axes: Any, path: str | Path, **legend: Any) -> Path:
    axes.legend(frameon=False, **legend)
    target = Path(path)
    target = target if target.suffix else target.with_suffix(".png")
    known = axes.figure.canvas.get_supported_filetypes()
    check_choice("the ending of path", target.suffix.lower().lstrip("."), known)
    target.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(target, dpi=150)
    return target
