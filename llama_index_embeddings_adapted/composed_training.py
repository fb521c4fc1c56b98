"""Training a small model beside a black box with the trainer of sentence-transformers.

How the loss is expressed there: a row of the training set is a document with queries that it
answers, as row numbers; a collator of ours turns a batch of rows into the tokens of the distinct
queries and documents, and hands the black box's cosines and the judgements of the batch over as its
"labels"; the loss adds the small model's cosines to the former and masks by the latter. Batching,
gradient caching, optimizer, schedule, mixed precision, gradient checkpointing and checkpoints are
the library's.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from transformers.trainer_callback import PrinterCallback

from llama_index_embeddings_adapted.composed_body import (
    add_lora,
    precision_on,
    recompute_activations,
)
from llama_index_embeddings_adapted.composed_history import ComposedEpoch
from llama_index_embeddings_adapted.composed_loss import ComposedLoss
from llama_index_embeddings_adapted.composed_options import ComposedOptions
from llama_index_embeddings_adapted.composed_progress import (
    Progress,
    Score,
    last_checkpoint,
    load_trained,
    trained,
)

_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, eq=False)
class ComposedFit:
    """What training found; the small model has the weights of the best epoch.

    Args:
        best_epoch: 0 is the small model before training.
        history: One entry per epoch, epoch 0 included.
        interrupted: Whether it was stopped from the keyboard.
        resumed_from: The epoch after which training continued; 0 where it began anew.
    """

    best_epoch: int
    history: tuple[ComposedEpoch, ...]
    interrupted: bool = False
    resumed_from: int = 0


def train(
    model: Any,
    places: list[dict[str, list[int]]],
    collate: Any,
    score: Score,
    options: ComposedOptions,
    *,
    folder: Path,
    show_progress: bool = True,
) -> ComposedFit:
    """Train until validation stops gaining; leave the best weights in ``model``.

    Every finished epoch is kept in ``folder`` with the state of optimizer and schedule: the same
    call after a kill continues there. The library writes that state with ``torch.save`` and reads
    it with ``weights_only``; nothing of it is in the model saved in the end.

    Args:
        model: A ``SentenceTransformer``; its weights change.
        places: What an epoch passes over.
        collate: Makes a batch of places.
        score: Scores the model as it is on the validation queries: metric → mean.
        options: How to train.
        folder: For checkpoints, of this training alone.
        show_progress: Show a bar.

    Raises:
        TrainingError: The loss is not finite.
        MissingExtraError: ``lora_rank`` is given and peft is not installed.
    """
    with _own_randomness():
        return _train(model, places, collate, score, options, folder, show_progress)


def _train(
    model: Any,
    places: list[dict[str, list[int]]],
    collate: Any,
    score: Score,
    options: ComposedOptions,
    folder: Path,
    show_progress: bool,
) -> ComposedFit:
    if options.gradient_checkpointing:
        recompute_activations(model)
    merge = add_lora(model, options) if options.lora_rank else None
    loss = ComposedLoss(model, options)
    progress = Progress(model, loss, score, options, folder, show_progress=show_progress)
    checkpoint = last_checkpoint(folder)
    resumed_from = progress.restore(checkpoint)
    trainer = _Trainer(
        model=model,
        args=_arguments(model, options, folder),
        train_dataset=Dataset.from_list(places),
        loss=loss,
        data_collator=collate,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    interrupted = False
    try:
        if not progress.exhausted:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        if not progress.history:
            raise
        interrupted = True
        warnings.warn("Training was interrupted; the best epoch so far is kept.", stacklevel=2)
    finally:
        progress.bar.close()
    best = progress.load_best()
    if merge is not None:
        merge()
    model.eval()
    return ComposedFit(best, tuple(progress.history), interrupted, resumed_from)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Give the caller's random numbers back: the trainer seeds all of them."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, but for what a checkpoint holds of the model: weights that train."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        target = Path(str(output_dir or self.args.output_dir))
        target.mkdir(parents=True, exist_ok=True)
        save_file(trained(self.model), target / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: ours says more."""


def _arguments(model: Any, options: ComposedOptions, folder: Path) -> Any:
    device = model.device.type
    precision = precision_on(device, options)
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_share,
        max_grad_norm=options.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        seed=options.seed,
        eval_strategy="no",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
