"""What a training is made of: adapters as torch modules, documents as tensors, losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear

from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter, LowRankAdapter, TwoLayerAdapter
from ..core.arrays import NormalizedRows, Rows, Vectors, l2_normalize
from ..core.encoded import EncodedDataset, Qrels
from ..errors import OptionError
from .closed_form import Spectrum
from .options import TrainingOptions

Forward = Callable[[Mapping[str, Tensor], Tensor, Mapping[str, Any]], Tensor]

_ACTIVATIONS = {name: getattr(torch, name) for name in ("relu", "tanh", "sigmoid")}
_ACTIVATIONS["leaky_relu"] = nn.functional.leaky_relu
MOST_BYTES = 512 * 2**20  # held as one tensor
NEVER = -1e4  # the logit of what does not compete: infinity times no target would be no number


def _low_rank(w: Mapping[str, Tensor], queries: Tensor, _: Mapping[str, Any]) -> Tensor:
    return queries + linear(linear(queries, w["down"]), w["up"], w["bias"])


def _two_layer(w: Mapping[str, Tensor], queries: Tensor, config: Mapping[str, Any]) -> Tensor:
    hidden = linear(queries, w["hidden_weight"], w["hidden_bias"])
    hidden = _ACTIVATIONS[config["activation"]](hidden)
    mapped = linear(hidden, w["output_weight"], w["output_bias"])
    return mapped + queries if config["residual"] else mapped


#: What each class does to queries, and the weights that are drawn back to where they start. Of two
#: layers that is the last alone: from zeros, that is the distance from the identity.
_KINDS: dict[type[Adapter], tuple[Forward, tuple[str, ...]]] = {
    LinearAdapter: (lambda w, q, _: linear(q, w["weight"], w.get("bias")), ("weight", "bias")),
    LowRankAdapter: (_low_rank, ("up", "bias")),
    TwoLayerAdapter: (_two_layer, ("output_weight", "output_bias")),
}


class TrainableAdapter(nn.Module):
    """An adapter whose weights can be trained; of another class, it is an OptionError."""

    def __init__(self, start: Adapter, device: torch.device) -> None:
        super().__init__()
        if type(start) not in _KINDS:
            raise OptionError(
                "adapter_model: expected a LinearAdapter, a LowRankAdapter or a TwoLayerAdapter, "
                f"got {type(start).__name__}."
            )
        self._class = type(start)
        self._map, pulled = _KINDS[self._class]
        self._config = {} if self._class is LinearAdapter else start.config()
        arrays = {name: as_tensor(array.copy(), device) for name, array in start.arrays().items()}
        pairs = [(name, nn.Parameter(array.clone())) for name, array in arrays.items()]
        self.weights = nn.ParameterDict(pairs)  # of pairs, as a dict would be sorted
        self._start = {name: arrays[name] for name in pulled if name in arrays}

    def forward(self, queries: Tensor) -> Tensor:
        return self._map(dict(self.weights.items()), queries, self._config)

    def shrinkage(self) -> Tensor:
        """Return the squared distance of the weights from where they started, ``()``."""
        moved = [self.weights[name] - start for name, start in self._start.items()]
        total: Tensor = torch.stack([change.square().sum() for change in moved]).sum()
        return total

    def export(self) -> Adapter:
        """Return the adapter with the present weights."""
        arrays = {name: w.detach().cpu().numpy().copy() for name, w in self.weights.items()}
        return self._class.build(arrays, self._config)


def as_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


class TrainingDocuments:
    """Unit rows, ``(m, dim)``, on the device up to 512 MiB, else copied as steps need them."""

    def __init__(self, vectors: Vectors, device: torch.device) -> None:
        self._vectors, self._device, small = vectors, device, vectors.nbytes <= MOST_BYTES
        self._all: Tensor | None = as_tensor(l2_normalize(vectors), device) if small else None

    def take(self, rows: Rows) -> Tensor:
        """Return these rows, ``(n, dim)``."""
        if self._all is None:
            return as_tensor(NormalizedRows(self._vectors)[rows], self._device)
        # Three times as fast as brackets.
        return self._all.index_select(0, as_tensor(rows, self._device))

    def moment(self) -> Tensor:
        """Return the mean of ``d dᵀ`` over all documents, ``(dim, dim)``."""
        if self._all is not None:
            return torch.div(self._all.T @ self._all, len(self._vectors))
        return as_tensor(Spectrum(self._vectors).moment, self._device)


class Competition:
    """Which documents compete in a step, and which of them each query should rank first.

    A document stands for all of its text. Hard negatives compete like the documents that queries
    ask for. ``strict``: where the relevant documents are more than twice what may compete, they are
    drawn too; with all of hundreds per query, a step would cost many times as much.
    """

    def __init__(
        self,
        train: EncodedDataset,
        options: TrainingOptions,
        random: Generator,
        strict: bool = False,
    ) -> None:
        self._in_batch, self._most = options.loss == "mnr", options.max_candidates
        self._random, self._strict = random, strict
        first, nothing = train.canonical_rows, Qrels.from_lists([[]] * len(train.relevance))
        mined, self._hidden = train.negatives or nothing, train.hidden or nothing
        self._relevance, self._negatives = (
            replace(qrels, documents=first[qrels.documents]) for qrels in (train.relevance, mined)
        )
        asked = np.concatenate([self._relevance.documents, self._negatives.documents])
        self._pool = np.unique(first if options.loss == "corpus" else asked)
        self.most_scored = min(len(self._pool), self._most)

    @property
    def fixed(self) -> Rows | None:
        """The documents that compete in every step; None where they change."""
        return None if self._in_batch or len(self._pool) > self._most else self._pool

    def candidates(self, batch: Rows) -> Rows:
        """Return the documents that compete for a batch of queries, sorted."""
        if self.fixed is not None:
            return self.fixed
        relevant, hard = self._relevance.take(batch), self._negatives.take(batch).documents
        if self._in_batch:
            # One relevant document per query, as each (query, document) pair is one example; the
            # others are drawn in other epochs. Those of the batch's other queries compete.
            place = relevant.offsets[:-1] + self._random.integers(relevant.counts)
            return _union(relevant.documents[place], hard)
        own = _union(relevant.documents, hard)
        if self._strict:
            own = self._random.permutation(own)[: 2 * self._most]
        more = max(0, self._most - len(own))
        return _union(own, self._random.choice(self._pool, size=more, replace=False))

    def stands_for(self, candidates: Rows) -> float:
        """Return how many documents a candidate stands for."""
        return 1.0 if self._in_batch else len(self._pool) / len(candidates)

    def among(self, batch: Rows, candidates: Rows) -> tuple[Qrels, Qrels]:
        """Return a batch's relevant documents, and what does not compete for it, as candidates."""
        relevant, hidden = self._relevance.take(batch), self._hidden.take(batch)
        return relevant.among(candidates), hidden.among(candidates)


