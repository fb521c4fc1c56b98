import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datasets", reason="extra 'composed' is missing")

import torch

from llama_index_embeddings_adapted.composed import training
from llama_index_embeddings_adapted.composed.small_model import compose
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.page import Texts
from llama_index_embeddings_adapted.training.options import ComposedOptions
from tests.support.synthetic import encoded
from tests.support.tiny import tiny_model


def judged(relevant: list[list[bool]], pairs: list[tuple[int, int]], **more: Any) -> dict[str, Any]:
    return {"relevant": torch.tensor(relevant), "pairs": torch.tensor(pairs), **more}


def test_scores_that_say_nothing_cost_the_log_of_candidates_that_are_no_answer():
    one = torch.ones(3, 4)
    batch = judged(torch.eye(3).bool().tolist(), [(0, 0), (1, 1), (2, 2)])
    loss = training.composed_nll(one, one, batch, ComposedOptions(label_smoothing=0.0))
    assert float(loss) == pytest.approx(math.log(3), abs=1e-5)
    queries = torch.tensor([[1.0, 0.0]])
    documents = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    batch = judged([[True, True, False]], [(0, 0)])
    options = ComposedOptions(weight=1, temperature=1.0, label_smoothing=0.0)
    loss = training.composed_nll(queries, documents, batch, options)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_composed_vectors():
    random = np.random.default_rng(0)
    b, a = (np.float32(random.standard_normal((2, 5, 4))) for _ in range(2))
    queries, documents = (compose(b[side], a[side], 0.5) for side in (0, 1))
    logits = torch.from_numpy(queries @ documents.T) / 0.05
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(5), label_smoothing=0.2)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in b]
    frozen = torch.from_numpy(unit[0] @ unit[1].T)
    batch = judged(torch.eye(5).bool().tolist(), [(row, row) for row in range(5)], frozen=frozen)
    loss = training.composed_nll(*map(torch.from_numpy, a), batch, ComposedOptions(weight=0.5))
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def shared_documents() -> EncodedDataset:
    """Documents 0 and 3 have one text; query 2 has two answers; document 1 has three queries."""
    random = np.random.default_rng(0)
    vectors = [random.standard_normal((count, 8)) for count in (6, 5)]
    data = encoded(*vectors, [[0], [3], [0, 2], [1], [1], [1]])
    return EncodedDataset(**{**vars(data), "canonical_rows": np.array([0, 1, 2, 0, 4])})


def collated(features: list[dict[str, list[int]]], **kwargs: Any) -> dict[str, Any]:
    data = shared_documents()
    texts = Texts(tuple(f"query {q}" for q in data.query_ids), ("d",) * len(data.document_ids))
    return training.Collator(tiny_model(), data, texts, **{"frozen": True, **kwargs})(features)


def test_an_epoch_visits_each_document_with_its_queries_in_groups():
    found = training.training_groups(shared_documents(), per_group=4, negatives=0)
    asked = {0: [0, 1, 2], 2: [2], 1: [3, 4, 5]}.items()
    assert found == [{"document": [d], "queries": rows, "hard": []} for d, rows in asked]
    found = training.training_groups(shared_documents(), per_group=2, negatives=0)
    assert [place["queries"] for place in found if place["document"] == [1]] == [[3, 4], [5]]


def test_hard_negatives_are_mined_and_never_relevant():
    data = shared_documents()
    found = training.training_groups(data, per_group=4, negatives=2)
    assert any(place["hard"] for place in found)
    for place in found:
        found = [d for q in place["queries"] for d in data.relevance.relevant_to(q)]
        answers = {int(data.canonical_rows[d]) for d in found}
        assert len(place["queries"]) > 1 or not answers & set(place["hard"])


def test_a_batch_holds_every_text_once_and_knows_what_answers_what():
    batch = collated(training.training_groups(shared_documents(), per_group=2, negatives=0))
    assert batch["query_input_ids"].shape[0] == 6
    assert batch["document_input_ids"].shape[0] == 3
    label = batch["label"]
    assert label["frozen"].shape == label["relevant"].shape == (6, 3)
    assert len(label["pairs"]) == 7  # query 2 asks for two documents
    assert label["relevant"][tuple(label["pairs"].T)].all()
    assert label["relevant"].sum() == 7
    groups = training.training_groups(shared_documents(), per_group=4, negatives=0)
    batch = collated(groups, frozen=False)
    assert "frozen" not in batch["label"]


def gradients(mini_batch_size: int) -> tuple[float, torch.Tensor]:
    model = tiny_model()
    model.train()
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    texts = ["short", "a longer text of words", "another one here", "x y z", "five", "six seven"]
    features = [model.preprocess(texts), model.preprocess([f"about {text}" for text in texts])]
    batch = judged(torch.eye(6).bool().tolist(), [(i, i) for i in range(6)])
    options = ComposedOptions(mini_batch_size=mini_batch_size)
    loss = training.ComposedLoss(model, options)(features, batch)
    torch.autograd.backward(loss)
    found = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return float(loss.detach()), torch.cat(found)


def test_cached_gradients_are_those_of_the_whole_batch():
    whole, cached = gradients(64), gradients(2)
    assert cached[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(cached[1], whole[1], rtol=1e-3, atol=1e-5)
