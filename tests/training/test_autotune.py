import json
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from llama_index_embeddings_adapted import Adapter, Decision, LinearAdapter, Verdict
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.errors import TrainingError
from llama_index_embeddings_adapted.evaluation import verdict as verdicts
from llama_index_embeddings_adapted.training.auto import descent, pipelines
from llama_index_embeddings_adapted.training.auto import tune as autotune
from llama_index_embeddings_adapted.training.auto.selection import Selection
from llama_index_embeddings_adapted.training.auto.tune import AutoResult, tune
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.support.synthetic import Named, cross_fitted, encoded, found_first, rotated_corpus

CHOSEN = Named("chosen")


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch) -> None:
    monkeypatch.setattr(verdicts, "RESAMPLES", 999)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_STEPS", 30)


def tuned(data: EncodedDataset, method: str = "ridge", **settings: Any) -> AutoResult:
    show = settings.pop("show_progress", False)
    options = TrainingOptions(learning_rate=0.01, method=method, **settings)
    return tune(data, options, show_progress=show)


def refitted(found: AutoResult, data: EncodedDataset) -> Adapter:
    strength = float(found.choice.recipe.split("strength=")[1].rstrip(")"))
    return pipelines.PipelineFitter(data, TrainingOptions()).fit(pipelines.RidgeSpec(strength))


def assert_near(first: Adapter, second: Adapter) -> None:
    """Equal but for the rounding of a turn to the main directions and back."""
    vectors = np.random.default_rng(0).standard_normal((50, first.input_dim))
    assert np.allclose(first.apply(vectors), second.apply(vectors), atol=1e-4)


def parts(data: EncodedDataset) -> tuple[EncodedDataset, EncodedDataset]:
    """Two queries of each document to learn from, the third to judge on."""
    third = np.arange(len(data.queries)) % 3 == 0
    return data.take(np.flatnonzero(~third)), data.take(np.flatnonzero(third))


def first(adapter: Adapter, data: EncodedDataset) -> float:
    documents = adapter.apply(data.documents, "document", data.keys)
    return found_first(data, adapter.apply(data.queries), documents)


def shuffled(seed: int = 0) -> EncodedDataset:
    """Queries near a document, whose judgements say another one at random: nothing to learn."""
    random = np.random.default_rng(seed)
    corpus = l2_normalize(random.standard_normal((40, 12)))
    queries = corpus[np.repeat(np.arange(40), 3)] + 0.3 * random.standard_normal((120, 12))
    return encoded(queries, corpus, [[int(row)] for row in random.integers(40, size=120)])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("adapts", ["query", "both"])
def test_auto_finds_a_rotation_and_ships_what_undoes_it(adapts):
    train, test = parts(rotated_corpus(documents=60)[0])
    found = tuned(train, "auto", adapts=adapts)
    assert found.choice.ship
    assert found.choice.verdict.startswith("ship: held-out queries gain +0.")
    assert found.adapter is found.candidate
    assert first(LinearAdapter.identity(12), test) < 0.2
    assert first(found.adapter, test) > 0.6
    assert found.adapter.adapts_documents <= (adapts == "both")
    assert found.parts.new.queries == found.parts.overall.queries == 120
    assert found.parts.known.queries <= 120  # where the other query of a document trains
    assert found.choice.recipe in found.choice.gains
    assert json.loads(json.dumps(found.choice.to_dict(), allow_nan=False))["ship"] is True


def test_a_curve_says_what_fewer_queries_gain_and_whether_more_would():
    few, _ = parts(rotated_corpus(documents=60)[0])
    found = tune(few, TrainingOptions(method="ridge"), curve=True, show_progress=False).choice.curve
    quarter, half, whole = found.queries
    assert (quarter, half) == pytest.approx((whole / 4, whole / 2), abs=1)
    assert found.gains[0] < found.gains[1] < found.gains[2]
    assert found.grows
    assert str(found).endswith(f"{whole} gain {found.gains[2]:+.4f}; more would gain more")
    many, _ = parts(rotated_corpus(documents=600)[0])
    found = tune(many, TrainingOptions(method="ridge"), curve=True, show_progress=False).choice
    assert not found.curve.grows  # 12 dimensions are learnt long before
    assert found.to_dict()["curve"]["queries"] == found.curve.queries
    assert tuned(shuffled()).choice.curve is None


