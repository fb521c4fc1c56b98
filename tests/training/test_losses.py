import math
from types import SimpleNamespace

import pytest
import torch

from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.training.modules import ranking_nll
from llama_index_embeddings_adapted.training.trainer import _Run

FIRST, BOTH = Qrels.from_lists([[0]]), Qrels.from_lists([[0, 1]])


def at(*degrees: float) -> torch.Tensor:
    """Vectors on the unit circle, so that cosines are plain to see."""
    radians = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_scores_that_say_nothing_cost_log_of_the_candidates_and_a_lead_as_its_temperature():
    loss = ranking_nll(at(0), at(90, 270), FIRST, temperature=0.05)
    assert loss.item() == pytest.approx(math.log(2))
    cosine = math.degrees(math.acos(0.95))
    loss = ranking_nll(at(0), at(0, cosine), FIRST, temperature=0.05)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_two_relevant_documents_share_the_target_and_neither_is_a_negative():
    queries = at(10).requires_grad_()
    loss = ranking_nll(queries, at(0, 20), BOTH, temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    # Between the two, neither pulls harder.
    assert queries.grad.norm().item() == pytest.approx(0.0, abs=1e-12)


def test_the_loss_is_the_mean_over_queries_and_a_candidate_may_stand_for_three():
    one = ranking_nll(at(0), at(0, 90), FIRST, temperature=1.0)
    two = ranking_nll(at(90), at(0, 90), BOTH, temperature=1.0)
    entries = Qrels.from_lists([[0], [0, 1]])
    together = ranking_nll(at(0, 90), at(0, 90), entries, temperature=1.0)
    assert together.item() == pytest.approx((one.item() + two.item()) / 2)
    # Relevant documents stand for themselves.
    query, three = at(5), at(0, 20, 90)
    sampled = ranking_nll(query, three, BOTH, temperature=0.5, stands_for=3.0)
    whole = ranking_nll(query, at(0, 20, 90, 90, 90), BOTH, temperature=0.5)
    assert sampled.item() == pytest.approx(whole.item())


def test_score_drift_is_the_mean_squared_change_in_cosine_over_all_documents():
    before, after, documents = at(0, 90), at(10, 60), at(0, 30, 200)
    changes = after @ documents.T - before @ documents.T
    run = SimpleNamespace(_moment=documents.T @ documents / 3)
    drift = _Run._drift(run, after - before)
    assert drift.item() == pytest.approx(changes.square().mean().item())
    assert drift.item() > 0.01
