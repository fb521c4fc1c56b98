from dataclasses import replace

import numpy as np
import pytest

from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.held_out import labels_look_random
from llama_index_embeddings_adapted.evaluation.verdict import paired_difference
from llama_index_embeddings_adapted.training.auto.tune import tune
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.support.synthetic import encoded, rotated_corpus


def noisy(noise: float = 0.5) -> EncodedDataset:
    """150 queries near their document, of 60; documents differ in how often they are asked for."""
    random = np.random.default_rng(0)
    corpus = random.standard_normal((60, 12))
    asked = np.minimum(random.geometric(0.05, size=150), 60) - 1
    queries = corpus[asked] + noise * random.standard_normal((150, 12))
    return encoded(queries, corpus, [[int(row)] for row in asked])


def shuffled(data: EncodedDataset, seed: int = 0) -> EncodedDataset:
    documents = np.random.default_rng(seed).permutation(data.relevance.documents)
    return replace(data, relevance=replace(data.relevance, documents=documents))


@pytest.mark.parametrize("noise", [0.1, 1.0, 2.0])
def test_queries_near_their_documents_do_not_look_random(noise):
    assert not labels_look_random(noisy(noise))


def test_shuffled_judgements_look_random_and_a_few_pairs_do_not_tell():
    found = [labels_look_random(shuffled(noisy(), seed)) for seed in range(20)]
    assert sum(found) >= 18
    assert labels_look_random(noisy().take(np.arange(3)))


def test_a_document_that_suits_every_query_is_no_evidence() -> None:
    # All queries point where document 0 lies, and most ask for it, whatever they say.
    random = np.random.default_rng(0)
    corpus = random.standard_normal((40, 8))
    queries = corpus[0] + 0.3 * random.standard_normal((100, 8))
    relevant = np.where(random.random(100) < 0.7, 0, random.integers(40, size=100))
    assert labels_look_random(encoded(queries, corpus, [[int(row)] for row in relevant]))


def test_what_is_learned_from_shuffled_judgements_is_not_shipped_and_it_says_why(capsys):
    tuned = tune(shuffled(noisy()), TrainingOptions(method="ridge"), show_progress=True)
    assert not tuned.choice.ship
    assert "mismatched ids" in tuned.choice.verdict
    assert "mismatched ids" in "".join(capsys.readouterr())


def test_a_gain_on_new_documents_is_believed_although_the_labels_look_random():
    data, _ = rotated_corpus(documents=100)
    assert labels_look_random(data)
    tuned = tune(data, TrainingOptions(method="ridge"), show_progress=False)
    assert tuned.parts.new.difference.low > 0
    assert tuned.choice.ship


def test_what_outweighs_labels_that_look_random_is_a_gain_of_one_in_a_thousand():
    scatter = np.resize([1.0, -1.0], 400)  # its standard error is 1 / 20

    def outweighs(errors: float) -> bool:
        found = paired_difference(np.zeros(400), scatter + errors / 20, metric="ndcg@10")
        assert found.low > 0
        return found.beyond_luck

    assert not outweighs(2.5)
    assert outweighs(4.0)
