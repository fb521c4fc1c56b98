import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llama_index_embeddings_adapted import Adapter, LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import OptionError, TrainingError
from llama_index_embeddings_adapted.training.auto import pipelines, selection
from llama_index_embeddings_adapted.training.auto import search_space as space
from llama_index_embeddings_adapted.training.auto.pipelines import IDENTITY, SPECS
from llama_index_embeddings_adapted.training.auto.search_space import check_methods, search_space
from llama_index_embeddings_adapted.training.auto.tune import AutoResult, tune
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.conftest import ROOT
from tests.support.synthetic import Named, cross_fitted, encoded, found_first, rotated_corpus

SIMPLE, RICH = Named("simple"), Named("rich")
LINEAR, CORPUS, TWO_SIDED = pipelines.LinearSpec(), pipelines.CorpusSpec(), pipelines.TwoSidedSpec()


def test_what_the_user_says_about_live_queries_is_believed():
    data = encoded(np.eye(3), np.eye(3), [[0], [1], [2]])
    assert selection.QueryMix.of(0.9, data) == selection.QueryMix(0.9, True)
    assert selection.QueryMix.of(0.0, data) == selection.QueryMix(0.0, True)
    data = encoded(np.eye(4), np.eye(4), [[0], [1], [2], [3]])
    same = replace(data, canonical_rows=np.array([0, 0, 2, 3]))
    assert selection.QueryMix.of(None, same).known_share == 0.5


@pytest.mark.parametrize(
    ("relevant", "share"),
    [
        # Of eight judgements six are about documents that are asked for once.
        ([[0], [0], [1], [2], [3], [4], [5], [6]], 0.25),
        ([[0, 1], [0, 2], [3, 4], [5, 6]], 0.25),  # not queries
        ([[0], [1], [2], [3]], 0.0),
        # Four of five are asked for twice or more, but one half is the most that is trusted.
        ([[0], [0], [1], [1], [2]], 0.5),
    ],
)
def test_otherwise_documents_asked_for_once_tell_how_many_queries_ask_for_new_ones(relevant, share):
    data = encoded(np.eye(len(relevant)), np.eye(9), relevant)
    assert selection.QueryMix.of(None, data) == selection.QueryMix(pytest.approx(share), False)


def test_known_and_new_weigh_as_expected_and_a_plain_mean_has_its_standard_error():
    found = cross_fitted([True, False, False, False], expect=0.7, better=[0.6, 0.5, 0.5, 0.8])
    weights = found.weights(found.everything)
    assert weights == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert weights @ found.gain(Named("better")) == pytest.approx(0.7 * 0.1 + 0.1 * 0.3)
    values = np.array([1.0, 2.0, 4.0, 5.0])
    # Deviations of 2, 1, 1, 2 from the mean of 3, each weighing a quarter.
    assert selection.weighted_error(values, np.full(4, 0.25)) == pytest.approx((10 / 16) ** 0.5)
    half = np.array([0.5, 0, 0.5, 0])
    assert selection.weighted_error(values, half) == pytest.approx((4.5 / 4) ** 0.5)


@pytest.mark.parametrize("known", [True, False])
def test_where_one_kind_cannot_be_judged_the_other_speaks_for_it(known):
    found = cross_fitted([known, known], expect=0.2)
    assert found.weights(found.everything) == pytest.approx([0.5, 0.5])


KNOWN = np.array([True, False] * 10)


@pytest.mark.parametrize(("ahead", "chosen"), [(0.1, RICH), (0.05, RICH), (0.01, SIMPLE)])
def test_the_best_wins_unless_a_simpler_one_is_within_one_standard_error(ahead, chosen):
    # Rich is better in the mean, by .1 more here and less there: an error of 0.1 / √20.
    by_turns = np.resize([0.1, 0.1, -0.1, -0.1], 20)
    found = cross_fitted(KNOWN, simple=0.6, rich=0.6 + ahead + by_turns)
    assert found.choose([IDENTITY, SIMPLE, RICH], found.everything) == chosen


