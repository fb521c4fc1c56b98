"""How to train; every value is checked before anything is embedded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.option_checks import check_known, check_number, check_whole

Loss = Literal["queried", "mnr", "corpus"]

_OPTIONAL = ("patience", "steps_per_epoch")


@dataclass(frozen=True)
class TrainingOptions:
    """How to train; every field is checked on construction.

    Args:
        loss: Which documents a query's relevant ones compete with. ``"queried"``: all documents
            that some training query asks for. ``"mnr"``: those of the batch (multiple-negatives
            ranking). ``"corpus"``: all documents. The last gains most on documents with training
            questions, and takes it from documents without: they are never right, so the map
            learns to push them away.
        epochs: Passes over the training queries, at most.
        batch_size: Queries per step.
        learning_rate: Of Adam; ignored when ``optimizer_params`` has an ``lr``.
        decay: Start at eight times the learning rate and let it fall to zero over ``epochs``, for
            trainings whose length is known. On real sets a third of the steps gave as good a map.
        temperature: Where the learned temperature starts, in cosine units.
        learn_temperature: Learn it.
        shrinkage: Weight of the squared distance from where training starts: the identity, or
            the label-free map that replaces it.
        anchor: Weight of the mean squared change in the scores of the whole corpus, which keeps
            documents without training questions where they were.
        anchor_documents: How many documents a step draws to estimate it, where vectors are longer
            than that or documents move too; elsewhere all of them count.
        patience: Epochs without a better validation score before training stops; None: never.
        max_candidates: Most documents a step scores. Beyond, a step takes the relevant ones of its
            batch and a random sample of the rest, which stands for all of it, so a step needs about
            ``16 * batch_size * max_candidates`` bytes, and the same again for the documents. Where
            documents move, relevant ones that would be more than half of them are drawn too, at
            least one per query.
        max_grad_norm: Gradients are clipped to this norm.
        warmup_steps: Steps over which the learning rate rises to its value.
        steps_per_epoch: Steps per epoch, at most; None for one pass over the queries.
        optimizer_class: Any torch optimizer; Adam when None.
        optimizer_params: Its keyword arguments.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
        seed: Same seed, same machine, same weights.

    Raises:
        OptionError: A value outside its range.
    """

    loss: Loss = "queried"
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-4
    decay: bool = False
    temperature: float = 0.05
    learn_temperature: bool = True
    shrinkage: float = 0.01
    anchor: float = 30.0
    anchor_documents: int = 512
    patience: int | None = 8
    max_candidates: int = 2_048
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    steps_per_epoch: int | None = None
    optimizer_class: Any | None = None
    optimizer_params: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise OptionError(f"loss: expected one of {get_args(Loss)}, got {self.loss!r}.")
        for name in ("epochs", "batch_size", "anchor_documents", "max_candidates", *_OPTIONAL):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            check_whole(name, value)
        for name in ("learning_rate", "temperature", "max_grad_norm"):
            check_number(name, getattr(self, name), above=0.0)
        for name in ("shrinkage", "anchor", "warmup_steps"):
            check_number(name, getattr(self, name), least=0.0)


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments, if all are fields of :class:`TrainingOptions`.

    Raises:
        OptionError: An unknown one; the message has what was perhaps meant.
    """
    check_known(options, (field.name for field in fields(TrainingOptions)))
    return options


def settings_of(options: TrainingOptions) -> dict[str, Any]:
    """Return options as JSON knows them."""
    optimizer = options.optimizer_class
    plain = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("optimizer_class", "optimizer_params")
    }
    return {
        **plain,
        "optimizer_class": None if optimizer is None else getattr(optimizer, "__name__", "custom"),
        "optimizer_params": {
            key: value if isinstance(value, (int, float, str, bool)) else repr(value)
            for key, value in options.optimizer_params.items()
        },
    }
