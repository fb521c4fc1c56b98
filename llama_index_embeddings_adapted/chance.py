"""Do the relevance judgements have anything to do with the base model?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.evaluation import search
from llama_index_embeddings_adapted.relevance import Relevance
from llama_index_embeddings_adapted.significance import paired_difference

_MOST_QUERIES = 1_000
_METRIC = "mrr@10"
_LEVEL = 0.01  # one-sided


def at_chance(data: EncodedDataset, *, seed: int = 0) -> bool:
    """Whether the base model ranks the relevant documents no better than others dealt at random.

    Such judgements are nearly always a mistake: ids that do not belong together, or shuffled
    columns. An adapter can still fit them, and even pass cross-fitting, as it learns which
    documents are asked for at all; served, it ruins what the base model can do.

    Args:
        data: Queries with their relevant documents; 1,000 of them are looked at.
        seed: Of the sample and of the deal.
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.permutation(len(data.relevance))[:_MOST_QUERIES])
    sample = data.take(rows)
    relevance = sample.relevance
    # The same documents as often, so that one that suits every query is no advantage.
    dealt = Relevance(relevance.offsets, random.permutation(relevance.documents), relevance.grades)
    found, by_chance = (
        search(replace(sample, relevance=truth), sample.queries, sample.documents).values(_METRIC)
        for truth in (relevance, dealt)
    )
    difference = paired_difference(by_chance, found, metric=_METRIC, seed=seed)
    return not (difference.mean > 0 and difference.p_value <= 2 * _LEVEL)
