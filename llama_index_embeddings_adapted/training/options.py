"""How to train an adapter, or a small model beside a black box; every value is checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from .. import errors
from ..adapters.base import Adapter
from ..errors import OptionError, check_choice, check_kind, check_known, check_number, check_whole
from ..evaluation.retrieval import parse

Loss = Literal["queried", "mnr", "corpus"]

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "loss": get_args(Loss),
    "adapts": ("query", "both"),
    "ship": ("proven", "always"),
    "start": ("whitening", "identity"),
    "lexical": ("auto", None),
    "precision": ("auto", "float32", "bfloat16", "float16"),
}
_WHOLE = (
    "epochs", "batch_size", "anchor_documents", "max_candidates", "mini_batch_size",
    "queries_per_document",
)  # fmt: skip
_WHOLE_OR_NONE = ("patience", "steps_per_epoch", "val_depth", "lora_rank", "dim")
_RANGES: dict[str, dict[str, float]] = {
    **{key: {"above": 0.0} for key in ("learning_rate", "temperature", "max_grad_norm", "weight")},
    **{key: {"least": 0.0} for key in ("shrinkage", "anchor", "warmup_steps", "weight_decay")},
    **{key: {"least": 0.0, "below": 1.0} for key in ("warmup_share", "label_smoothing")},
}

Options = TypeVar("Options", bound="_Checked")


@dataclass(frozen=True)
class _Checked:
    """Options whose fields are checked by the tables above; a bad one is an OptionError."""

    @classmethod
    def of(cls: type[Options], settings: Mapping[str, Any]) -> Options:
        """Return options from keyword arguments, and say what an unknown one perhaps meant."""
        check_known(settings, (field.name for field in fields(cls)))
        return cls(**settings)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # which JSON does not know
                object.__setattr__(self, name, value := value.item())
            if name in _CHOICES:
                check_choice(name, value, _CHOICES[name])
            if name in _WHOLE or (name in _WHOLE_OR_NONE and value is not None):
                check_whole(name, value)
            if name in _RANGES:
                check_number(name, value, **_RANGES[name])
            if name == "seed":
                check_whole(name, value, least=0)
            if name == "device" and value is not None:
                _check_device(value)
                object.__setattr__(self, name, str(value))


def _check_device(device: Any) -> None:
    import torch  # not at import: who serves has none

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as cause:
        what = 'device: expected None or one this machine has, such as "cpu" or "cuda"'
        raise OptionError(f"{what}, got {device!r}: {str(cause).splitlines()[0]}") from None


@dataclass(frozen=True)
class TrainingOptions(_Checked):
    """All that decides what the fine-tuning of an adapter finds, beside data and base model.

    The last nine are arguments of :class:`EmbeddingAdapterFinetuneEngine`. A value outside its
    range is an OptionError.

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
            than that; elsewhere all of them count.
        patience: Epochs without a better validation score before training stops; None: never.
        max_candidates: Most documents a step scores. Beyond, a step takes the relevant ones of its
            batch and a random sample of the rest, which stands for all of it, so a step needs about
            ``16 * batch_size * max_candidates`` bytes, and the same again for the documents.
        max_grad_norm: Gradients are clipped to this norm.
        warmup_steps: Steps over which the learning rate rises to its value.
        steps_per_epoch: Steps per epoch, at most; None for one pass over the queries.
        optimizer_class: Any torch optimizer; Adam when None.
        optimizer_params: Its keyword arguments.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
        seed: Same seed, same machine, same weights.
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

    method: str | list[str] = "auto"
    adapts: str = "query"
    ship: str = "proven"
    expect: float | None = None
    start: str = "whitening"
    bias: bool = True
    dim: int | None = None
    refit: bool = True
    lexical: str | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        # None is what the old engine's default was.
        object.__setattr__(self, "optimizer_params", self.optimizer_params or {})
        check_kind("optimizer_params", self.optimizer_params, Mapping, 'a dict, as {"lr": 0.01}')
        if self.expect is not None:
            check_number("expect", self.expect, least=0.0, most=1.0)


#: What only a training loop has; who names one of these and no method means ``"linear"``.
LOOP = frozenset(field.name for field in fields(TrainingOptions)) - {
    "device", "seed", "method", "adapts", "ship", "expect", "bias", "dim", "lexical",
}  # fmt: skip