def test_any_loss_on_new_documents_is_harm_unless_the_user_said_what_to_expect():
    scores = {"simple": np.where(KNOWN, 0.9, 0.49), "rich": np.where(KNOWN, 0.6, 0.5)}
    found = cross_fitted(KNOWN, expect=0.5, **scores)
    assert not found.no_regression(SIMPLE, found.everything)
    assert found.choose([IDENTITY, SIMPLE, RICH], found.everything) == RICH
    given = cross_fitted(KNOWN, expect=0.5, given=True, **scores)
    assert given.choose([IDENTITY, SIMPLE, RICH], given.everything) == SIMPLE
    noisy = np.where(KNOWN, 0.5, 0.49 + np.resize([0.2, 0.2, -0.2, -0.2], 20))
    small = np.where(KNOWN, 0.5, 0.499)
    found = cross_fitted(KNOWN, noisy=noisy, small=small, none=np.where(KNOWN, 0.6, 0.5))
    allowed = [found.no_regression(Named(n), found.everything) for n in ("noisy", "small", "none")]
    assert allowed == [False, False, True]


def test_what_another_beats_on_known_and_on_new_documents_is_out_of_the_race():
    noise = np.resize([0.1, 0.1, -0.1, -0.1], 20)
    known, new = np.where(KNOWN, 0.9, 0.2), np.where(KNOWN, 0.2, 0.9)
    fair, maybe = np.full(20, 0.7), known - 0.02 + noise  # behind by less than chance
    scores = {"known": known, "new": new, "fair": fair, "lost": fair - 0.2, "maybe": maybe}
    values, found = {Named(name): each for name, each in scores.items()}, cross_fitted(KNOWN)
    kept = [spec.name for spec in found.racing(values, found.everything)]
    assert kept == ["known", "new", "fair", "maybe"]
    assert len(found.racing(values, np.arange(20) < 18)) == 5  # nine of each kind are too few
    assert found.racing({}, found.everything) == []


def test_only_judgements_that_may_be_looked_at_are():
    first = np.arange(20) < 10
    found = cross_fitted(KNOWN, simple=np.where(first, 0.9, 0.1))
    assert found.choose([IDENTITY, SIMPLE], first) == SIMPLE
    assert found.choose([IDENTITY, SIMPLE], ~first) == IDENTITY
    assert found.choose([IDENTITY, SIMPLE], np.zeros(20, dtype=bool)) == IDENTITY
    found = cross_fitted(KNOWN, simple=0.5)
    assert found.choose([IDENTITY, SIMPLE], found.everything) == IDENTITY


def test_the_state_of_a_search_is_the_mean_gain_of_each_spec():
    found = cross_fitted(KNOWN, expect=0.25, memorised=np.where(KNOWN, 0.9, 0.2))
    gains = selection.SearchState.of(found).gains
    assert gains[IDENTITY] == selection.MeanGains(0.0, 0.0, 0.0, True)
    expected = pytest.approx(0.25 * 0.4 - 0.75 * 0.3)
    memorised = gains[Named("memorised")]
    means = pytest.approx(0.4), pytest.approx(-0.3)
    assert memorised == selection.MeanGains(*means, expected, False)
    one_kind = selection.SearchState.of(cross_fitted([True], better=0.6)).gains[Named("better")]
    assert one_kind == selection.MeanGains(pytest.approx(0.1), 0.0, pytest.approx(0.1), True)
    found = cross_fitted(KNOWN, careful=0.6, memorised=np.where(KNOWN, 0.9, 0.2))
    state, tried = selection.SearchState.of(found), [Named("careful"), Named("memorised")]
    assert state.best(tried) == Named("careful")
    assert state.most(tried, "known") == Named("memorised")
    assert state.most(tried, "new") == state.most(tried, "expected") == Named("careful")
    assert state.best([]) == state.most([], "known") == state.most([], "new") == IDENTITY


class Counted(Named):
    def fit(self, fitter: pipelines.PipelineFitter) -> Adapter:
        FITTED.append(self)
        if self == BROKEN:
            raise TrainingError("no luck")
        return super().fit(fitter)


BROKEN, SOUND = Counted("broken"), Counted("sound")
FITTED: list[pipelines.PipelineSpec] = []


@pytest.fixture
def fitted() -> list[pipelines.PipelineSpec]:
    FITTED.clear()
    return FITTED


