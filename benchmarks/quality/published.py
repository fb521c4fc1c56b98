"""Ways to adapt a black box that come without a package, written here after their papers.

Each is fitted on ``(learnt, judged)``, the encoded train and dev sets, with one of its settings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from scipy.sparse import csr_array, eye_array, vstack

from llama_index_embeddings_adapted.core.arrays import Rows, Vectors, l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation import retrieval
from llama_index_embeddings_adapted.evaluation.retrieval import RetrievalScores, search

Ranker = Callable[[EncodedDataset], RetrievalScores]
Setting = dict[str, Any]
_BLOCK = 500  # queries scored at once

ROCCHIO = [{"documents": 1, "weight": 0.0}] + [
    {"documents": k, "weight": weight}
    for k, weight in product((1, 3, 5, 10), (0.05, 0.1, 0.2, 0.4, 0.8))
]
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
PEFA_XS = [{"share": share} for share in _SHARES]
PEFA_XL = [{"share": share, "neighbours": k} for share, k in product(_SHARES, (4, 16, 32))]
SEARCH_ADAPTOR = [
    {"rate": rate, "recovery": recovery, "prediction": 0.1}
    for rate, recovery in product((1e-3, 1e-4), (0.1, 0.3, 1.0))
]
STEPS, EVERY, PATIENCE, BATCH = 2_000, 50, 3, 128


def rocchio(learnt: EncodedDataset, judged: EncodedDataset, setting: Setting, seed: int) -> Ranker:
    """Pseudo-relevance feedback on vectors (Rocchio 1971): the mean of the first k is added."""

    def ranked(data: EncodedDataset) -> RetrievalScores:
        queries, documents = l2_normalize(data.queries), l2_normalize(data.documents)
        first, _ = top_k(queries, documents, setting["documents"])
        moved = queries + setting["weight"] * documents[first].mean(axis=1)
        return search(data, moved, documents)

    return ranked


def pefa_xs(learnt: EncodedDataset, judged: EncodedDataset, setting: Setting, seed: int) -> Ranker:
    """PEFA-XS (Chang et al. 2024, arXiv:2312.02429): documents move to the queries they answered.

    As its authors do, a document's own text counts as one of its queries.
    """

    def ranked(data: EncodedDataset) -> RetrievalScores:
        documents = l2_normalize(data.documents)
        asked = l2_normalize(_answers(learnt, data).T @ l2_normalize(learnt.queries) + documents)
        moved = setting["share"] * documents + (1 - setting["share"]) * asked
        return _ranked(data, lambda rows: l2_normalize(data.queries[rows]) @ moved.T)

    return ranked


def pefa_xl(learnt: EncodedDataset, judged: EncodedDataset, setting: Setting, seed: int) -> Ranker:
    """PEFA-XL: the score is mixed with that of the nearest training queries' documents."""

    def ranked(data: EncodedDataset) -> RetrievalScores:
        documents = l2_normalize(data.documents)
        bank = np.concatenate([l2_normalize(learnt.queries), documents])
        answers = csr_array(vstack([_answers(learnt, data), eye_array(len(documents))]))

        def scores(rows: Rows) -> Vectors:
            queries = l2_normalize(data.queries[rows])
            near, similar = top_k(queries, bank, setting["neighbours"])
            at = np.arange(0, near.size + 1, near.shape[1])
            weights = csr_array((similar.ravel(), near.ravel(), at), (len(near), len(bank)))
            voted = (weights @ answers).toarray() / near.shape[1]
            return setting["share"] * (queries @ documents.T) + (1 - setting["share"]) * voted

        return _ranked(data, scores)

    return ranked


def _answers(learnt: EncodedDataset, data: EncodedDataset) -> csr_array:
    """``(training queries, documents of data)``: 1 where relevant."""
    places = {document: row for row, document in enumerate(data.document_ids)}
    there = np.array([places.get(document, -1) for document in learnt.document_ids])
    columns, rows = there[learnt.relevance.documents], learnt.relevance.queries
    kept = columns >= 0
    shape = (len(learnt.query_ids), len(places))
    return csr_array((np.ones(kept.sum()), (rows[kept], columns[kept])), shape)


