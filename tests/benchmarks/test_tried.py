"""What was tried on top of the plain maps trains as the package does, but for what is tried."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.quality import tried
from llama_index_embeddings_adapted.training import trainer
from llama_index_embeddings_adapted.training.auto.cross_fitting import folds
from llama_index_embeddings_adapted.training.closed_form import Spectrum
from llama_index_embeddings_adapted.training.modules import Targets, ranking_nll
from tests.support.synthetic import rotated_corpus

TEMPERATURE = 0.1


def rows(count: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(drawn, dim=1)


TARGETS = Targets(torch.tensor([0, 1, 2]), torch.tensor([4, 1, 1]), torch.ones(3))


@pytest.mark.parametrize("stands_for", [1.0, 7.0])
def test_a_margin_has_to_be_led_by(stands_for: float) -> None:
    queries, documents = rows(3, 0), rows(6, 1)
    scores = queries @ documents.T / TEMPERATURE
    relevant = torch.zeros_like(scores)
    relevant[TARGETS.queries, TARGETS.documents] = 1.0
    lower = 0.03 / TEMPERATURE + math.log(stands_for)
    expected = nn.functional.cross_entropy(scores - lower * relevant, relevant)
    found = tried._with_margin(0.03)(
        queries, documents, TARGETS, temperature=TEMPERATURE, stands_for=stands_for
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_of_a_symmetric_loss_half_is_that_of_documents() -> None:
    queries, documents = rows(3, 0), rows(6, 1)
    scores = (queries @ documents.T / TEMPERATURE).double()
    back = [
        -torch.log_softmax(scores[:, 4], dim=0)[0],
        -torch.log_softmax(scores[:, 1], dim=0)[1:].mean(),
    ]
    there = ranking_nll(queries, documents, TARGETS, temperature=TEMPERATURE, stands_for=5.0)
    found = tried._symmetric(queries, documents, TARGETS, temperature=TEMPERATURE, stands_for=5.0)
    expected = (float(there) + float(sum(back)) / 2) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_another_loss_is_there_for_as_long_as_it_is_tried() -> None:
    with tried._instead("ranking_nll", tried._symmetric):
        assert trainer.ranking_nll is tried._symmetric
    assert trainer.ranking_nll is ranking_nll


def test_every_variant_trains_as_the_package_does_now(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer candidates than documents, as on real sets: losses are told what they stand for.
    monkeypatch.setattr(tried, "_OPTIONS", replace(tried._OPTIONS, max_candidates=24))
    data, _ = rotated_corpus(documents=40, dim=8)
    fold = next(iter(folds(data, seed=0)))
    made = dict(tried._variants(fold, 3, Spectrum(data.documents)))
    assert len(made) == 40
    assert all(np.isfinite(fold.score(adapter)).all() for adapter in made.values())
    changed = ("linear, symmetric loss", "linear, margin 0.05", "linear, hard negatives")
    plain, others = made["linear"], [made[name] for name in changed]
    assert all(np.abs(plain.weight - other.weight).max() > 1e-4 for other in others)
