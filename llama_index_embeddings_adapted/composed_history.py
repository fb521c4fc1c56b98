"""What every epoch of a composed training brought, and where training stands after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_LEAST_GAIN = 1e-9  # below this, two scores are the same


@dataclass(frozen=True)
class ComposedEpoch:
    """One line of the training history; epoch 0 is the small model before training.

    Args:
        epoch: Its number.
        loss: Mean training loss; NaN for epoch 0.
        score: Of the validation queries, in the metric of the options.
        seconds: Training and validation of this epoch.
    """

    epoch: int
    loss: float
    score: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the epoch as JSON knows it."""
        return {**asdict(self), "loss": None if self.loss != self.loss else self.loss}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ComposedEpoch:
        """Rebuild what :meth:`to_dict` gave."""
        loss = data["loss"]
        return cls(**{**data, "loss": float("nan") if loss is None else loss})


def best_epoch(history: Sequence[ComposedEpoch]) -> int:
    """Return the number of the best epoch; the first of equals."""
    best = history[0]
    for line in history[1:]:
        if line.score > best.score + _LEAST_GAIN:
            best = line
    return best.epoch
