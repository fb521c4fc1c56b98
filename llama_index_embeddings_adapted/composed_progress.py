"""What a composed training does after every epoch: score, keep the best on disk, stop or go on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import TrainerCallback

from llama_index_embeddings_adapted.composed_history import ComposedEpoch, best_epoch
from llama_index_embeddings_adapted.composed_loss import ComposedLoss
from llama_index_embeddings_adapted.composed_options import ComposedOptions
from llama_index_embeddings_adapted.errors import TrainingError
from llama_index_embeddings_adapted.files import atomic_file, write_json

Score = Callable[[], dict[str, float]]

_STATE = "trainer_state.json"  # the trainer writes it last: a checkpoint that has it is whole
_HISTORY = "history.json"


class Progress(TrainerCallback):
    """Scores every epoch, keeps the best one on disk, stops when there is no better one.

    Args:
        model: The small model.
        loss: Whose mean of an epoch goes into the history.
        score: Scores the model as it is on the validation queries: metric → mean.
        options: How to train.
        folder: For checkpoints, of this training alone.
        show_progress: Show a bar.
    """

    def __init__(self, model: Any, loss: ComposedLoss, score: Score, options: ComposedOptions,
                 folder: Path, *, show_progress: bool) -> None:  # fmt: skip
        self.model, self.loss, self.score = model, loss, score
        self.options, self.folder = options, folder
        self.history: list[ComposedEpoch] = []
        self.bar = tqdm(total=0, desc="Training", unit="step", disable=not show_progress)
        self._began = time.perf_counter()

    def restore(self, checkpoint: Path | None) -> int:
        """Take up the history of a run that ended at a checkpoint; return its last epoch."""
        if checkpoint is None:
            return 0
        done: int = round(json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["epoch"])
        lines = json.loads((self.folder / _HISTORY).read_text(encoding="utf-8"))
        # Of an epoch whose checkpoint is not whole, only the score is known: it is trained again.
        self.history = [ComposedEpoch.from_dict(line) for line in lines if line["epoch"] <= done]
        return done

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        if not self.history or self.options.patience is None:
            return False
        return (
            self.history[-1].epoch - best_epoch(self.history, self.options.metric)
            >= self.options.patience
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the small model before training, unless a run is continued."""
        self.bar.total, self.bar.n = state.max_steps, state.global_step
        if not self.history:
            self._record(0)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the epoch; stop when patience is at its end."""
        self._record(round(state.epoch))
        if self.exhausted:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop the weights of epochs that are not the best."""
        # Only now: until a checkpoint is whole, a restart needs the best of the epoch before it.
        kept = self._best_file(best_epoch(self.history, self.options.metric))
        for path in self.folder.glob("best-*.safetensors"):
            if path != kept:
                path.unlink()

    def load_best(self) -> int:
        """Give the model the weights of the best epoch; return its number."""
        number = best_epoch(self.history, self.options.metric)
        load_trained(self.model, self._best_file(number))
        return number

    def _record(self, number: int) -> None:
        loss = self.loss.take_mean()
        if number and not math.isfinite(loss):
            raise TrainingError(
                f"Training diverged: the loss of epoch {number} is {loss}. Lower the learning rate "
                f"(now {self.options.learning_rate:g})."
            )
        training = self.model.training
        self.model.eval()
        scores = self.score()
        self.model.train(training)
        seconds = time.perf_counter() - self._began
        self.history.append(ComposedEpoch(number, loss, scores, seconds))
        self._began = time.perf_counter()
        shown = f"{scores[self.options.metric]:.4f}"
        self.bar.set_postfix({"epoch": number, self.options.metric: shown})
        if best_epoch(self.history, self.options.metric) == number:
            with atomic_file(self._best_file(number)) as temporary:
                save_file(trained(self.model), temporary)
        write_json(self.folder / _HISTORY, [line.to_dict() for line in self.history])

    def _best_file(self, number: int) -> Path:
        return self.folder / f"best-{number}.safetensors"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / _STATE).is_file()]
    if not whole or not (folder / _HISTORY).is_file():
        return None
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that train, by name."""
    return {
        name: parameter.detach().cpu().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trained(model: Any, path: Path) -> None:
    """Give a model the weights of a file of those that train."""
    weights = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
