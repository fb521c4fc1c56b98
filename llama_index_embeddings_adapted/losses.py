"""Loss functions, pure in their tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


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