@pytest.mark.usefixtures("quick")
def test_where_there_is_nothing_to_learn_hardly_one_of_twenty_ships():
    data = shuffled()
    found = tuned(data, "auto")
    assert not found.choice.ship
    assert found.adapter == LinearAdapter.identity(12)
    assert sum(tuned(shuffled(seed)).choice.ship for seed in range(20)) <= 2


def test_the_candidate_is_fitted_on_everything_and_the_same_for_a_seed():
    data, _ = rotated_corpus(documents=60)
    found = tuned(data)
    assert_near(found.candidate, refitted(found, data))
    one, again = tuned(data, "kernel", seed=3), tuned(data, "kernel", seed=3)
    assert one.candidate == again.candidate
    assert one.choice.to_dict() == again.choice.to_dict()


def asked_and_others() -> EncodedDataset:
    """20 documents with five queries each among 200 that nobody asks for."""
    random = np.random.default_rng(0)
    corpus = l2_normalize(random.standard_normal((220, 64)))
    answers = np.repeat(np.arange(20), 5)
    queries = corpus[answers] + 0.3 * random.standard_normal((100, 64))
    return encoded(queries, corpus, [[answer] for answer in answers.tolist()])


def memorise(spec: pipelines.PipelineSpec, fitter: pipelines.PipelineFitter) -> Adapter:
    """Keep of a query what documents with training queries have in common: others are lost."""
    train = fitter.train
    asked = l2_normalize(train.documents[np.unique(train.relevance.documents)])
    basis, _ = np.linalg.qr(asked.T)
    return LinearAdapter(basis @ basis.T)


def test_a_memorised_gain_ships_only_where_the_user_expects_known_documents(monkeypatch):
    monkeypatch.setattr(pipelines.RidgeSpec, "fit", memorise)
    data = asked_and_others()
    found = {expect: tuned(data, expect=expect) for expect in (None, 1.0, 0.0)}
    known, new = found[None].choice.gains["ridge(strength=1)"]
    assert known is not None
    assert new is not None
    assert known > 0.05
    assert new < -0.5
    assert [found[expect].choice.ship for expect in (None, 1.0, 0.0)] == [False, True, False]
    assert found[None].choice.verdict.startswith("keep the base model: no candidate gained")
    assert found[1.0].choice.expect_told
    assert found[1.0].parts.overall.difference.mean == pytest.approx(known)


def verdict(known: Any, new: Any, *, base: float = 0.5, given: bool = False) -> Verdict:
    """Of a candidate that changes 50 known and 50 new judgements, in turn, by these numbers."""
    flags = np.arange(100) < 50
    change = np.concatenate([np.resize(known, 50), np.resize(new, 50)])
    found = cross_fitted(flags, base=base, given=given, chosen=base + change)
    spec = CHOSEN if change.any() else pipelines.IDENTITY
    selection = Selection(spec, found, found.scores[CHOSEN], {})
    parts = autotune._parts(found, found.scores[pipelines.IDENTITY], selection.chosen)
    return autotune._judge(selection, parts)


@pytest.mark.parametrize(
    ("known", "new", "settings", "ships", "words"),
    [
        ([0.1], [0.1], {}, True, r"^ship: held-out queries gain \+0.1000 NDCG@10 \[\+0.1000, \+"),
        ([0.0], [0.0], {}, False, "^keep the base model: no candidate gained on held-out queries"),
        ([0.0], [0.0], {"base": 0.97}, False, "^saturated: the base model is near its ceiling"),
        ([0.3], [-0.1], {}, False, "^do not ship: NDCG@10 drops on new documents$"),
        ([-0.1], [0.3], {}, False, "^do not ship: NDCG@10 drops on known documents$"),
        ([0.3], [-0.1], {"given": True}, True, r"^ship: held-out queries gain \+0.1000"),
        ([0.31, -0.29], [0.31, -0.29], {}, False, "^inconclusive: no significant gain or loss$"),
        ([-0.29, 0.28], [0.29, -0.28], {}, False, "^inconclusive: no significant gain or loss$"),
        ([0.33, -0.23], [0.33, -0.23], {}, False, "^inconclusive"),  # the interval holds zero
    ],
)
def test_the_verdict_says_what_was_found_and_would_change_it(known, new, settings, ships, words):
    said = verdict(known, new, **settings)
    assert (said.decision is Decision.SHIP) == ships
    assert re.search(words, said), said