def search(data: EncodedDataset, *proposed: pipelines.PipelineSpec) -> selection.Selection:
    mix, options = selection.QueryMix.of(None, data), TrainingOptions(batch_size=16)
    return selection.select(data, [lambda _: list(proposed)], mix, options)


def test_ridge_is_found_on_a_rotated_corpus_and_judged_by_what_chose_nothing():
    found = search(rotated_corpus()[0], pipelines.RidgeSpec(10.0), pipelines.RidgeSpec(0.1))
    assert found.spec == pipelines.RidgeSpec(0.1)
    assert (found.chosen - found.scores.scores[IDENTITY]).mean() > 0.5
    # Every fold chose the same.
    assert np.array_equal(found.chosen, found.scores.scores[found.spec])


def test_each_fold_is_judged_by_what_the_others_chose(monkeypatch):
    data, _ = rotated_corpus(documents=60)
    base = search(data).scores
    fold = base.fold

    def lucky(self: selection.CrossFittedScores, spec: pipelines.PipelineSpec) -> np.ndarray:
        """One candidate is perfect on fold 0 and useless on the others."""
        return np.where(fold == 0, 1.0, -1.0) if spec == SIMPLE else np.zeros(len(fold))

    monkeypatch.setattr(selection.CrossFittedScores, "gain", lucky)
    assert np.array_equal(search(data, SIMPLE).chosen, base.scores[IDENTITY])


def test_a_spec_that_fails_is_dropped_with_a_warning_and_not_tried_again(fitted):
    data, _ = rotated_corpus(documents=60)
    seen = []

    def again(state: selection.SearchState) -> list[pipelines.PipelineSpec]:
        seen.append((len(fitted), BROKEN in state.gains))
        return [BROKEN, pipelines.RidgeSpec(0.1)]

    mix, options = selection.QueryMix.of(None, data), TrainingOptions(batch_size=16)
    with pytest.warns(UserWarning, match="^broken cannot be fitted and is left out: no luck") as w:
        found = selection.select(data, [lambda _: [BROKEN], again], mix, options)
    assert len(w) == 1
    assert seen == [(len(fitted), False)]
    assert 1 <= len(fitted) <= torch.get_num_threads()  # one failure is enough; folds run at once
    assert found.failed == {BROKEN: "no luck"}
    assert list(found.scores.scores) == [IDENTITY, pipelines.RidgeSpec(0.1)]
    assert found.spec == pipelines.RidgeSpec(0.1)


def test_folds_at_once_find_what_they_find_one_by_one():
    data, _ = rotated_corpus(documents=60)
    linear = pipelines.LinearSpec()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(search(data, linear, pipelines.GateSpec(linear, IDENTITY, 0.0)).scores)
    finally:
        torch.set_num_threads(before)
    for spec in found[0].scores:
        assert np.array_equal(found[0].scores[spec], found[1].scores[spec])
    assert found[0].gain(linear).any()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda: np.linalg.inv(np.zeros((12, 12))), "Singular"),
        (lambda: np.empty((2**24, 2**24)), "Unable to allocate"),
        (lambda: torch.empty(2**60), "can't allocate memory"),
    ],
    ids=["singular", "no memory", "no memory for torch"],
)
def test_what_cannot_be_solved_or_held_in_memory_is_a_failure_of_the_spec(broken, why, monkeypatch):
    monkeypatch.setattr(pipelines.RidgeSpec, "fit", lambda *_: LinearAdapter(broken()))
    with pytest.warns(UserWarning, match=rf"ridge\(.*\) cannot be fitted and is left out: .*{why}"):
        found = search(rotated_corpus(documents=60)[0], pipelines.RidgeSpec(1.0))
    assert found.spec == IDENTITY


def test_a_spec_proposed_twice_is_tried_once(fitted):
    found = search(rotated_corpus(documents=60)[0], SOUND, SOUND, IDENTITY)
    assert len(fitted) == 5  # once a fold
    assert list(found.scores.scores) == [IDENTITY, SOUND]


def test_what_cannot_win_is_left_out_after_two_folds(fitted, monkeypatch):
    monkeypatch.setattr(Named, "fit", lambda *_: LinearAdapter(-np.eye(12, dtype=np.float32)))
    found = search(rotated_corpus(documents=60)[0], SOUND, pipelines.RidgeSpec(0.1))
    assert (len(fitted), found.failed) == (2, {})
    assert list(found.scores.scores) == [IDENTITY, pipelines.RidgeSpec(0.1)]


