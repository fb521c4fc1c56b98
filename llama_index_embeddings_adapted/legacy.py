"""Folders written by ``llama-index-finetuning``: ``LinearLayer`` and ``TwoLayerNN``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.errors import FolderError, OptionError
from llama_index_embeddings_adapted.folder import WEIGHTS, read_config
from llama_index_embeddings_adapted.maps import LinearAdapter, TwoLayerAdapter

OLD_WEIGHTS = "pytorch_model.bin"


def is_old_folder(folder: Path) -> bool:
    """Return whether the folder was written by the old package."""
    return (folder / OLD_WEIGHTS).is_file() and not (folder / WEIGHTS).exists()


def read_old_folder(folder: Path) -> Adapter:
    """Read an adapter of the old package; nothing but tensors is unpickled.

    Raises:
        FolderError: Damaged, or not one of the two known classes.
    """
    import torch

    config = read_config(folder)
    try:
        state = torch.load(folder / OLD_WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as cause:  # of damaged files torch raises what it likes
        raise FolderError(
            f"{folder / OLD_WEIGHTS}: not a plain file of tensors ({cause})."
        ) from cause
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise FolderError(f"{folder / OLD_WEIGHTS}: expected named tensors.")
    return from_state(config, state, where=str(folder))


def from_module(module: Any) -> Adapter:
    """Convert a ``LinearLayer`` or ``TwoLayerNN`` object.

    Raises:
        OptionError: Anything else.
    """
    try:
        return from_state(module.get_config_dict(), module.state_dict(), where="adapter_model")
    except (AttributeError, FolderError) as cause:
        raise OptionError(
            "adapter_model: expected a LinearAdapter, a TwoLayerAdapter, or a LinearLayer or "
            f"TwoLayerNN of llama-index-embeddings-adapter, got {type(module).__name__} ({cause}). "
            "Other shapes of adapter: subclass Adapter."
        ) from cause


def from_state(config: dict[str, Any], state: dict[str, Any], *, where: str) -> Adapter:
    """Build an adapter from the config and tensors of an old one.

    Raises:
        FolderError: Tensors that are neither those of a ``LinearLayer`` nor of a ``TwoLayerNN``.
    """
    arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items()}
    try:
        if set(arrays) <= {"linear.weight", "linear.bias"} and arrays:
            return LinearAdapter(arrays["linear.weight"], arrays.get("linear.bias"))
        residual = bool(config.get("add_residual", False))
        # The old class scales its output by a learned weight before it adds the query.
        scale = arrays["residual_weight"] if residual else 1.0
        return TwoLayerAdapter(
            arrays["linear1.weight"],
            arrays["linear1.bias"],
            arrays["linear2.weight"] * scale,
            arrays["linear2.bias"] * scale,
            activation=config.get("activation_fn_str", "relu"),
            residual=residual,
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise FolderError(
            f"{where}: expected the tensors of a LinearLayer or a TwoLayerNN, "
            f"found {sorted(arrays)} ({cause})."
        ) from cause
