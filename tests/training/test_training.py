from dataclasses import replace

import numpy as np
import pytest
import torch

from llama_index_embeddings_adapted import Adapter, LinearAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import OptionError, TrainingError
from llama_index_embeddings_adapted.evaluation import held_out
from llama_index_embeddings_adapted.training import trainer as training_module
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import Fit, fit, refit
from tests.support.processes import fresh
from tests.support.synthetic import encoded, rotated_corpus


def parts(data: EncodedDataset) -> tuple[EncodedDataset, held_out.Validation]:
    rows, held = held_out.hold_out(data, queries=0.2, documents=0.2, seed=0)
    train, other = data.take(rows), data.take(held)
    return train, held_out.Validation(held_out.HeldOut(other, held_out.known_mask(train, other)))


def learn(data: EncodedDataset, start: Adapter | None = None, **options: object) -> Fit:
    train, validation = parts(data)
    settings = {"shrinkage": 0.0, "anchor": 0.0, "learning_rate": 0.01, "epochs": 30, **options}
    start = start or LinearAdapter.identity(data.queries.shape[1])
    return fit(train, validation, start, TrainingOptions(**settings), show_progress=False)


@pytest.mark.parametrize("loss", ["queried", "mnr", "corpus"])
def test_every_loss_undoes_a_rotation_of_the_queries(loss):
    data, rotation = rotated_corpus()
    found = learn(data, loss=loss)
    gain = found.history[found.best_epoch].scores
    assert gain["known"] > 0.3
    assert gain["new"] > 0.3  # also for documents that no training query asked for
    assert isinstance(found.adapter, LinearAdapter)
    # W must take R d back to d: W R is close to a multiple of the identity.
    undone = found.adapter.weight @ rotation
    undone /= np.trace(undone) / len(undone)
    assert np.linalg.norm(undone - np.eye(len(undone))) < 0.4 * np.linalg.norm(np.eye(len(undone)))


def test_a_falling_rate_starts_high_and_ends_at_zero():
    data, _ = rotated_corpus(documents=40)  # 120 queries
    start = LinearAdapter.identity(data.queries.shape[1])

    def rates(steps: int, **settings: int) -> list[float]:
        options = TrainingOptions(decay=True, epochs=2, batch_size=50, **settings)
        run = training_module._Run(data, start, options, None)
        return [run._rate(step) for step in range(steps)]

    two_epochs_of_three = [8 * left / 6 for left in range(6, -1, -1)]
    assert rates(7) == pytest.approx(two_epochs_of_three)
    assert rates(5, steps_per_epoch=2) == pytest.approx([8.0, 6.0, 4.0, 2.0, 0.0])
    assert rates(3, warmup_steps=2) == pytest.approx([8 / 3, 8 * 5 / 6 * 2 / 3, 8 * 4 / 6])


def test_a_two_layer_adapter_learns_from_a_zero_residual():
    found = learn(rotated_corpus()[0], TwoLayerAdapter.identity(12, hidden=64))
    assert isinstance(found.adapter, TwoLayerAdapter)
    assert found.history[found.best_epoch].scores["overall"] > 0.2


def test_the_same_seed_gives_bit_equal_weights_also_of_a_refit_of_known_epochs():
    data, _ = rotated_corpus(documents=60)
    first, again, other = (learn(data, epochs=3, seed=seed).adapter for seed in (1, 1, 2))
    assert first == again
    assert first != other
    start, options = LinearAdapter.identity(12), TrainingOptions(epochs=99)
    one = refit(data, start, options, epochs=1, show_progress=False)
    two = refit(data, start, options, epochs=2, show_progress=False)
    assert one == refit(data, start, options, epochs=1, show_progress=False)
    assert one != two


def test_nothing_to_learn_keeps_the_base_model():
    random = np.random.default_rng(0)
    corpus = random.standard_normal((100, 12))
    answers = np.repeat(np.arange(100), 3)
    queries = corpus[answers] + 0.01 * random.standard_normal((300, 12))
    found = learn(encoded(queries, corpus, [[a] for a in answers]), epochs=3, patience=2)
    assert found.best_epoch == 0
    assert np.array_equal(found.adapter.weight, np.eye(12))


def test_a_relevant_document_its_twin_and_others_of_the_query_are_never_negatives():
    # Two copies of one document, one of them not judged: with the copy as a negative the query
    # would be pushed away from its own answer.
    queries = np.eye(4)[[0, 0, 1, 1]]
    documents = np.eye(4)[[0, 0, 1, 2]]
    data = encoded(queries, documents, [[0], [1], [2], [2]])
    data = replace(data, canonical_rows=np.array([0, 0, 2, 3]))
    options = TrainingOptions(loss="corpus", shrinkage=0.0, anchor=0.0, batch_size=4)
    run = training_module._Run(data, LinearAdapter.identity(4), options, None)
    candidates = run._competition.candidates(np.arange(4))
    assert candidates.tolist() == [0, 2, 3]
    found, _ = run._competition.among(np.arange(4), candidates)
    assert found.documents.tolist() == [0, 0, 1, 1]
    documents = np.eye(3)
    data = encoded(np.eye(3)[[0, 1]], documents, [[0, 1], [1]])
    options = TrainingOptions(loss="mnr", batch_size=2)
    run = training_module._Run(data, LinearAdapter.identity(3), options, None)
    for _ in range(10):  # whichever document of query 0 is drawn
        candidates = run._competition.candidates(np.arange(2))
        found, _ = run._competition.among(np.arange(2), candidates)
        count = found.counts[0]
        assert count == len(candidates)  # all that is drawn is relevant to query 0


