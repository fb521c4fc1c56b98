"""What every epoch of a composed training brought, and where training stands after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: What decides between epochs that are equal in the metric asked for.
FINE = "ndcg@10"
_LEAST_GAIN = 1e-9  # below this, two scores are the same


@dataclass(frozen=True)
class ComposedEpoch:
    """One line of the training history; epoch 0 is the small model before training.

    Args:
        epoch: Its number.
        loss: Mean training loss; NaN for epoch 0.
        scores: Metric → mean over the validation queries.
        seconds: Training and validation of this epoch.
    """

    epoch: int
    loss: float
    scores: dict[str, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as JSON knows it."""
        return {**asdict(self), "loss": None if self.loss != self.loss else self.loss}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ComposedEpoch:
        """Rebuild what :meth:`to_dict` gave."""
        loss = data["loss"]
        return cls(**{**data, "loss": float("nan") if loss is None else loss})


def best_epoch(history: Sequence[ComposedEpoch], metric: str) -> int:
    """Return the number of the best epoch.

    A hit rate moves in steps of one query, so that epochs are often equal in it: among those the
    one with the highest NDCG@10 counts as better, and the first of those equal in both.
    """
    best = history[0]
    for line in history[1:]:
        for name in (metric, FINE):
            change = line.scores[name] - best.scores[name]
            if abs(change) > _LEAST_GAIN:
                best = line if change > 0 else best
                break
    return best.epoch
