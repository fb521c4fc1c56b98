import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.adapters.composites import StackedAdapter
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import DatasetError, OptionError
from llama_index_embeddings_adapted.operations import upgrade
from llama_index_embeddings_adapted.operations.upgrade import procrustes, ridge_map
from tests.conftest import QUIET, CountingEmbedding, index_of, nodes_of

WORDS = ["apple", "whale", "bus", "sea", "bird", "car", "tree", "house", "river", "stone", "door"]
TEXTS = [f"{a} {b} {c}" for a in WORDS for b in WORDS[:6] for c in WORDS[4:] if a != b]


class Turned(CountingEmbedding):
    def vector(self, role: str, text: str) -> list[float]:
        old = CountingEmbedding(dim=16).vector(role, text)
        turn, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((self.dim, self.dim)))
        return (turn[:, :16] @ old).tolist()


@pytest.mark.parametrize(("new_dim", "old_dim"), [(8, 8), (12, 8), (8, 12)])
def test_a_rotation_is_undone_by_either_fit(new_dim, old_dim):
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.standard_normal((new_dim, new_dim)))
    known = l2_normalize(random.standard_normal((100, 8)))
    old = np.pad(known, ((0, 0), (0, old_dim - 8)))
    new = np.float32(np.pad(known, ((0, 0), (0, new_dim - 8))) @ turn)
    for adapter in (procrustes(new, old), ridge_map(new, old, 1e-6)):
        assert np.sum(adapter.apply(new) * old, axis=1).min() > 0.999
        assert adapter.adapts_documents  # what comes later is mapped into the old index, too


def test_procrustes_keeps_angles_and_a_strong_ridge_is_the_rotation():
    random = np.random.default_rng(1)
    new, old = (l2_normalize(random.standard_normal((50, 6))) for _ in range(2))
    weight = procrustes(new, old).weight
    assert np.allclose(weight @ weight.T, np.eye(6), atol=1e-5)
    assert np.allclose(ridge_map(new, old, 1e9).weight, weight, atol=1e-4)
    free = np.linalg.lstsq(new, old, rcond=None)[0].T
    assert np.allclose(ridge_map(new, old, 1e-9).weight, free, atol=1e-4)


def test_new_queries_find_in_the_old_index_what_the_old_model_found():
    old, new = CountingEmbedding(dim=16), Turned(dim=24)
    found = package.upgrade_adapter(old, new, TEXTS, **QUIET)
    assert found.agreement > 0.95
    assert found.cosine > 0.99
    assert found.tried[found.method] == max(found.tried.values())
    assert 0.01 < found.chance < 0.2
    index = index_of({text: text for text in TEXTS}, old)
    model = package.AdaptedEmbedding(new, found.adapter)
    before = old.get_query_embedding("whale bird")
    assert np.dot(model.get_query_embedding("whale bird"), before) > 0.98
    retriever = index.as_retriever(embed_model=model, similarity_top_k=5)
    best = {item.node.node_id for item in retriever.retrieve("river stone car")}
    plain = index.as_retriever(similarity_top_k=5).retrieve("river stone car")
    assert len(best & {item.node.node_id for item in plain}) >= 4
    index.insert_nodes(nodes_of({"later": "zebra quagga"}), embed_model=model)


def test_an_old_adapter_is_applied_after_the_map():
    old, new = CountingEmbedding(dim=16), Turned(dim=16)
    adapter = package.LinearAdapter(np.random.default_rng(2).standard_normal((16, 16)))
    served = package.AdaptedEmbedding(old, adapter)
    found = package.upgrade_adapter(served, new, TEXTS, method="procrustes", **QUIET)
    assert isinstance(found.adapter, StackedAdapter)
    model = package.AdaptedEmbedding(new, found.adapter)
    query = np.dot(*(each.get_query_embedding("sea bird") for each in (model, served)))
    assert query > 0.95
    document = np.dot(model.get_text_embedding("sea bird"), old.get_text_embedding("sea bird"))
    assert document > 0.97
    moving = package.AdaptedEmbedding(old, package.LinearAdapter.identity(16, shared=True))
    with pytest.raises(OptionError, match="but its adapter moves them"):
        package.upgrade_adapter(moving, new, TEXTS, **QUIET)