def test_a_large_corpus_is_sampled_to_the_bound_at_about_the_loss_of_the_whole():
    random = np.random.default_rng(0)
    relevant = [[int(row)] for row in random.integers(5_000, size=64)]
    data = encoded(random.standard_normal((64, 8)), random.standard_normal((5_000, 8)), relevant)
    options = TrainingOptions(loss="corpus", max_candidates=500, anchor=0, temperature=0.2)
    start, all_ = LinearAdapter.identity(8), replace(options, max_candidates=5_000)
    some, whole = (training_module._Run(data, start, each, None) for each in (options, all_))
    # Off by log(10) if it stood for itself.
    assert some.loss_now() == pytest.approx(whole.loss_now(), abs=0.1)
    candidates = some._competition.candidates(np.arange(64))
    assert len(candidates) <= 500 + 64
    assert set(np.unique(data.relevance.documents)) <= set(candidates.tolist())
    assert len(some._competition.among(np.arange(64), candidates)[0].documents) == 64


def test_the_optimizer_of_the_user_is_used_with_its_parameters():
    data, _ = rotated_corpus(documents=40)
    found = learn(data, optimizer_class=torch.optim.SGD, optimizer_params={"lr": 0.5}, epochs=2)
    assert len(found.history) == 3
    with pytest.raises(OptionError, match=r"optimizer_class=SGD.*nonsense"):
        learn(data, optimizer_class=torch.optim.SGD, optimizer_params={"lr": 1.0, "nonsense": 1})
    with pytest.raises(OptionError, match=r"optimizer_class=LBFGS.*'closure'"):
        learn(data, optimizer_class=torch.optim.LBFGS)


@pytest.mark.parametrize("rate", [1e6, float("1e30")])
def test_a_learning_rate_that_diverges_is_an_error_that_says_so(rate):
    data, _ = rotated_corpus(documents=40)
    with pytest.raises(TrainingError, match=r"diverged.*Lower the learning rate \(now 1e\+"):
        learn(data, learning_rate=rate, shrinkage=0.01)


def test_an_interrupt_keeps_the_best_so_far(monkeypatch):
    step, count = training_module._Run.step, 0

    def interrupted(self: object, batch: object) -> float:
        nonlocal count
        count += 1
        if count > 40:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(training_module._Run, "step", interrupted)
    with pytest.warns(UserWarning, match="interrupted; the adapter of epoch"):
        found = learn(rotated_corpus()[0])
    assert found.interrupted
    assert found.best_epoch > 0


def test_steps_per_epoch_and_warm_up_are_honoured():
    train, validation = parts(rotated_corpus()[0])
    seen: list[int] = []
    options = TrainingOptions(epochs=2, steps_per_epoch=3, warmup_steps=4)
    told = {"show_progress": False, "on_step": lambda step, export: seen.append(step)}
    fit(train, validation, LinearAdapter.identity(12), options, **told)
    assert seen == [1, 2, 3, 4, 5, 6]
    run = training_module._Run(train, LinearAdapter.identity(12), options, None)
    assert run._optimizer.param_groups[0]["lr"] == pytest.approx(options.learning_rate / 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "triplet"}, "loss: expected one of .*mnr.*got 'triplet'"),
        *[({n: 0}, f"{n}: expected a whole number >= 1, got 0") for n in ("epochs", "patience")],
        ({"batch_size": 2.5}, "batch_size: expected a whole number >= 1, got 2.5"),
        ({"learning_rate": 0}, "learning_rate: expected a number > 0"),
        ({"temperature": float("nan")}, "temperature: expected a number > 0"),
        ({"anchor": -1.0}, "anchor: expected a number >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        TrainingOptions(**options)


MEMORY = """
import numpy as np
import torch
from benchmarks.processes import memory
from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.evaluation.held_out import HeldOut, Validation, known_mask
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import fit
from tests.support.synthetic import encoded


random = np.random.default_rng(0)
documents = random.standard_normal((60_000, 256), dtype=np.float32)
answers = random.integers(60_000, size=640)
queries = documents[answers] + random.standard_normal((640, 256), dtype=np.float32)
data = encoded(queries, documents, [[int(a)] for a in answers])
train, held = data.take(np.arange(512)), data.take(np.arange(512, 640))
options = TrainingOptions(loss="corpus", epochs=1, max_candidates=10_000)
tiny = encoded(np.eye(4), np.eye(4), [[0], [1], [2], [3]])
small = Validation(HeldOut(tiny, known_mask(tiny, tiny)))
fit(tiny, small, LinearAdapter.identity(4), options, show_progress=False)  # loads what torch needs
before = memory("VmHWM")
validation = Validation(HeldOut(held, known_mask(train, held)))
fit(train, validation, LinearAdapter.identity(256), options, show_progress=False)
print((memory("VmHWM") - before) * 2**20 / documents.nbytes)
"""


@pytest.mark.slow
def test_a_corpus_of_60_000_trains_in_a_few_times_the_memory_of_its_vectors():
    # A copy of unit length to train on, one to validate on, and the blocks that are scored.
    assert fresh(MEMORY) < 5.0
