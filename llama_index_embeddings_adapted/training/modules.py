"""What a training is made of: adapters as torch modules, documents as tensors, losses."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter, LowRankAdapter, TwoLayerAdapter
from ..core.arrays import NormalizedRows, Rows, Vectors, l2_normalize, normalized_blocks
from ..core.encoded import Qrels
from ..errors import OptionError


class TrainableAdapter(nn.Module):
    """An adapter whose weights can be trained."""

    def pull_back(self, *parameters: nn.Parameter | None) -> None:
        """Name the weights that :meth:`shrinkage` draws back to what they are now."""
        self._pulled = [p for p in parameters if p is not None]
        self._start = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in self._pulled
        )

    def shrinkage(self) -> Tensor:
        """Return the squared distance of the weights from where they started, ``()``."""
        pairs = zip(self._pulled, self._start, strict=True)
        return torch.stack([(now - start).square().sum() for now, start in pairs]).sum()

    @abstractmethod
    def export(self) -> Adapter:
        """Return the adapter with the present weights."""


class _Linear(TrainableAdapter):
    def __init__(self, start: LinearAdapter) -> None:
        super().__init__()
        self.weight = _parameter(start.weight)
        self.bias = None if start.bias is None else _parameter(start.bias)
        self.pull_back(self.weight, self.bias)

    def forward(self, queries: Tensor) -> Tensor:
        return nn.functional.linear(queries, self.weight, self.bias)

    def export(self) -> LinearAdapter:
        return LinearAdapter(_array(self.weight), None if self.bias is None else _array(self.bias))


class _LowRank(TrainableAdapter):
    def __init__(self, start: LowRankAdapter) -> None:
        super().__init__()
        self.down = _parameter(start.down)
        self.up = _parameter(start.up)
        self.bias = _parameter(start.bias)
        self.pull_back(self.up, self.bias)

    def forward(self, queries: Tensor) -> Tensor:
        low = nn.functional.linear(queries, self.down)
        return queries + nn.functional.linear(low, self.up, self.bias)

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
        # The output layer alone: from a zero output layer that is the distance from the identity.
        self.pull_back(self.output_weight, self.output_bias)

    def forward(self, queries: Tensor) -> Tensor:
        hidden = nn.functional.linear(queries, self.hidden_weight, self.hidden_bias)
        hidden = _TORCH_ACTIVATIONS[self._config["activation"]](hidden)
        mapped = nn.functional.linear(hidden, self.output_weight, self.output_bias)
        return mapped + queries if self._config["residual"] else mapped

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
    if isinstance(adapter, LowRankAdapter):
        return _LowRank(adapter)
    if isinstance(adapter, TwoLayerAdapter):
        return _TwoLayer(adapter)
    raise OptionError(
        f"adapter_model: expected a LinearAdapter, a LowRankAdapter or a TwoLayerAdapter, got "
        f"{type(adapter).__name__}."
    )


def _parameter(array: Vectors) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array.copy()))


def _array(parameter: Tensor) -> Vectors:
    return np.asarray(parameter.detach().cpu().numpy(), dtype=np.float32)


def as_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


MOST_BYTES = 512 * 2**20  # held as one tensor


class TrainingDocuments:
    """Unit rows of documents as tensors.

    Up to 512 MiB of them are held on the device. More stay where they are, in memory or mapped
    from a file, and only those that a step scores are copied.

    Args:
        vectors: ``(m, dim)``, of the base model.
        device: Where tensors go.
    """

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        self._vectors, self._device = vectors, device
        self._rows = NormalizedRows(vectors)
        self._all = (
            None if vectors.nbytes > MOST_BYTES else as_tensor(l2_normalize(vectors), device)
        )

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Their dimension."""
        return int(self._vectors.shape[1])

    def take(self, rows: Rows) -> Tensor:
        """Return these rows, ``(n, dim)``."""
        if self._all is None:
            return as_tensor(self._rows[rows], self._device)
        return self._all.index_select(
            0, as_tensor(rows, self._device)
        )  # three times as fast as brackets

    def moment(self) -> Tensor:
        """Return the mean of ``d dᵀ`` over all documents, ``(dim, dim)``."""
        if self._all is not None:
            return self._all.T @ self._all / len(self)
        total = np.zeros((self.dim, self.dim))
        for block in normalized_blocks(self._vectors):
            total += block.T @ block
        return as_tensor((total / len(self)).astype(np.float32), self._device)


_NEVER = -1e4  # the logit of what does not compete: infinity times no target would be no number


class Targets(NamedTuple):
    """Which candidates a query should rank first.

    Args:
        queries: ``(entries,)``, rows of the batch.
        documents: ``(entries,)``, rows of the candidates.
        shares: ``(entries,)``, ``> 0``; those of one query sum to 1.
        askers: ``(hidden,)``, rows of the batch, and
        hidden: for each the row of a candidate that does not compete for it.
    """

    queries: Tensor
    documents: Tensor
    shares: Tensor
    askers: Tensor
    hidden: Tensor

    @classmethod
    def of(
        cls, relevant: Qrels, hidden: Qrels, candidates: Rows, device: torch.device | None = None
    ) -> Targets:
        """Place the documents of a batch of queries among candidates, whose rows ascend."""
        wanted, own = relevant.among(candidates), hidden.among(candidates)
        shares = (1.0 / wanted.counts[wanted.queries]).astype(np.float32)
        arrays: tuple[NDArray[Any], ...] = (wanted.queries, wanted.documents, shares)
        arrays += (own.queries, own.documents)
        return cls(*(as_tensor(array, device or torch.device("cpu")) for array in arrays))


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
    if len(targets.hidden):
        logits = logits.index_put((targets.askers, targets.hidden), logits.new_tensor(_NEVER))
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
