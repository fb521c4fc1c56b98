from dataclasses import replace

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.adapters.maps import LinearAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import DatasetError, OptionError
from llama_index_embeddings_adapted.evaluation.retrieval import hard_negatives
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import refit
from tests.conftest import QUIET, trained_engine
from tests.support.synthetic import encoded


def at(*cosines: float) -> np.ndarray:
    """Unit vectors in the plane whose cosine with the query (1, 0) is given."""
    return np.array([[c, (1 - c * c) ** 0.5] for c in cosines])


def test_negatives_are_the_nearest_below_95_percent_of_the_positive_and_no_twins():
    #                      positive   too close  just right
    documents = at(0.1, 0.80, 0.90, 0.77, 0.759, 0.70, 0.60)
    data = encoded(np.array([[1.0, 0.0]]), documents, [[1]])
    (found,) = hard_negatives(data, k=2, most_of_positive=0.95)
    assert found.tolist() == [4, 5]
    (all_,) = hard_negatives(data, k=9, most_of_positive=1.0)
    assert all_.tolist() == [3, 4, 5, 6, 0]
    (later,) = hard_negatives(data, k=2, most_of_positive=0.95, skip=1)
    assert later.tolist() == [5, 6]
    documents = at(0.9, 0.5, 0.5, -0.2)
    data = encoded(np.array([[1.0, 0.0], [1.0, 0.0]]), documents, [[0], [3]])
    data = replace(data, canonical_rows=np.array([0, 1, 1, 3]))
    first, second = hard_negatives(data, k=5, most_of_positive=0.95)
    assert first.tolist() == [1, 3]  # row 2 has the text of row 1
    assert second.tolist() == []  # its positive scores below zero


def test_mined_negatives_travel_with_the_dataset_and_the_engine_takes_them(small, base, tmp_path):
    mined = package.mine_hard_negatives(small, base, k=2, **QUIET)
    for query, documents in mined.hard_negatives.items():
        assert 1 <= len(documents) <= 2
        assert not set(documents) & set(small.relevant_docs[query])
    mined.save_json(tmp_path / "mined.json")
    assert package.EmbeddingQAFinetuneDataset.from_json(tmp_path / "mined.json") == mined
    part = mined.subset(list(mined.queries)[:3])
    assert part.hard_negatives == {q: mined.hard_negatives[q] for q in part.queries}
    small.save_json(tmp_path / "plain.json")
    assert "hard_negatives" not in (tmp_path / "plain.json").read_text()
    with Encoder(base, **QUIET) as encoder:
        data = encoder.dataset(mined)
    taken = data.take(np.array([3, 1]))
    assert taken.negatives.relevant_to(0).tolist() == data.negatives.relevant_to(3).tolist()
    engine = trained_engine(mined, base, tmp_path, epochs=2)
    assert engine.report.train_queries == len(small)


def test_negatives_that_cannot_be_are_refused(small, base):
    for options, message in (
        ({"k": 0}, "k: expected a whole number >= 1, got 0"),
        ({"skip": -1}, "skip: expected a whole number >= 0, got -1"),
        ({"most_of_positive": 0.0}, "most_of_positive: expected a number > 0 and <= 1, got 0.0"),
    ):
        with pytest.raises(OptionError, match=message):
            package.mine_hard_negatives(small, base, **options, **QUIET)
    for negatives, message in (
        ({"q00": ["d0"]}, r"1 pairs .* are relevant .first: .q00 → d0"),
        ({"q00": ["d9"]}, r'1 document ids are not in the corpus.*"d9"'),
        (["d1"], "hard_negatives: expected a dict"),
    ):
        with pytest.raises(DatasetError, match=message):
            small.with_hard_negatives(negatives)


@pytest.mark.parametrize("loss", ["queried", "mnr"])
def test_training_pushes_queries_away_from_their_hard_negatives(loss):
    random = np.random.default_rng(0)
    documents = l2_normalize(random.standard_normal((40, 8)))
    rows = np.arange(20)
    # Each query lies between its document and one that nobody asks for.
    queries = l2_normalize(documents[rows] + 0.95 * documents[rows + 20])
    data = encoded(queries, documents, [[int(row)] for row in rows])
    mined = replace(data, negatives=Qrels.from_lists([[int(row) + 20] for row in rows]))
    free: dict[str, float] = {"learning_rate": 0.01, "anchor": 0.0, "shrinkage": 0.0}
    options = TrainingOptions(loss=loss, batch_size=5, **free)
    leads = []
    for train in (data, mined):
        adapter = refit(train, LinearAdapter.identity(8), options, epochs=15, show_progress=False)
        scores = l2_normalize(adapter.apply(queries)) @ documents.T
        leads.append(float(np.mean(scores[rows, rows] - scores[rows, rows + 20])))
    assert leads[1] > leads[0] + 0.02
