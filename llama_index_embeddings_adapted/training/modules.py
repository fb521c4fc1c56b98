"""Adapters as torch modules, while they are trained.

Loss functions, pure in their tensors.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.composites import TwoSidedAdapter
from llama_index_embeddings_adapted.adapters.maps import (
    LinearAdapter,
    LowRankAdapter,
    TwoLayerAdapter,
)
from llama_index_embeddings_adapted.core.arrays import Vectors
from llama_index_embeddings_adapted.errors import OptionError


class TrainableAdapter(nn.Module):
    """An adapter whose weights can be trained."""

    moves_documents = False

    def documents(self, documents: Tensor) -> Tensor:
        """Map documents, ``(n, dim)`` unit rows to unit rows; most adapters leave them."""
        return documents

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


class _Shared(_Linear):
    """One map on both sides."""

    moves_documents = True

    def documents(self, documents: Tensor) -> Tensor:
        return nn.functional.normalize(self(documents), dim=1)

    def export(self) -> LinearAdapter:
        plain = super().export()
        return LinearAdapter(plain.weight, plain.bias, shared=True)


class TwoSidedMap(TrainableAdapter):
    """A map for each side, both starting from the same."""

    moves_documents = True

    def __init__(self, start: LinearAdapter) -> None:
        super().__init__()
        self.query_side, self.document_side = _Linear(start), _Linear(start)

    def forward(self, queries: Tensor) -> Tensor:
        return cast(Tensor, self.query_side(queries))

    def documents(self, documents: Tensor) -> Tensor:
        return nn.functional.normalize(self.document_side(documents), dim=1)

    def shrinkage(self) -> Tensor:
        return self.query_side.shrinkage() + self.document_side.shrinkage()

    def export(self) -> TwoSidedAdapter:
        return TwoSidedAdapter(self.query_side.export(), self.document_side.export())


class _LowRank(TrainableAdapter):
    def __init__(self, start: LowRankAdapter) -> None:
        super().__init__()
        self.down = _parameter(start.down)
        self.up = _parameter(start.up)
        self.bias = _parameter(start.bias)
        self.start = _copies([self.up, self.bias])

    def forward(self, queries: Tensor) -> Tensor:
        low = nn.functional.linear(queries, self.down)
        return queries + nn.functional.linear(low, self.up, self.bias)

    def shrinkage(self) -> Tensor:
        return _distance([self.up, self.bias], self.start)

    def export(self) -> LowRankAdapter:
        return LowRankAdapter(_array(self.down), _array(self.up), _array(self.bias))


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
        return _Shared(adapter) if adapter.shared else _Linear(adapter)
    if isinstance(adapter, LowRankAdapter):
        return _LowRank(adapter)
    if isinstance(adapter, TwoLayerAdapter):
        return _TwoLayer(adapter)
    raise OptionError(
        f"adapter_model: expected a LinearAdapter, a LowRankAdapter or a TwoLayerAdapter, got "
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


class Targets(NamedTuple):
    """Which candidates a query should rank first.

    Args:
        queries: ``(entries,)``, rows of the batch.
        documents: ``(entries,)``, rows of the candidates.
        shares: ``(entries,)``, ``> 0``; those of one query sum to 1.
    """

    queries: Tensor
    documents: Tensor
    shares: Tensor


def ranking_nll(
    queries: Tensor,
    documents: Tensor,
    targets: Targets,
    *,
    temperature: Tensor | float,
    stands_for: float = 1.0,
) -> Tensor:
    """Draw each query towards its relevant documents and away from the other candidates.

    With the documents of the batch as candidates this is multiple-negatives ranking; with the
    documents of a corpus it is a softmax over the corpus. All relevant documents of a query share
    its target mass, so that none of them is ever a negative.

    Args:
        queries: ``(batch, dim)``, unit rows.
        documents: ``(candidates, dim)``, unit rows.
        targets: The relevant documents of each query.
        temperature: In cosine units, ``> 0``. At 0.05, a lead of 0.05 in cosine makes a document
            ``e`` times likelier.
        stands_for: How many documents each irrelevant candidate stands for, ``>= 1``: where
            candidates are drawn from a corpus, its size over their number. Relevant documents stand
            for themselves. So the loss is about that of all documents.

    Returns:
        ``()``, mean cross-entropy in nats; ``log(candidates)`` when the scores say nothing.

    Source:
        Henderson et al. 2017, arXiv:1705.00652, section 4.4 (in-batch negatives); Cao et al. 2007
        (ListNet), eq. 3 for several relevant documents; Jean et al. 2015, arXiv:1412.2007, section
        3.1 (a sample that stands for all).
    """
    logits = (queries / temperature) @ documents.T
    entries = (targets.queries, targets.documents)
    if stands_for > 1.0:  # lowers the relevant ones, which is to raise all others
        lower = torch.full_like(targets.shares, -math.log(stands_for), dtype=logits.dtype)
        logits.index_put_(entries, lower, accumulate=True)
    wanted = torch.zeros_like(logits)
    wanted[entries] = targets.shares.to(logits.dtype)
    return nn.functional.cross_entropy(logits, wanted)


def score_drift(moved: Tensor, moment: Tensor) -> Tensor:
    """How far the scores of all documents have moved from those the base model gives.

    Args:
        moved: ``(batch, dim)``, adapted minus base queries, both with unit rows.
        moment: ``(dim, dim)``, ``DᵀD / m`` of the documents, ``(m, dim)``, unit rows.

    Returns:
        ``()``, mean squared change in cosine, over queries and documents.
    """
    return ((moved @ moment) * moved).sum(dim=1).mean()