def test_what_was_beaten_by_a_spec_that_fails_later_is_tried_after_all(fitted, monkeypatch):
    monkeypatch.setattr(Named, "fit", lambda *_: LinearAdapter(-np.eye(12, dtype=np.float32)))
    fits, fit = iter(range(9)), pipelines.RidgeSpec.fit

    def tired(spec: Any, fitter: Any) -> Any:
        return fit(spec, fitter) if next(fits) < 2 else np.linalg.inv(np.zeros((2, 2)))

    monkeypatch.setattr(pipelines.RidgeSpec, "fit", tired)
    with pytest.warns(UserWarning, match="is left out: Singular"):
        found = search(rotated_corpus(documents=60)[0], SOUND, pipelines.RidgeSpec(0.1))
    assert list(found.scores.scores) == [IDENTITY, SOUND]


def test_a_spec_reads_well_and_knows_its_lowest_map_and_whether_it_moves_documents():
    kernel = pipelines.KernelSpec(pipelines.LinearSpec(0.5), temperature=0.1, weight=2.0)
    assert str(kernel) == "kernel(linear(alpha=0.5), temperature=0.1, weight=2)"
    assert (str(LINEAR), str(IDENTITY)) == ("linear", "identity")
    assert LINEAR != CORPUS
    assert not kernel.adapts_documents
    assert replace(kernel, base=TWO_SIDED).adapts_documents
    assert pipelines.NudgeSpec(kernel).adapts_documents
    kernel = pipelines.KernelSpec(CORPUS, 0.1, 1.0)
    assert pipelines.GateSpec(LINEAR, kernel, 0.0).lowest_map == LINEAR
    assert pipelines.GateSpec(kernel, LINEAR, 0.0).lowest_map == CORPUS
    on, lowest = (pipelines.QueryOnMappedSpec(TWO_SIDED, spec) for spec in (kernel, CORPUS))
    assert on.lowest_map == lowest
    assert TWO_SIDED.lowest_map == TWO_SIDED


def test_what_is_trained_is_trained_once(monkeypatch):
    runs, once = [], pipelines.descend
    monkeypatch.setattr(pipelines, "descend", lambda *a, **k: runs.append(1) or once(*a, **k))
    fitter = pipelines.PipelineFitter(rotated_corpus(documents=40)[0], TrainingOptions())
    assert fitter.fit(LINEAR) == fitter.fit(LINEAR) != fitter.fit(CORPUS)
    half, start = map(fitter.fit, (pipelines.LinearSpec(0.5), pipelines.WhiteningSpec(0.25)))
    assert np.allclose(2 * half.weight, start.weight + fitter.fit(LINEAR).weight)
    fitter.fit(pipelines.KernelSpec(LINEAR, 0.1, 1.0))
    assert len(runs) == 2


def tuned(kept: Path) -> AutoResult:
    data, options = rotated_corpus(documents=200)[0], TrainingOptions(method=["linear", "mnr"])
    return tune(data, options, kept=kept, show_progress=False)


@pytest.mark.slow
def test_a_run_after_a_kill_trains_what_is_missing_and_nothing_twice(monkeypatch, tmp_path):
    place, runs, once = tmp_path / "adapter.fitting", [], pipelines.descend
    code = f"from tests.training.test_selection import *; tuned(Path({str(place)!r}))"
    killed = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while killed.poll() is None and not list(place.glob("*/fold */linear")):
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL  # in the midst of it
    done = len([found for found in place.glob("*/fold */*") if found.name in SPECS])
    monkeypatch.setattr(pipelines, "descend", lambda *a, **k: runs.append(1) or once(*a, **k))
    again, trained = tuned(place), len(runs)
    whole = tuned(tmp_path / "other")
    assert 1 <= done == len(runs) - 2 * trained  # what the second run of all trained in addition
    assert (again.choice.to_dict(), again.candidate) == (whole.choice.to_dict(), whole.candidate)
    assert not place.exists()


