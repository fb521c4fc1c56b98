from dataclasses import replace

import numpy as np
import pytest

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import DatasetError
from llama_index_embeddings_adapted.evaluation import held_out
from tests.support.synthetic import encoded, rotated_corpus


def test_no_training_query_asks_for_what_was_held_out_and_queries_alone_leave_theirs():
    data, _ = rotated_corpus(documents=50)
    train, held = held_out.hold_out(data, queries=0.0, documents=0.2, seed=3)
    trained, judged = data.take(train), data.take(held)
    assert not held_out.known_mask(trained, judged).any()
    assert len(held) == pytest.approx(0.2 * len(data.relevance), abs=3)
    assert sorted([*train, *held]) == list(range(150))
    train, held = held_out.hold_out(data, queries=0.1, documents=0.0, seed=3)
    assert len(held) == 15
    assert held_out.known_mask(data.take(train), data.take(held)).mean() > 0.9
    shares = {"queries": 0.1, "documents": 0.1}
    first, again, other = (held_out.hold_out(data, **shares, seed=n)[1].tolist() for n in (1, 1, 2))
    assert first == again != other
    with pytest.raises(DatasetError, match="All 150 training queries are also in val_dataset"):
        held_out.drop_leaked_queries(data, data)


def test_equal_questions_are_on_one_side_and_documents_held_out_where_training_allows():
    random = np.random.default_rng(0)
    questions = np.repeat(random.standard_normal((20, 4)), 3, axis=0)
    data = encoded(questions, random.standard_normal((60, 4)), [[i] for i in range(60)])
    train, held = held_out.hold_out(data, queries=0.3, documents=0.2, seed=0)
    assert not {row // 3 for row in train} & {row // 3 for row in held}
    # Every query asks for document 0 as well: holding it out would leave nothing to train on.
    data = encoded(np.eye(40), np.eye(40), [[0, i] for i in range(40)])
    train, held = held_out.hold_out(data, queries=0.1, documents=0.2, seed=0)
    assert (len(train), len(held)) == (36, 4)


def test_questions_of_one_text_are_one_whatever_their_case_and_their_vectors(base, tmp_path):
    texts = [f"what{end}" for end in ("", "  ", "?")] + ["What", "who"]
    asked = {f"q{row}": text for row, text in enumerate(texts)}
    data = Dataset(asked, {"d": "this", "e": "that"}, {name: ["d"] for name in asked})
    with Encoder(base, cache_dir=tmp_path, show_progress=False) as encoder:
        found = replace(encoder.dataset(data), queries=np.float32(np.eye(5)))
    assert found.same.tolist() == [0, 0, 2, 0, 4]
    held = [held_out.hold_out(found, queries=0.4, documents=0.0, seed=n)[1] for n in range(5)]
    assert all({0, 1, 3} <= set(rows) or not {0, 1, 3} & set(rows) for rows in map(list, held))
    with pytest.warns(UserWarning, match="4 training queries are also in val_dataset"):
        assert len(held_out.drop_leaked_queries(found, found.take(np.array([3, 2]))).queries) == 1


def test_scores_are_those_of_the_metric_and_known_documents_compare_ids():
    data, rotation = rotated_corpus(documents=30)
    validation = held_out.Validation(held_out.HeldOut(data, np.full(len(data.relevance), True)))
    assert np.allclose(validation.score(LinearAdapter.identity(12)), validation.base)
    undo = LinearAdapter(np.float32(rotation.T))
    found = validation.judge(undo)
    overall, known, new = held_out.compare_by_part(validation.base_scores, found, validation.known)
    assert validation.score(undo).mean() == pytest.approx(overall.adapted["ndcg@10"])
    assert overall.adapted["ndcg@10"] > 0.95 > 0.5 > overall.base["ndcg@10"]
    assert new is None
    assert overall.queries == known.queries == 90
    assert overall.to_dict()["difference"]["verdict"].startswith("better")
    train = encoded(np.eye(2), np.eye(3), [[0], [2]])
    other = encoded(np.eye(3), np.eye(5), [[2], [1, 4], [0, 3]])
    assert held_out.known_mask(train, other).tolist() == [True, False, True]
    moved = replace(other, document_ids=tuple("vwxyz"))  # it is the text that is known
    assert held_out.known_mask(train, moved).tolist() == [True, False, True]


def test_a_loss_within_its_error_or_of_few_is_noise_and_told_the_mixture_decides():
    data = encoded(np.eye(50), np.eye(50), [[i] for i in range(50)])
    known = np.arange(50) < 40
    validation = held_out.Validation(held_out.HeldOut(data, known))
    change = np.where(np.arange(50) % 2, 0.5, -0.5)
    assert held_out.Gain.of(validation, validation.base + change - 0.01).harmless
    assert not held_out.Gain.of(validation, validation.base + change - 0.2).harmless
    few_lose = np.where(known, 0.1, -1.0)  # 10 new queries: fewer than 20
    assert held_out.Gain.of(validation, validation.base + few_lose).harmless
    known = np.arange(50) < 25
    change = np.where(known, 0.2, -0.1)
    for expect, overall in ((1.0, 0.2), (0.5, 0.05), (0.0, -0.1)):
        validation = held_out.Validation(held_out.HeldOut(data, known), expect=expect)
        gain = held_out.Gain.of(validation, validation.base + change)
        assert gain.overall == pytest.approx(overall)
        assert gain.harmless
    only_known = held_out.Validation(held_out.HeldOut(data, np.ones(50, dtype=bool)), expect=0.5)
    gain = held_out.Gain.of(only_known, only_known.base + 0.2)
    assert gain.parts == pytest.approx({"overall": 0.2, "known": 0.2})
