"""The ranking loss on composed cosines, with gradients cached where a batch outgrows memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn

from llama_index_embeddings_adapted.composed_options import ComposedOptions


def composed_nll(
    queries: Tensor,
    documents: Tensor,
    judged: dict[str, Tensor],
    *,
    weight: float,
    temperature: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Draw each query towards its document, by the cosine of the composed vectors.

    The black box is frozen, so all it contributes is its cosine of each query and document.

    Args:
        queries: ``(queries, dim)``, of the small model, any length.
        documents: ``(documents, dim)``, likewise.
        judged: ``"frozen"``: ``(queries, documents)``, cosines of the black box; absent where
            there is none, and the small model's own cosine counts. ``"pairs"``: ``(pairs, 2)``,
            rows of queries and of documents that answer them. ``"relevant"``: ``(queries,
            documents)``, True where a document answers a query: none of a query's documents
            competes with another of them.
        weight: λ.
        temperature: In cosine units.
        label_smoothing: Share of the target spread evenly over the candidates of a pair.

    Returns:
        ``()``, mean over the pairs, in nats.

    Source:
        Zhang et al. 2024, arXiv:2402.12177, eq. 4. The mask is ours.
    """
    small = nn.functional.normalize(queries.float(), dim=1) @ (
        nn.functional.normalize(documents.float(), dim=1).T
    )
    frozen = judged.get("frozen")
    cosines = small if frozen is None else (frozen + weight**2 * small) / (1 + weight**2)
    rows, targets = judged["pairs"].unbind(1)
    allowed = ~judged["relevant"][rows]
    allowed[torch.arange(len(rows), device=allowed.device), targets] = True
    logits = (cosines[rows] / temperature).masked_fill(~allowed, -torch.inf)
    log_shares = logits - logits.logsumexp(dim=1, keepdim=True)
    right = log_shares.gather(1, targets[:, None]).squeeze(1)
    spread = log_shares.masked_fill(~allowed, 0.0).sum(dim=1) / allowed.sum(dim=1)
    return -((1 - label_smoothing) * right + label_smoothing * spread).mean()


class ComposedLoss(CachedLossMixin, nn.Module):
    """What the sentence-transformers trainer minimises: :func:`composed_nll` of a batch.

    The trainer hands over the tokens of the queries and of the documents, and the batch's
    judgements as "labels". A batch with more tokens than ``mini_batch_size`` of its longest texts
    goes through the library's cached gradients.

    Args:
        model: The small model.
        options: λ, temperature, smoothing, mini-batch size.
    """

    def __init__(self, model: Any, options: ComposedOptions) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = options.mini_batch_size
        self._options = options
        self._seen: list[Tensor] = []

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Any) -> Tensor:
        """Return the loss of a batch, ``()``."""
        features = list(sentence_features)
        tokens = [column["input_ids"] for column in features]
        longest = max(column.shape[1] for column in tokens)
        if sum(column.numel() for column in tokens) > self.mini_batch_size * longest:
            loss: Tensor = self.forward_cached(features, labels)
        else:
            embedded = [[self.model(column)["sentence_embedding"]] for column in features]
            loss = self.calculate_loss(embedded, labels)
        self._seen.append(loss.detach())
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of embedded mini-batches, queries first; back-propagate if asked."""
        queries, documents = (torch.cat(parts) for parts in reps)
        loss = composed_nll(
            queries,
            documents,
            labels,
            weight=self._options.weight,
            temperature=self._options.temperature,
            label_smoothing=self._options.label_smoothing,
        )
        if with_backward:
            torch.autograd.backward(loss)
            return loss.detach()
        return loss

    def take_mean(self) -> float:
        """Return the mean loss of the steps since the last call; NaN where there were none."""
        seen, self._seen = self._seen, []
        return float(torch.stack(seen).mean()) if seen else float("nan")
