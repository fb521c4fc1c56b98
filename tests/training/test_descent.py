from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llama_index_embeddings_adapted.adapters.maps import LinearAdapter, LowRankAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.training.auto import descent, pipelines
from llama_index_embeddings_adapted.training.auto.cross_fitting import folds
from llama_index_embeddings_adapted.training.auto.selection import FoldJudge
from llama_index_embeddings_adapted.training.closed_form import narrowed, span
from llama_index_embeddings_adapted.training.modules import ranking_nll
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.support.synthetic import found_first, rotated_corpus, several_answers


def differentiated(data: EncodedDataset, run: Any, both: bool, anchor: float) -> list[np.ndarray]:
    """The same step by torch: gradients of the maps, bias in the last column."""
    parts = [run._query, run._document][: 1 + both]
    maps = [torch.tensor(side.value, requires_grad=True) for side in parts]
    queries, base = torch.tensor(data.queries), torch.tensor(l2_normalize(data.queries))
    documents = torch.tensor(l2_normalize(data.documents))

    def applied(weights: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors @ weights[:, :-1].T + weights[:, -1], dim=1)

    adapted, moved = applied(maps[0], queries), documents
    if both:
        moved = applied(maps[1], documents)
    loss = ranking_nll(adapted, moved, data.relevance, temperature=0.05)
    loss = loss + anchor * (adapted @ moved.T - base @ documents.T).square().mean()
    for weights, side in zip(maps, parts, strict=True):
        loss = loss + 0.01 * (weights - torch.tensor(side.start)).square().sum()
    torch.autograd.backward(loss)
    return [weights.grad.numpy() for weights in maps if weights.grad is not None]


@pytest.mark.parametrize("both", [False, True], ids=["query", "both"])
def test_a_step_follows_the_gradient_of_the_loss(both, monkeypatch):
    data = several_answers()
    random = np.random.default_rng(0)
    start = LinearAdapter(np.eye(8) + 0.2 * random.standard_normal((8, 8)), np.full(8, 0.1))
    anchor = 0.0 if both else 30.0  # where documents move, it is estimated from a sample
    options = TrainingOptions(batch_size=60, loss="corpus", max_grad_norm=1e9)
    run = descent._Descent(data, start, options, both, None)
    run._anchor = anchor
    run._moment = np.asarray(data.documents.T @ data.documents / 40)
    run._query.value += np.float32(0.05)
    found: dict[int, np.ndarray] = {}
    keep: Any = lambda self, gradient, *_: found.update({id(self): gradient})  # noqa: E731
    monkeypatch.setattr(descent._Weights, "move", keep)
    run.step(1.0)
    sides = [run._query, run._document][: 1 + both]
    expected = differentiated(data, run, both, anchor)
    for side, gradient in zip(sides, expected, strict=True):
        assert np.allclose(found[id(side)], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", ["queried", "mnr", "corpus"])
def test_documents_that_are_drawn_stand_for_all_and_maps_learn_from_them(loss):
    data, _ = rotated_corpus(documents=200)
    free = {"learning_rate": 0.01, "anchor": 0.0, "shrinkage": 0.0}
    options = TrainingOptions(loss=loss, max_candidates=50, **free)
    adapter = descent.descend(data, LinearAdapter.identity(12), options)
    before = found_first(data, data.queries, data.documents)
    assert found_first(data, adapter.apply(data.queries), data.documents) > before + 0.5
    again = descent.descend(data, LinearAdapter.identity(12), options)
    assert adapter == again


WIDE = np.linalg.qr(np.random.default_rng(5).standard_normal((40, 12)))[0].astype(np.float32)


def test_all_directions_of_short_vectors_are_kept_and_the_main_ones_of_wide():
    data, _ = rotated_corpus(documents=60)
    turned = span(data)
    assert np.allclose(turned.T @ turned, np.eye(12), atol=1e-5)
    wide = replace(data, queries=data.queries @ WIDE.T, documents=data.documents @ WIDE.T)
    directions = span(wide, 12)
    assert directions.shape == (40, 12)
    assert np.allclose(directions @ directions.T @ wide.queries.T, wide.queries.T, atol=1e-4)
    narrow = narrowed(wide, directions)
    assert np.allclose(narrow.queries @ narrow.documents.T, data.queries @ data.documents.T,
                       atol=1e-4)  # fmt: skip


LINEAR, MAPPED = pipelines.LinearSpec(), pipelines.TwoSidedSpec()
KERNEL = pipelines.KernelSpec(pipelines.LinearSpec(0.5), 0.2, 1.0)
WIDER = pipelines.KernelSpec(pipelines.CorpusSpec(0.5), 0.4, 2.0)
GATED = pipelines.QueryOnMappedSpec(MAPPED, pipelines.GateSpec(pipelines.IDENTITY, WIDER, 0.0))


@pytest.mark.parametrize("spec", [LINEAR, pipelines.NudgeSpec(GATED)], ids=["map", "all"])
def test_a_widened_adapter_finds_what_it_finds_along_the_directions(spec):
    data, _ = rotated_corpus(documents=60)
    wide = replace(data, queries=data.queries @ WIDE.T, documents=data.documents @ WIDE.T)
    directions = span(wide, 12)
    narrow = narrowed(wide, directions)
    fitter = pipelines.PipelineFitter(narrow, TrainingOptions(learning_rate=0.003))
    adapter, whole = fitter.fit(spec), fitter.fit_whole(spec, directions)
    assert isinstance(whole, LowRankAdapter) == (spec == LINEAR)  # the smaller one
    scores = []
    for found, part in ((adapter, narrow), (whole, wide)):
        documents = l2_normalize(found.apply(part.documents, "document", part.keys))
        scores.append(l2_normalize(found.apply(part.queries)) @ documents.T)
    assert np.allclose(*scores, atol=1e-4)
    aside = np.eye(40, dtype=np.float32) - directions @ directions.T
    if spec == LINEAR:  # what lies aside of the directions stays
        assert isinstance(whole, LowRankAdapter)
        assert np.allclose(aside @ whole.up, 0, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        pipelines.IDENTITY,
        pipelines.WhiteningSpec(0.25),
        pipelines.WhiteningSpec(0.4),
        pipelines.MnrSpec(0.75),
        LINEAR,
        KERNEL,
        pipelines.GateSpec(pipelines.MnrSpec(), KERNEL, -2.0),
        MAPPED,
        GATED,
    ],
    ids=str,
)
def test_what_a_mixture_scores_is_what_its_adapter_finds(spec):
    data, _ = rotated_corpus(documents=60)
    fold = next(iter(folds(data)))
    fitter = pipelines.PipelineFitter(fold.train, TrainingOptions(learning_rate=0.003))
    judge = FoldJudge(fold, fitter)
    scores = [judge.prepared(other) for other in (pipelines.IDENTITY, spec)][-1]()
    exact = fold.score(fitter.fit(spec))
    assert np.allclose(scores, exact, atol=1e-9)
    assert 0 < exact.mean() < 1