def _ranked(data: EncodedDataset, scores: Callable[[Rows], Vectors]) -> RetrievalScores:
    """Rank by scores that are no cosines of two vectors, a block of queries at a time."""
    depth = retrieval._depth(data, retrieval.DEFAULT_KS)
    blocks = np.array_split(np.arange(len(data.query_ids)), -(-len(data.query_ids) // _BLOCK))
    first = [np.argsort(-scores(rows), axis=1, kind="stable")[:, :depth] for rows in blocks]
    return retrieval.scores_of(data, np.concatenate(first), retrieval.DEFAULT_KS)


def search_adaptor(learnt: EncodedDataset, judged: EncodedDataset, setting: Any, seed: int) -> Any:
    """Search-Adaptor (Yoon et al. 2024, arXiv:2310.08750): one residual map for both sides.

    Of documents of a batch, every one that is less relevant to a query than another costs the
    logistic loss of the difference of their cosines; a recovery term keeps vectors near the base
    model's, and a predictor of the query from the document, thrown away later, keeps them apart.
    The map starts at zero; of every fiftieth step, the one that is best on dev is kept.
    """
    import torch

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    sides = learnt.queries, learnt.documents
    queries, documents = (torch.from_numpy(l2_normalize(side)) for side in sides)
    relevance = _grades(learnt)
    adaptor, predictor = (torch.nn.Linear(queries.shape[1], queries.shape[1]) for _ in range(2))
    torch.nn.init.zeros_(adaptor.weight)
    torch.nn.init.zeros_(adaptor.bias)
    weights = [*adaptor.parameters(), *predictor.parameters()]
    optimizer = torch.optim.Adam(weights, lr=setting["rate"])
    best, kept, since = -1.0, adaptor, 0
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            found = search(judged, *_both(adaptor, judged))["ndcg@10"]
            since = 0 if found > best else since + 1
            if found > best:
                best, kept = found, copy.deepcopy(adaptor)
            if since == PATIENCE:
                break
        rows = random.permutation(len(queries))[:BATCH]
        columns = np.unique([random.choice(learnt.relevance.relevant_to(row)) for row in rows])
        grades = torch.from_numpy(relevance[rows][:, columns].toarray())
        loss = _loss(adaptor, predictor, queries[rows], documents[columns], grades, setting)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda data: search(data, *_both(kept, data))


def _grades(learnt: EncodedDataset) -> csr_array:
    relevance = learnt.relevance
    shape = (len(learnt.query_ids), len(learnt.document_ids))
    places = (relevance.queries, relevance.documents)
    return csr_array((relevance.grades.astype(np.float32), places), shape)


def _loss(
    adaptor: Any, predictor: Any, queries: Any, documents: Any, grades: Any, setting: Setting
) -> Any:
    from torch.nn.functional import normalize, softplus

    moves = adaptor(queries), adaptor(documents)
    asked, found = queries + moves[0], documents + moves[1]
    scores = normalize(asked) @ normalize(found).T
    rows, better = grades.nonzero(as_tuple=True)
    lead = (grades[rows, better, None] - grades[rows]).clamp(min=0)
    ranking = (lead * softplus(scores[rows] - scores[rows, better, None])).sum() / len(queries)
    recovery = sum(move.abs().sum(dim=1).mean() for move in moves)
    missed = asked[rows] - predictor(found[better])
    prediction = missed.abs().sum(dim=1).mean()
    return ranking + setting["recovery"] * recovery + setting["prediction"] * prediction


def _both(adaptor: Any, data: EncodedDataset) -> tuple[Vectors, Vectors]:
    weight, bias = (each.detach().numpy() for each in (adaptor.weight, adaptor.bias))
    vectors = (l2_normalize(each) for each in (data.queries, data.documents))
    queries, documents = (each + each @ weight.T + bias for each in vectors)
    return queries, documents