def test_what_is_in_front_of_mapped_documents_learns_from_these():
    data, mapped = rotated_corpus(documents=40)[0], TWO_SIDED
    fitter = pipelines.PipelineFitter(data, TrainingOptions(batch_size=16))
    below = fitter.fit(mapped)
    # Nothing on top changes nothing.
    plain = fitter.fit(pipelines.QueryOnMappedSpec(mapped, IDENTITY))
    assert np.allclose(plain.apply(data.queries), below.apply(data.queries), atol=1e-6)
    moved = below.apply(data.documents, "document")
    assert np.allclose(plain.apply(data.documents, "document"), moved, atol=1e-6)
    # A map that memorises starts there and finds what it was shown among the moved documents.
    memorising = fitter.fit(pipelines.QueryOnMappedSpec(mapped, CORPUS))
    assert np.array_equal(memorising.apply(data.documents, "document"), moved)
    more, less = (each.apply(data.queries) for each in (memorising, plain))
    assert found_first(data, more, moved) > found_first(data, less, moved)
    # A gate compares vectors of the base model, whatever became of documents.
    assert fitter.on_mapped(mapped).gate is fitter.gate


@pytest.mark.parametrize("method", SPECS)
def test_every_method_yields_an_adapter_that_keeps_its_promise_about_documents(method):
    data, _ = rotated_corpus(documents=40)
    fitter = pipelines.PipelineFitter(data, TrainingOptions(batch_size=16))
    moves = SPECS[method].moves_documents
    for spec in space.alone(method):
        adapter = fitter.fit(spec)
        assert (adapter.input_dim, adapter.output_dim) == (12, 12)
        documents = adapter.apply(data.documents, "document", data.keys)
        assert np.isfinite(documents).all()
        assert np.array_equal(documents, data.documents) != moves
        assert spec.adapts_documents == adapter.adapts_documents == moves


def test_nudges_lie_on_top_and_are_fitted_on_the_map_below_kernels_and_gates():
    ridge = pipelines.RidgeSpec(1.0)
    fitter = pipelines.PipelineFitter(rotated_corpus(documents=40)[0], TrainingOptions())
    below, nudges = fitter.fit(pipelines.NudgeSpec(pipelines.KernelSpec(ridge, 0.1, 1.0))).adapters
    assert below == fitter.fit(pipelines.KernelSpec(ridge, 0.1, 1.0))
    assert isinstance(nudges, NudgeAdapter)
    assert nudges == fitter.nudges(ridge)


def test_methods_that_are_unknown_or_move_documents_without_leave_are_refused():
    assert check_methods("auto", "query") == ["auto"]
    assert check_methods(["ridge", "nudge"], "both") == ["ridge", "nudge"]
    with pytest.raises(OptionError, match=r"one of auto, whiten.*nudge, or several, got 'magic'"):
        check_methods(["auto", "magic"], "query")
    with pytest.raises(OptionError, match="expected one of auto"):
        check_methods("identity", "query")
    with pytest.raises(OptionError, match="'psd' is no longer there; use \"linear\""):
        check_methods("psd", "query")
    with pytest.raises(OptionError, match=r"use method=\"linear\" with adapter_model=LowRank"):
        check_methods("low_rank", "query")
    with pytest.warns(DeprecationWarning, match='"facing" is now called "query_on_mapped"'):
        assert check_methods("facing", "both") == ["query_on_mapped"]
    for name in (name for name, spec in SPECS.items() if spec.moves_documents):
        with pytest.raises(OptionError, match=f"{name!r} moves documents, which needs adapts="):
            check_methods([name], "query")


def state_of(gains: dict[pipelines.PipelineSpec, Any]) -> selection.SearchState:
    """After specs with these gains, on known and on new documents, or one on both."""
    both = {IDENTITY: 0.0, **gains}.items()
    pairs = {spec: np.broadcast_to(gain, 2).tolist() for spec, gain in both}
    return selection.SearchState(
        {s: selection.MeanGains(a, b, (a + b) / 2, a >= 0 <= b) for s, (a, b) in pairs.items()}
    )


def proposed(after: selection.SearchState, place: int, adapts: str = "both") -> list[Any]:
    return search_space(["auto"], adapts)[place](after)