def test_a_query_that_is_judged_twice_is_one_observation_weighed_as_expected():
    flags = np.array([True] * 4 + [False] * 4)
    change = np.array([0.4, 0.4, 0.4, 0.4, 0.0, 0.0, 0.0, 0.0])
    found = cross_fitted(flags, expect=0.75, rows=np.tile(np.arange(4), 2), chosen=0.5 + change)
    selection = Selection(CHOSEN, found, found.scores[CHOSEN], {})
    base = found.scores[pipelines.IDENTITY]
    overall, known, new = autotune._parts(found, base, selection.chosen)
    assert overall.queries == 4
    assert overall.base["ndcg@10"] == pytest.approx(0.5)
    assert overall.difference.mean == pytest.approx(0.75 * 0.4)
    assert known.difference.mean == pytest.approx(0.4)
    assert new.difference.mean == 0.0


def test_what_new_documents_gain_is_as_sure_as_they_are_many():
    flags, change = np.arange(100) < 50, np.random.default_rng(0).standard_normal(10)
    found = cross_fitted(flags, chosen=0.5 + np.repeat(change, 10))  # 10 judgements of each
    base, chosen = (found.scores[spec] for spec in (pipelines.IDENTITY, CHOSEN))
    alone = autotune._parts(found, base, chosen)
    found.clusters = found.groups // 10
    overall, known, new = autotune._parts(found, base, chosen)
    assert [part.queries for part in (overall, known, new)] == [100, 50, 50]
    assert known.difference == alone.known.difference
    for part, before in ((overall, alone.overall), (new, alone.new)):
        assert part.difference.mean == pytest.approx(before.difference.mean)
        wide, narrow = (each.difference.high - each.difference.low for each in (part, before))
        assert wide > 2 * narrow


def test_relevant_documents_that_do_not_compete_take_no_place_of_those_that_do():
    """The base model is right by construction: 40 documents nearest to a query are relevant."""
    random = np.random.default_rng(1)
    queries, corpus = (l2_normalize(random.standard_normal((n, 12))) for n in (60, 200))
    nearest = np.argsort(-queries @ corpus.T, axis=1)[:, :40]
    found = tuned(encoded(queries, corpus, nearest.tolist()), "whitening")
    assert found.choice.verdict.decision is Decision.SATURATED
    assert found.parts.overall.base["ndcg@10"] == pytest.approx(1.0)


def test_other_negatives_and_other_judges_are_another_search_to_go_on_with(tmp_path):
    data, _ = rotated_corpus(documents=10)
    everyone, options = np.ones(30, dtype=bool), TrainingOptions()
    others = [replace(data, negatives=Qrels.from_lists([[n]] * 30)) for n in (1, 2)]
    searches = [(each, everyone) for each in (data, *others)] + [(data, np.arange(30) > 3)]
    assert len({autotune._place(tmp_path, *search, options) for search in searches}) == 4
    assert (autotune.with_documents(others[0], np.arange(10)).negatives.documents == 1).all()


def test_what_the_data_can_prove_is_said_before_anything_is_trained(capsys):
    data, _ = rotated_corpus(documents=100)
    found = tuned(data, show_progress=True)
    # 3.24 standard errors at the largest deviation that was measured: 3.24 · 0.34 / √300.
    assert found.choice.provable == pytest.approx(0.0636, abs=1e-4)
    said = capsys.readouterr().out
    assert said.startswith("300 judged queries can prove a gain of 0.064 NDCG@10")
    assert "50% of live queries are taken to ask for documents" in said
    assert "estimated; pass expect=" in said
    tuned(data, expect=0.9, show_progress=True)
    assert "90% of live queries" in (said := capsys.readouterr().out)
    assert "as you said" in said
    tuned(data)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_after_a_quarter_the_estimate_of_time_is_right_within_a_factor_of_1_5(monkeypatch):
    seen: list[tuple[float, float]] = []  # processor time, as others use the machine; share done

    class Watched(tqdm):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            seen.append((time.process_time(), 0.0))

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            seen.append((time.process_time(), self.n / self.total))

    monkeypatch.setattr(autotune, "tqdm", Watched)
    random = np.random.default_rng(0)
    corpus = l2_normalize(random.standard_normal((1_000, 256)))
    asked = random.integers(200, size=600)
    turned = corpus[asked] @ (np.eye(256) + random.standard_normal((256, 256)) / 16)
    queries = turned + 0.08 * random.standard_normal((600, 256))
    data = encoded(queries, corpus, [[row] for row in asked.tolist()])
    with threadpool_limits(1):  # of several threads, some wait in circles, and that is counted
        tuned(data, "auto", show_progress=True)
    began, whole = seen[0][0], seen[-1][0] - seen[0][0]
    spent, share = next((t - began, n) for t, n in seen if t - began >= whole / 4)
    assert seen[-1][1] == pytest.approx(1.0)
    assert 1 / 1.5 < spent / share / whole < 1.5