#: Of these, what only ``"linear"`` heeds: other methods go a set number of steps, from set places.
LINEAR_ONLY = LOOP - {
    "batch_size", "learning_rate", "temperature", "learn_temperature", "shrinkage", "anchor",
    "max_candidates", "max_grad_norm",
}  # fmt: skip


def settings_of(options: TrainingOptions) -> dict[str, Any]:
    """Return options as JSON knows them."""
    optimizer, params = options.optimizer_class, options.optimizer_params.items()
    kept = asdict(replace(options, optimizer_class=None))
    name = None if optimizer is None else getattr(optimizer, "__name__", "custom")
    plain = {k: v if isinstance(v, (int, float, str, bool)) else repr(v) for k, v in params}
    return {**kept, "optimizer_class": name, "optimizer_params": plain}


def implied_method(settings: Mapping[str, Any], *, training_loop: bool = False) -> str:
    """Return the method of a call that names none; ``training_loop``: other signs of one."""
    spoken = training_loop or not LOOP.isdisjoint(settings)
    return "linear" if spoken and settings.get("adapts", "query") == "query" else "auto"


def check_dim(base: int, dim: int | None, start: Adapter | None) -> None:
    """Refuse, by a :class:`ShapeError`, what to start from or expect if the base model differs."""
    if dim is not None and dim != base:
        raise errors.ShapeError("dim", expected=f"{base}, as the base model gives", actual=dim)
    if start is not None and (start.input_dim, start.output_dim) != (base, base):
        raise errors.ShapeError(
            "adapter_model",
            expected=f"{base} → {base}, as the base model gives",
            actual=f"{start.input_dim} → {start.output_dim}",
        )


@dataclass(frozen=True)
class ComposedOptions(_Checked):
    """How to train; a value outside its range is an OptionError.

    Args:
        weight: λ of the composition while training, ``> 0``; tuned afterwards.
        epochs: Passes over the training queries, at most.
        patience: Epochs without a better validation score before training stops; None: never.
        batch_size: Documents per step, each with its queries. A document stands once in a batch;
            where each has one query, these are the pairs of the published recipe.
        queries_per_document: Queries that stand with their document in one batch, at most; a
            document with more gets several places in an epoch.
        mini_batch_size: Texts, of the longest of a batch, whose activations are in memory at once.
            Larger batches are computed with cached gradients: the same step in the same memory,
            with a second forward pass.
        learning_rate: Of AdamW, for the body of the small model.
        weight_decay: Of AdamW.
        warmup_share: Share of all steps, in [0, 1), over which the learning rate rises.
        max_grad_norm: Gradients are clipped to this norm.
        temperature: In cosine units, ``> 0``.
        label_smoothing: Share of the target spread over all candidates, in [0, 1).
        hard_negatives: Documents per training document that look right to the black box and are
            not, added to each batch; those of the dataset where it has some, else mined.
        metric: What decides on the best epoch, such as ``"hit_rate@5"``.
        val_depth: Validation searches among the relevant documents and those the black box ranks
            among the first ``val_depth`` for some validation query; None: among all. The verdict
            is always judged among all.
        lora_rank: Train low-rank additions of this rank instead of all weights (``peft``); they
            are merged into the weights in the end.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: the fastest that the
            device trains in.
        gradient_checkpointing: Compute activations twice instead of keeping them.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
        seed: Same seed, same machine, same weights.

    Source: Zhang et al. 2024, arXiv:2402.12177, and the code beside it, for weight, epochs,
    patience, batch size, temperature and smoothing. Its factor of 0.01 on the loss is left out:
    AdamW cancels it.
    """

    weight: float = 0.5
    epochs: int = 20
    patience: int | None = 4
    batch_size: int = 20
    queries_per_document: int = 4
    mini_batch_size: int = 32
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_grad_norm: float = 1.0
    temperature: float = 0.05
    label_smoothing: float = 0.2
    hard_negatives: int = 0
    metric: str = "hit_rate@5"
    val_depth: int | None = 10
    lora_rank: int | None = None
    precision: str = "auto"
    gradient_checkpointing: bool = False
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("hard_negatives", self.hard_negatives, least=0)
        try:
            parse(self.metric)
        except errors.MetricError as cause:
            raise OptionError(f"metric: {cause}") from cause
