"""What a fine-tuning run found, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.autotune import Choice
from llama_index_embeddings_adapted.comparison import Comparison
from llama_index_embeddings_adapted.html_report import Findings, write_page
from llama_index_embeddings_adapted.significance import Difference
from llama_index_embeddings_adapted.training import Epoch
from llama_index_embeddings_adapted.validation import PartReport

Means = Mapping[str, float]

_HELD_OUT = (
    "Queries held out of training, with 95 % intervals. They also chose when training stopped."
)
_CROSS_FITTED = (
    "Every query judged by adapters that had not seen it, with 95 % intervals; a query may be "
    "judged twice, on documents with training questions and on documents without. All judgements "
    "count the same here; the verdict weighs them by the queries that are expected."
)


@dataclass(frozen=True, eq=False)
class FinetuneReport:
    """What ``finetune()`` did and how the adapter fares on queries it did not train on.

    With ``method="linear"``, the held-out queries also chose when to stop, so their gain is a
    little optimistic; judge with :func:`compare_retrieval` on queries of your own before you rely
    on its size. With other methods, all queries are held out in turn and none takes part in the
    choice it judges; the adapter served was trained on more of them and tends to be better.

    Args:
        overall: All held-out queries; with a choice, weighted as live queries are expected.
        known: Those about documents that training has questions for; None if there are none.
        new: Those about documents that it has not; None if there are none.
        train_queries: Queries trained on.
        best_epoch: Which epoch was kept; 0 is the untrained adapter, that is the base model.
        history: Loss and gain of every epoch; empty with a choice.
        seconds: Wall time, embedding included.
        base_calls: Calls to the base model, the probes that identify it included.
        base_texts: Texts sent to it.
        base_tokens: Tokens of those texts, about: a token for every four characters.
        interrupted: Whether training was stopped from the keyboard.
        settings: Loss, hyper-parameters, seed.
        choice: How the method was chosen; None with ``method="linear"``.
        data: What was trained on, in numbers, see
            :func:`~llama_index_embeddings_adapted.data_statistics.data_statistics`.
        held_out: Base and adapted model on the held-out queries, one by one; None where that was
            not kept. Not part of :meth:`to_dict`, as it holds texts.
    """

    overall: PartReport
    known: PartReport | None
    new: PartReport | None
    train_queries: int
    best_epoch: int = 0
    history: tuple[Epoch, ...] = ()
    seconds: float = 0.0
    base_calls: int = 0
    base_texts: int = 0
    base_tokens: int = 0
    interrupted: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    choice: Choice | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    held_out: Comparison | None = None

    @property
    def base(self) -> Means:
        """Scores of the base model on all held-out queries."""
        return self.overall.base

    @property
    def adapted(self) -> Means:
        """Scores of the adapted model on all held-out queries."""
        return self.overall.adapted

    @property
    def p_value(self) -> float:
        """Of the difference in NDCG@10 over all held-out queries."""
        return self.overall.difference.p_value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of that difference."""
        return self.overall.difference.low, self.overall.difference.high

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        difference = self.overall.difference
        synthetic = self.settings.get("judged_on_synthetic")
        if self.choice is not None:
            return (
                _on_synthetic(difference) if self.choice.ship and synthetic else self.choice.verdict
            )
        if self.best_epoch == 0:
            return (
                "keep the base model: no epoch of training was better on held-out queries "
                "without harm; the adapter returned changes nothing"
            )
        told = self.settings.get("expect") is not None
        if self.new is not None and self.new.difference.high < 0 and not told:
            return "do not ship: queries about documents without training questions lose"
        if difference.low > 0 and synthetic:
            return _on_synthetic(difference)
        if difference.low > 0:
            return (
                f"ship: held-out queries gain {difference.mean:+.4f} NDCG@10 "
                f"[{difference.low:+.4f}, {difference.high:+.4f}]"
            )
        return f"no harm seen, no proof of gain; {difference.verdict}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON knows it."""
        return {
            "verdict": self.verdict,
            "overall": self.overall.to_dict(),
            "known": None if self.known is None else self.known.to_dict(),
            "new": None if self.new is None else self.new.to_dict(),
            "best_epoch": self.best_epoch,
            "history": [_epoch_dict(epoch) for epoch in self.history],
            "train_queries": self.train_queries,
            "seconds": self.seconds,
            "base_calls": self.base_calls,
            "base_texts": self.base_texts,
            "base_tokens": self.base_tokens,
            "interrupted": self.interrupted,
            "settings": dict(self.settings),
            "choice": None if self.choice is None else self.choice.to_dict(),
            "data": dict(self.data),
        }

    def to_html(self, path: str | Path, *, title: str = "Training of an adapter") -> Path:
        """Write a page to look at: one file that needs no other and no network.

        It has the verdict, hit rate and MRR of the held-out queries with intervals, metrics at
        every cut-off, the history of the training, wins and losses with the passages, what the
        data are, and what it cost. It holds texts of yours.

        Args:
            path: Where to write.
            title: Of the page.

        Returns:
            The path written.
        """
        held_out = self.held_out or Comparison({})
        return write_page(
            path,
            Findings(
                title,
                self.verdict,
                held_out.scores,
                held_out.texts,
                {"adapted": self.to_dict()},
                note=_CROSS_FITTED if self.choice else _HELD_OUT,
            ),
        )

    def __str__(self) -> str:
        lines = [f"Verdict: {self.verdict}."]
        parts = (
            ("all", self.overall),
            ("documents with training questions", self.known),
            ("documents without", self.new),
        )
        for name, part in parts:
            if part is not None:
                lines.append(
                    f"  {name}: NDCG@10 {part.base['ndcg@10']:.4f} → {part.adapted['ndcg@10']:.4f} "
                    f"[{part.difference.low:+.4f}, {part.difference.high:+.4f}], "
                    f"{part.queries} held-out queries"
                )
        kept = f"epoch {self.best_epoch} of {len(self.history) - 1}"
        if self.choice is not None:
            kept = f"{self.choice.recipe} of {len(self.choice.gains)} candidates"
        lines.append(
            f"  kept: {kept}; {self.train_queries} training queries, {self.seconds:.1f} s, "
            f"{self.base_texts} texts embedded in {self.base_calls} calls"
        )
        return "\n".join(lines)


def _on_synthetic(difference: Difference) -> str:
    return (
        f"judge on real questions before shipping: synthetic ones gain {difference.mean:+.4f} "
        f"NDCG@10 [{difference.low:+.4f}, {difference.high:+.4f}], which proves nothing about "
        "others"
    )


def _epoch_dict(epoch: Epoch) -> dict[str, Any]:
    gain = {
        name: None if math.isnan(value) else value for name, value in asdict(epoch.gain).items()
    }
    return {"epoch": epoch.epoch, "loss": epoch.loss, "gain": gain}