@pytest.mark.usefixtures("quick")
def test_auto_goes_on_without_methods_that_fail(monkeypatch):
    def broken(spec: pipelines.PipelineSpec, fitter: pipelines.PipelineFitter) -> Adapter:
        raise TrainingError("no luck")

    for spec in (pipelines.WhiteningSpec, pipelines.LinearSpec, pipelines.GateSpec):
        monkeypatch.setattr(spec, "fit", broken)
    data, _ = rotated_corpus(documents=40)
    with pytest.warns(UserWarning, match="cannot be fitted and is left out: no luck"):
        found = tuned(data, "auto")
    assert {name.split("(")[0] for name in found.choice.failed} >= {"whitening", "linear"}
    assert not found.choice.failed.keys() & found.choice.gains.keys()
    assert found.choice.ship  # the map that memorises is left


def test_what_fails_on_all_pairs_keeps_the_base_model_and_what_was_found(monkeypatch):
    data, _ = rotated_corpus(documents=60)
    fit = pipelines.RidgeSpec.fit

    def failing(spec: pipelines.RidgeSpec, fitter: pipelines.PipelineFitter) -> Adapter:
        if len(fitter.train.relevance) == len(data.relevance):
            raise MemoryError("Unable to allocate 9 GiB")
        return fit(spec, fitter)

    monkeypatch.setattr(pipelines.RidgeSpec, "fit", failing)
    with pytest.warns(UserWarning, match="base model is kept, as ridge.* fails on all pairs: Un"):
        found = tuned(data)
    assert found.adapter == found.candidate == LinearAdapter.identity(12)
    assert not found.choice.ship
    assert found.choice.verdict.startswith("do not ship: ridge(strength=")
    assert found.parts.overall.difference.mean > 0.3  # what cross-fitting found


def test_a_large_set_is_sampled_and_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(autotune, "MOST_QUERIES", 90)
    monkeypatch.setattr(autotune, "MOST_DOCUMENTS", 120)
    data, _ = rotated_corpus(documents=200)
    found = tuned(data, show_progress=True)
    said = "Cross-fitting takes a sample of 90 of 600 queries and 120 of 200 documents."
    assert found.choice.sampled == said
    assert found.choice.sampled in capsys.readouterr().out
    assert found.parts.overall.queries <= 90
    assert found.choice.recipe in found.choice.gains  # what is served learned from all of them
    assert_near(found.candidate, refitted(found, data))


def test_a_sample_of_documents_keeps_every_answer(monkeypatch):
    few, _ = rotated_corpus(documents=20)
    monkeypatch.setattr(autotune, "MOST_DOCUMENTS", 30)
    assert autotune._sampled(few, seed=0) == (few, "")
    random = np.random.default_rng(0)
    plain = encoded(random.standard_normal((20, 4)), random.standard_normal((100, 4)), [[0]] * 20)
    answers = [[int(row)] for row in random.integers(60, 80, size=20)]
    twins = np.arange(100)
    twins[70:80] = np.arange(10)  # ten texts are there twice
    documents, relevance = plain.documents[twins], Qrels.from_lists(answers)
    data = replace(plain, documents=documents, relevance=relevance, canonical_rows=twins,
                   keys=plain.keys[twins])  # fmt: skip
    sample, said = autotune._sampled(data, seed=0)
    assert said == "Cross-fitting takes a sample of 30 of 100 documents."
    assert len(sample.documents) == len(set(sample.keys.tolist())) == 30
    for row, [answer] in enumerate(answers):
        [kept] = sample.relevance.relevant_to(row)
        assert np.array_equal(sample.documents[kept], documents[answer])
        assert sample.keys[kept] == data.keys[answer]
