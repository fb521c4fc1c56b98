"""Adapters as torch modules, while they are trained."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from llama_index_embeddings_adapted.adapters import Adapter, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.vectors import Vectors


class TrainableAdapter(nn.Module):
    """An adapter whose weights can be trained."""

    @abstractmethod
    def shrinkage(self) -> Tensor:
        """Return the squared distance of the weights from where they started, ``()``."""

    @abstractmethod
    def export(self) -> Adapter:
        """Return the adapter with the present weights."""


class _Linear(TrainableAdapter):
    def __init__(self, start: LinearAdapter) -> None:
        super().__init__()
        self.weight = _parameter(start.weight)
        self.bias = None if start.bias is None else _parameter(start.bias)
        self.start = _copies(list(self.parameters()))

    def forward(self, queries: Tensor) -> Tensor:
        return nn.functional.linear(queries, self.weight, self.bias)

    def shrinkage(self) -> Tensor:
        moved = [self.weight] if self.bias is None else [self.weight, self.bias]
        return _distance(moved, self.start)

    def export(self) -> LinearAdapter:
        return LinearAdapter(_array(self.weight), None if self.bias is None else _array(self.bias))


_TORCH_ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class _TwoLayer(TrainableAdapter):
    def __init__(self, start: TwoLayerAdapter) -> None:
        super().__init__()
        self._config = start.config()
        self.hidden_weight = _parameter(start.hidden_weight)
        self.hidden_bias = _parameter(start.hidden_bias)
        self.output_weight = _parameter(start.output_weight)
        self.output_bias = _parameter(start.output_bias)
        self.start = _copies([self.output_weight, self.output_bias])

    def forward(self, queries: Tensor) -> Tensor:
        hidden = nn.functional.linear(queries, self.hidden_weight, self.hidden_bias)
        hidden = _TORCH_ACTIVATIONS[self._config["activation"]](hidden)
        mapped = nn.functional.linear(hidden, self.output_weight, self.output_bias)
        return mapped + queries if self._config["residual"] else mapped

    def shrinkage(self) -> Tensor:
        # The output layer alone: from a zero output layer that is the distance from the identity.
        return _distance([self.output_weight, self.output_bias], self.start)

    def export(self) -> TwoLayerAdapter:
        return TwoLayerAdapter(
            _array(self.hidden_weight),
            _array(self.hidden_bias),
            _array(self.output_weight),
            _array(self.output_bias),
            **self._config,
        )


def trainable(adapter: Adapter) -> TrainableAdapter:
    """Return the adapter as a torch module.

    Raises:
        OptionError: No training is known for its class.
    """
    if isinstance(adapter, LinearAdapter):
        return _Linear(adapter)
    if isinstance(adapter, TwoLayerAdapter):
        return _TwoLayer(adapter)
    raise OptionError(
        f"adapter_model: expected a LinearAdapter or a TwoLayerAdapter, got "
        f"{type(adapter).__name__}."
    )


def _copies(parameters: list[nn.Parameter]) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter(p.detach().clone(), requires_grad=False) for p in parameters
    )


def _distance(now: list[nn.Parameter], start: nn.ParameterList) -> Tensor:
    return torch.stack([(p - p0).square().sum() for p, p0 in zip(now, start, strict=True)]).sum()


def _parameter(array: Vectors) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array.copy()))


def _array(parameter: Tensor) -> Vectors:
    return np.asarray(parameter.detach().cpu().numpy(), dtype=np.float32)
