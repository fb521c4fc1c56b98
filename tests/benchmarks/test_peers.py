from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import peers, published
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.retrieval import search
from tests.support.synthetic import rotated_corpus

WHOLE, _ = rotated_corpus(documents=60, per_document=4)
LEARNT, DECIDES = (WHOLE.take(np.flatnonzero(np.arange(240) % 4 % 2 == half)) for half in (0, 1))
BASE = search(DECIDES, DECIDES.queries, DECIDES.documents)
PEFA = {"pefa_xs": {"share": 1.0}, "pefa_xl": {"share": 1.0, "neighbours": 4}}
SETTINGS = {"rocchio": {"documents": 3, "weight": 0.0}, **PEFA}


@pytest.mark.parametrize("name", SETTINGS)
def test_without_weight_each_is_the_base_model(name):
    ranker = getattr(published, name)(LEARNT, DECIDES, SETTINGS[name], 0)
    assert ranker(DECIDES)["ndcg@10"] == pytest.approx(BASE["ndcg@10"], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("pefa_xs", {"share": 0.5}),
        ("pefa_xl", {"share": 0.5, "neighbours": 4}),
        ("search_adaptor", published.SEARCH_ADAPTOR[0]),
    ],
)
def test_what_training_asked_for_is_found_again(name, setting):
    scores = getattr(published, name)(LEARNT, DECIDES, setting, 0)(DECIDES)
    assert scores["ndcg@10"] > BASE["ndcg@10"] + 0.1


@pytest.mark.parametrize("name", ["pefa_xs", "pefa_xl"])
def test_documents_that_nobody_asked_for_stay_where_they_are(name):
    strange = replace(DECIDES, document_ids=tuple(f"other {row}" for row in range(60)))
    scores = getattr(published, name)(LEARNT, DECIDES, {"share": 0.5, "neighbours": 60}, 0)
    assert scores(strange)["ndcg@10"] == pytest.approx(BASE["ndcg@10"], abs=0.01)


def test_feedback_moves_a_query_to_its_first_documents():
    setting = {"documents": 1, "weight": 100.0}
    ranked = published.rocchio(LEARNT, DECIDES, setting, 0)(DECIDES).ranked
    assert ranked[:, 0].tolist() == BASE.ranked[:, 0].tolist()
    near = DECIDES.documents @ DECIDES.documents.T
    assert ranked[0, :9].tolist() == np.argsort(-near[ranked[0, 0]])[:9].tolist()


def test_dev_chooses_the_setting_and_other_seeds_follow_it(monkeypatch):
    fitted = []

    def fit(learnt: EncodedDataset, decides: EncodedDataset, setting: published.Setting, seed: int):
        fitted.append((setting["share"], seed))
        return published.pefa_xs(learnt, decides, setting, seed)

    settings = [{"share": share} for share in (1.0, 0.5, 0.9)]
    monkeypatch.setitem(peers.PEERS, "some", peers.Peer(fit, settings, draws=True))
    found = list(peers.fits(LEARNT, DECIDES, ("some",), 3, {("some", 1): {"share": 0.5}}))
    assert fitted == [(1.0, 0), (0.5, 0), (0.9, 0), (0.5, 2)]
    assert [(seed, setting["share"]) for _, seed, _, _, setting in found] == [(0, 0.5), (2, 0.5)]