def _union(*rows: Rows) -> Rows:
    """Return the different ones, sorted; for thousands faster than ``np.unique``, which hashes."""
    ordered = np.sort(np.concatenate(rows))
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def ranking_nll(
    queries: Tensor,
    documents: Tensor,
    relevant: Qrels,
    *,
    temperature: Tensor | float,
    stands_for: float = 1.0,
    hidden: Qrels | None = None,
) -> Tensor:
    """Return the mean cross-entropy in nats of the candidates each query should rank first, ``()``.

    ``(batch, dim)`` queries and ``(candidates, dim)`` documents are unit rows. All ``relevant``
    documents of a query share its target mass, so that none is ever a negative; ``hidden`` ones do
    not compete. The temperature is in cosine units, ``> 0``: at .05, a lead of .05 makes a document
    ``e`` times likelier. Where candidates are drawn from a corpus, each irrelevant one
    ``stands_for`` its size over their number, ``>= 1``. Source: Henderson et al. 2017,
    arXiv:1705.00652, section 4.4 (in-batch negatives); Cao et al. 2007 (ListNet), eq. 3 for several
    relevant documents; Jean et al. 2015, arXiv:1412.2007, section 3.1 (a sample that stands for
    all).
    """
    logits = (queries / temperature) @ documents.T
    entries = _entries(relevant, logits.device)
    each = (1.0 / relevant.counts[relevant.queries]).astype(np.float32)
    shares = as_tensor(each, logits.device).to(logits.dtype)
    if stands_for > 1.0:  # lowers the relevant ones, which is to raise all others
        lower = torch.full_like(shares, -math.log(stands_for))
        logits.index_put_(entries, lower, accumulate=True)
    if hidden is not None and len(hidden.documents):
        logits = logits.index_put(_entries(hidden, logits.device), logits.new_tensor(NEVER))
    wanted = torch.zeros_like(logits)
    wanted[entries] = shares
    return nn.functional.cross_entropy(logits, wanted)


def _entries(qrels: Qrels, device: torch.device) -> tuple[Tensor, Tensor]:
    return as_tensor(qrels.queries, device), as_tensor(qrels.documents, device)