@pytest.mark.parametrize("adapts", ["query", "both"])
def test_auto_proposes_methods_that_move_documents_only_with_leave(adapts):
    gains: dict[pipelines.PipelineSpec, Any] = {}
    for propose in search_space(["auto"], adapts):
        for spec in propose(state_of(gains)):
            gains[spec] = 0.001 * (1 + len(gains))
    assert any(spec.adapts_documents for spec in gains) == (adapts == "both")
    assert {"whitening", "linear", "kernel", "gate"} <= {spec.method for spec in gains}


def test_maps_that_move_least_come_first_and_are_parts_of_the_way_of_one_training():
    maps = proposed(state_of({}), 0, "query")
    linear = [spec.alpha for spec in maps if isinstance(spec, pipelines.LinearSpec)]
    assert linear == [0.5, 0.75, 1.0]
    trained = {replace(spec, alpha=1.0) for spec in maps if isinstance(spec, pipelines.TrainedSpec)}
    assert trained == {pipelines.MnrSpec(), LINEAR, CORPUS}
    [named] = search_space(["ridge", "mnr"], "query")
    assert list(dict.fromkeys(spec.method for spec in named(state_of({})))) == ["ridge", "mnr"]
    both = search_space(["auto", "mnr"], "query")
    assert len(both) == 1 + len(search_space(["auto"], "query"))


def test_kernels_lie_on_what_generalises_and_memorises_best_and_gates_lead_there():
    kernels = proposed(state_of({LINEAR: 0.1, CORPUS: (0.3, -0.3)}), 1)
    assert {type(spec) for spec in kernels} == {pipelines.KernelSpec}
    assert {spec.base for spec in kernels} == {LINEAR, CORPUS}
    # No document has two questions: nothing is known about what memorises.
    kernels = proposed(state_of({LINEAR: (0.0, 0.1)}), 1)
    assert {spec.base for spec in kernels} == {LINEAR, IDENTITY}
    gates = proposed(state_of({LINEAR: 0.1, CORPUS: (0.3, -0.3)}), 2)
    assert {(g.general, g.special) for g in gates} == {(LINEAR, CORPUS)}


def test_the_query_side_goes_on_learning_and_nudges_of_what_stays_come_first():
    maps = proposed(state_of({LINEAR: 0.4, TWO_SIDED: 0.2}), 3)
    assert {spec.document_map for spec in maps} == {TWO_SIDED}
    assert {replace(spec.query_side, alpha=1.0) for spec in maps} == {CORPUS}
    assert proposed(state_of({TWO_SIDED: 0.2}), 4) == []  # no kernel was worth anything yet
    # Where no map of both sides gains, nothing is put in front of it.
    losing = state_of({LINEAR: 0.4, TWO_SIDED: -0.2})
    assert not any(proposed(losing, place) for place in (3, 4, 5))
    kernel = pipelines.KernelSpec(LINEAR, 0.1, 1.0)
    nudges = proposed(state_of({kernel: 0.1, TWO_SIDED: 0.2}), -1)
    assert [spec.base for spec in nudges] == [kernel] * 3 + [TWO_SIDED] * 3
    some = state_of({LINEAR: 0.05, kernel: 0.1}).gains
    clear = selection.SearchState({**some, LINEAR: replace(some[LINEAR], clear=True)})
    assert [spec.base for spec in proposed(clear, -1)] == [LINEAR] * 3 + [kernel] * 3


def test_kernels_on_mapped_documents_have_the_settings_that_were_best_without():
    shapes = {0.5: (0.1, 0.2), 1.0: (0.4, -0.4), 2.0: (0.1, 0.1)}  # weight: known and new
    kernels = {pipelines.KernelSpec(LINEAR, 0.1, weight): gains for weight, gains in shapes.items()}
    found = proposed(state_of({TWO_SIDED: 0.2, **kernels}), 4)
    assert [spec.query_side.weight for spec in found] == [0.5, 1.0]
    assert {(spec.document_map, spec.query_side.base) for spec in found} == {(TWO_SIDED, IDENTITY)}
    memorising = pipelines.QueryOnMappedSpec(TWO_SIDED, CORPUS)
    found = proposed(state_of({TWO_SIDED: 0.2, memorising: 0.3}), 5)
    sides = {spec.query_side for spec in found}
    assert {(gate.general, gate.special) for gate in sides} == {(IDENTITY, CORPUS)}
