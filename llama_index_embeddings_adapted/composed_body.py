"""What is done to a small model before it trains: numbers, low-rank additions, activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from llama_index_embeddings_adapted.composed_options import ComposedOptions
from llama_index_embeddings_adapted.errors import OptionError, need


def precision_on(device: str, options: ComposedOptions) -> str:
    """Return in which numbers a kind of device trains.

    Raises:
        OptionError: It cannot train in those asked for.
    """
    wanted = options.precision
    if wanted == "auto":
        if device != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if wanted == "float16" and device == "cpu":
        raise OptionError('precision: "float16" does not train on a CPU; use "bfloat16".')
    return wanted


def add_lora(model: Any, options: ComposedOptions) -> Callable[[], None]:
    """Freeze the body but for low-rank additions; return what merges them into it."""
    peft = need("peft", extra="lora")
    body = model[0].model
    config = peft.LoraConfig(
        r=options.lora_rank, lora_alpha=2 * (options.lora_rank or 1), target_modules="all-linear"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model[0].model = peft.get_peft_model(body, config)

    def merge() -> None:
        model[0].model = model[0].model.merge_and_unload()
        model.requires_grad_(True)

    return merge


def recompute_activations(model: Any) -> None:
    """Compute activations twice. Asked of the body itself: the trainer's own setting warns."""
    body = model[0].model
    # transformers renamed it in its version 5.
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        enable = getattr(body, f"{name}_enable", None)
        if enable is not None:
            enable(**{f"{name}_kwargs": {"use_reentrant": False}})
            return