def test_the_upgrade_is_compared_with_a_real_re_embedding():
    old, new = CountingEmbedding(dim=16), Turned(dim=16)
    corpus = {text: text for text in TEXTS[:100]}
    queries = {f"q{text}": " ".join(reversed(text.split())) for text in TEXTS[:40]}
    dataset = package.EmbeddingQAFinetuneDataset(queries, corpus, {q: [q[1:]] for q in queries})
    found = package.upgrade_adapter(old, new, TEXTS, **QUIET)
    assert found.texts == len(set(TEXTS))
    scores = package.evaluate_upgrade(found, old, new, dataset, **QUIET)
    assert scores.old["hit_rate@10"] == scores.reembedded["hit_rate@10"] == 1.0
    assert scores.kept("hit_rate@10") > 0.95
    assert scores.to_dict()["kept"]["ndcg@10"] == scores.kept()
    assert "kept of a re-embedding" in str(scores)
    stranger = package.upgrade_adapter(old, CountingEmbedding(seed=9, dim=2), TEXTS, **QUIET)
    assert stranger.agreement < 0.5
    assert f"{stranger.agreement:.0%}" in str(stranger)


class Aimless(CountingEmbedding):
    """Gives each text a vector that has nothing to do with those of others."""

    def vector(self, role: str, text: str) -> list[float]:
        return super().vector(role, text.replace(" ", "_"))


@pytest.mark.parametrize("count", [20, 60, 400])
def test_an_agreement_no_better_than_chance_is_warned_of(count):
    texts = TEXTS[:: len(TEXTS) // count][:count]
    count = len(set(texts))
    said = rf"no better than chance .* among {count} texts\. Give more, a few times the 12 dim"
    for seed in range(2):
        with pytest.warns(UserWarning, match=said):
            package.upgrade_adapter(CountingEmbedding(), Aimless(dim=12), texts, seed=seed, **QUIET)
    if count >= 60:  # and not of one that is better
        package.upgrade_adapter(CountingEmbedding(), Turned(dim=24), texts, **QUIET)


def test_the_texts_that_choose_and_score_take_no_part_in_the_fit(monkeypatch):
    fitted, judged = [], []

    def fit(new: np.ndarray, old: np.ndarray) -> package.LinearAdapter:
        fitted.append(len(new))
        return procrustes(new, old)

    def agree(mapped: np.ndarray, ours: np.ndarray, own: np.ndarray) -> tuple[float, float]:
        judged.append(set(own.tolist()))
        return 0.9, 0.0

    monkeypatch.setattr(upgrade, "FITS", {"one": fit, "two": fit})
    monkeypatch.setattr(upgrade, "_agreement", agree)
    package.upgrade_adapter(CountingEmbedding(), Turned(dim=24), TEXTS[:100], holdout=0.3, **QUIET)
    assert fitted == [70, 70, 100]
    choosing, again, scoring = judged
    assert choosing == again
    assert (len(choosing), len(scoring), len(choosing & scoring)) == (15, 15, 0)


def test_old_vectors_of_another_length_are_warned_of():
    class Long(CountingEmbedding):
        def vector(self, role: str, text: str) -> list[float]:
            return (5 * np.array(super().vector(role, text))).tolist()

    with pytest.warns(UserWarning, match="a mean length of 5, mapped ones of 1"):
        found = package.upgrade_adapter(Long(), Turned(dim=24), TEXTS[:100], **QUIET)
    assert found.agreement > 0.9


def test_no_text_is_embedded_twice(tmp_path):
    old, new = CountingEmbedding(), CountingEmbedding(seed=1)
    for _ in range(2):
        package.upgrade_adapter(old, new, TEXTS * 2, cache_dir=tmp_path, show_progress=False)
    for model in (old, new):
        asked = model.asked_beyond_probes  # those are looks
        assert len(asked) == len(set(asked))


def test_bad_arguments_are_refused_before_anything_is_embedded():
    old, new = CountingEmbedding(), CountingEmbedding(seed=1)
    for changes, error, message in (
        ({"texts": ["one"] * 30}, DatasetError, "expected at least 20 distinct ones, got 1"),
        ({"method": "magic"}, OptionError, "expected one of auto, procrustes, ridge, got 'magic'"),
        ({"holdout": 1.0}, OptionError, r"expected a share in \(0, 1\), got 1.0"),
    ):
        with pytest.raises(error, match=message):
            package.upgrade_adapter(old, new, **{"texts": TEXTS, **QUIET, **changes})
    assert not old.asked
    assert not new.asked
