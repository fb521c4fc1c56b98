from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.nonparametric import NudgeAdapter
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import OptionError, TrainingError
from llama_index_embeddings_adapted.training.auto import pipelines as recipes
from llama_index_embeddings_adapted.training.auto import tune as stages_module
from llama_index_embeddings_adapted.training.auto.pipelines import (
    BOTH_SIDES,
    IDENTITY,
    METHODS,
    TRAINED,
    Kitchen,
    Recipe,
)
from llama_index_embeddings_adapted.training.auto.selection import (
    Candidates,
    Evidence,
    Expectation,
    Selection,
    select,
    weighted_error,
)
from llama_index_embeddings_adapted.training.auto.tune import epochs_for, stages
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.support.synthetic import encoded, evidence, rotated_corpus

of = Recipe.of
SIMPLE, RICH = of("simple"), of("rich")


def everything(found: Evidence) -> np.ndarray:
    return np.ones(len(found.known), dtype=bool)


# --- what is expected -----------------------------------------------------------------------


def test_what_the_user_says_about_live_queries_is_believed() -> None:
    data = encoded(np.eye(3), np.eye(3), [[0], [1], [2]])
    assert Expectation.of(0.9, data) == Expectation(0.9, True)
    assert Expectation.of(0.0, data) == Expectation(0.0, True)


def test_otherwise_documents_asked_for_once_tell_how_many_queries_ask_for_new_ones() -> None:
    def share(relevant: list[list[int]], **changes: Any) -> float:
        data = encoded(np.eye(len(relevant)), np.eye(9), relevant)
        found = Expectation.of(None, replace(data, **changes))
        assert not found.told
        return found.share

    # Of eight judgements six are about documents that are asked for once.
    assert share([[0], [0], [1], [2], [3], [4], [5], [6]]) == pytest.approx(0.25)
    assert share([[0, 1], [0, 2], [3, 4], [5, 6]]) == pytest.approx(0.25)  # not queries
    assert share([[0], [1], [2], [3]]) == 0.0
    # Four of five are asked for twice or more, but one half is the most that is trusted.
    assert share([[0], [0], [1], [1], [2]]) == 0.5
    # Two documents of one text are one.
    assert share([[0], [1], [2], [3]], canonical_rows=np.array([0, 0, 2, 3, 4, 5, 6, 7, 8])) == 0.5


# --- weighing -------------------------------------------------------------------------------


def test_known_and_new_documents_weigh_as_expected_however_many_were_judged() -> None:
    found = evidence([True, False, False, False], expect=0.7, better=[0.6, 0.5, 0.5, 0.8])
    weights = found.weights(everything(found))
    assert weights == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert weights @ found.gain(of("better")) == pytest.approx(0.7 * 0.1 + 0.1 * 0.3)


def test_where_one_kind_cannot_be_judged_the_other_speaks_for_it() -> None:
    found = evidence([True, True], expect=0.2)
    assert found.weights(everything(found)) == pytest.approx([0.5, 0.5])
    found = evidence([False, False], expect=1.0)
    assert found.weights(everything(found)) == pytest.approx([0.5, 0.5])


def test_the_error_of_a_plain_mean_is_its_standard_error() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    # Deviations of 2, 1, 1, 2 from the mean of 3, each weighing a quarter.
    assert weighted_error(values, np.full(4, 0.25)) == pytest.approx((10 / 16) ** 0.5)
    assert weighted_error(values, np.array([0.5, 0, 0.5, 0])) == pytest.approx((4.5 / 4) ** 0.5)


# --- choosing -------------------------------------------------------------------------------


def test_the_best_wins() -> None:
    found = evidence([True, False] * 10, simple=0.6, rich=0.7)
    assert found.choose([IDENTITY, SIMPLE, RICH], everything(found)) == RICH


def test_the_simpler_wins_within_one_standard_error() -> None:
    # Rich is better by 0.01 in the mean, by 0.11 here and -0.09 there: an error of 0.1 / √20.
    by_turns = np.resize([0.11, 0.11, -0.09, -0.09], 20)
    found = evidence([True, False] * 10, simple=0.6, rich=0.6 + by_turns)
    assert found.choose([IDENTITY, SIMPLE, RICH], everything(found)) == SIMPLE
    # By 0.05 in the mean it is not.
    found = evidence([True, False] * 10, simple=0.6, rich=0.6 + by_turns + 0.04)
    assert found.choose([IDENTITY, SIMPLE, RICH], everything(found)) == RICH


def test_what_is_as_good_as_the_base_model_is_not_chosen() -> None:
    found = evidence([True, False] * 10, simple=0.5)
    assert found.choose([IDENTITY, SIMPLE], everything(found)) == IDENTITY


def test_a_loss_on_new_documents_is_harm_unless_the_user_said_what_to_expect() -> None:
    known = np.array([True, False] * 10)
    scores = {"simple": np.where(known, 0.9, 0.49), "rich": np.where(known, 0.6, 0.5)}
    found = evidence(known, expect=0.5, **scores)
    assert not found.harmless(SIMPLE, everything(found))
    assert found.choose([IDENTITY, SIMPLE, RICH], everything(found)) == RICH
    told = evidence(known, expect=0.5, told=True, **scores)
    assert told.choose([IDENTITY, SIMPLE, RICH], everything(told)) == SIMPLE


def test_any_loss_in_the_mean_is_harm_however_small_or_noisy() -> None:
    known = np.array([True, False] * 10)
    noisy = np.where(known, 0.5, 0.49 + np.resize([0.2, 0.2, -0.2, -0.2], 20))
    small = np.where(known, 0.5, 0.499)
    found = evidence(known, noisy=noisy, small=small, none=np.where(known, 0.6, 0.5))
    assert not found.harmless(of("noisy"), everything(found))
    assert not found.harmless(of("small"), everything(found))
    assert found.harmless(of("none"), everything(found))


def test_only_judgements_that_may_be_looked_at_are() -> None:
    known = np.array([True, False] * 10)
    first = np.arange(20) < 10
    found = evidence(known, simple=np.where(first, 0.9, 0.1))
    assert found.choose([IDENTITY, SIMPLE], first) == SIMPLE
    assert found.choose([IDENTITY, SIMPLE], ~first) == IDENTITY


def test_stages_build_on_the_best_that_does_no_harm_and_on_the_best_by_heart() -> None:
    known = np.array([True, False] * 10)
    found = evidence(known, careful=0.6, by_heart=np.where(known, 0.9, 0.2))
    tried = [IDENTITY, of("careful"), of("by_heart")]
    so_far = Candidates(found, tried, everything(found))
    assert so_far.highest(tried) == of("careful")
    assert so_far.best_known(tried) == of("by_heart")
    assert so_far.best_new(tried) == so_far.best_expected(tried) == of("careful")
    assert so_far.highest([]) == so_far.best_known([]) == so_far.best_new([]) == IDENTITY


# --- the search -----------------------------------------------------------------------------


def search(data: EncodedDataset, *proposed: Recipe, expect: float | None = None) -> Selection:
    return select(
        data,
        [lambda _: list(proposed)],
        Expectation.of(expect, data),
        TrainingOptions(batch_size=16),
        show_progress=False,
    )


def test_ridge_is_found_on_a_rotated_corpus_and_judged_by_what_chose_nothing() -> None:
    data, _ = rotated_corpus()
    found = search(data, of("ridge", strength=10.0), of("ridge", strength=0.1))
    assert found.recipe == of("ridge", strength=0.1)
    gain = found.chosen - found.evidence.scores[IDENTITY]
    assert gain.mean() > 0.5
    # Every fold chose the same.
    assert np.array_equal(found.chosen, found.evidence.scores[found.recipe])


def test_each_fold_is_judged_by_what_the_others_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = rotated_corpus(documents=60)
    base = search(data).evidence
    fold = base.fold

    class Lucky(Evidence):
        """One candidate is perfect on fold 0 and useless on the others."""

        def gain(self, recipe: Recipe) -> np.ndarray:
            return np.where(fold == 0, 1.0, -1.0) if recipe == SIMPLE else np.zeros(len(fold))

    monkeypatch.setattr("llama_index_embeddings_adapted.training.auto.selection.Evidence", Lucky)
    monkeypatch.setitem(METHODS, "simple", METHODS["identity"])
    found = search(data, SIMPLE)
    assert np.array_equal(found.chosen, base.scores[IDENTITY])


def test_a_recipe_that_fails_is_dropped_with_a_warning_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = 0

    def broken(kitchen: Kitchen, recipe: Recipe) -> Adapter:
        nonlocal tried
        tried += 1
        raise TrainingError("no luck")

    monkeypatch.setitem(METHODS, "broken", broken)
    data, _ = rotated_corpus(documents=60)
    with pytest.warns(UserWarning, match="^broken cannot be fitted and is left out: no luck"):
        found = search(data, of("broken"), of("ridge", strength=0.1))
    assert 1 <= tried <= torch.get_num_threads()  # one failure is enough; folds are side by side
    assert found.failed == {of("broken"): "no luck"}
    assert found.recipes == (IDENTITY, of("ridge", strength=0.1))
    assert found.recipe == of("ridge", strength=0.1)


def test_what_failed_in_one_stage_is_not_tried_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def broken(kitchen: Kitchen, recipe: Recipe) -> Adapter:
        tried.append(recipe)
        raise TrainingError("no luck")

    monkeypatch.setitem(METHODS, "broken", broken)
    data, _ = rotated_corpus(documents=60)
    stage = [of("broken")]
    seen_after = []

    def again(found: Candidates) -> list[Recipe]:
        seen_after.append(len(tried))
        return stage

    expectation, options = Expectation.of(None, data), TrainingOptions(batch_size=16)
    with pytest.warns(UserWarning, match="no luck") as warned:
        select(data, [lambda _: stage, again], expectation, options, show_progress=False)
    assert len(warned) == 1
    assert seen_after == [len(tried)]


def test_folds_side_by_side_find_what_they_find_one_by_one() -> None:
    data, _ = rotated_corpus(documents=60)
    recipes = [of("linear", epochs=4), of("gate", of("linear", epochs=4), IDENTITY, odds=0.0)]
    found, before = {}, torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found[threads] = search(data, *recipes)
    finally:
        torch.set_num_threads(before)
    for recipe in recipes:
        scores = [one.evidence.scores[recipe] for one in found.values()]
        assert np.array_equal(*scores)
    assert found[1].evidence.gain(recipes[0]).any()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda: np.linalg.inv(np.zeros((12, 12))), "Singular"),
        (lambda: np.empty((2**24, 2**24)), "Unable to allocate"),
        (lambda: torch.empty(2**60), "can't allocate memory"),
    ],
    ids=["singular", "no memory", "no memory for torch"],
)
def test_what_cannot_be_solved_or_held_in_memory_is_a_failure_of_the_recipe_too(
    broken: Callable[[], Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "broken", lambda kitchen, recipe: LinearAdapter(broken()))
    with pytest.warns(UserWarning, match=f"broken cannot be fitted and is left out: .*{why}"):
        found = search(rotated_corpus(documents=60)[0], of("broken"))
    assert found.recipe == IDENTITY


def test_a_recipe_proposed_twice_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(kitchen: Kitchen, recipe: Recipe) -> Adapter:
        made.append(recipe)
        return LinearAdapter.identity(12)

    monkeypatch.setitem(METHODS, "counted", counted)
    found = search(rotated_corpus(documents=60)[0], of("counted"), of("counted"), IDENTITY)
    assert len(made) == 5  # once a fold
    assert found.recipes == (IDENTITY, of("counted"))


# --- recipes --------------------------------------------------------------------------------


def test_a_recipe_reads_well_and_knows_whether_it_moves_documents() -> None:
    ridge = of("ridge", strength=0.5)
    assert str(of("kernel", ridge, weight=2.0, temperature=0.1)) == (
        "kernel(ridge(strength=0.5), temperature=0.1, weight=2)"
    )
    assert ridge["strength"] == 0.5
    assert not of("kernel", ridge).adapts_documents
    assert of("kernel", of("shared")).adapts_documents
    assert of("nudge", ridge, ridge).adapts_documents


def test_what_is_trained_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = rotated_corpus(documents=40)
    runs = []
    states = recipes.states
    monkeypatch.setattr(recipes, "states", lambda *a, **k: runs.append(1) or states(*a, **k))
    kitchen = Kitchen(data, TrainingOptions())
    one, two = (of("linear", epochs=count) for count in (1, 2))
    assert kitchen.make(one) == kitchen.make(one) != kitchen.make(two)
    assert len(runs) == 2
    half = kitchen.make(of("linear", epochs=1, share=0.5))  # half of the way to the first
    start = kitchen.make(of("whitening", power=0.25))
    assert np.allclose(2 * half.weight, start.weight + kitchen.make(one).weight)  # type: ignore[attr-defined]
    assert len(runs) == 2
    kitchen.make(of("kernel", one, weight=1.0, temperature=0.1))
    assert len(runs) == 2


def test_what_faces_a_map_learns_from_documents_as_it_leaves_them() -> None:
    data, _ = rotated_corpus(documents=40)
    kitchen = Kitchen(data, TrainingOptions(batch_size=16))
    for ground in (of("two_sided", epochs=2), of("shared", epochs=2)):
        below = kitchen.make(ground)
        # Nothing on top changes nothing.
        plain = kitchen.make(of("facing", ground, IDENTITY))
        assert np.allclose(plain.apply(data.queries), below.apply(data.queries), atol=1e-6)
        moved = below.apply(data.documents, "document")
        assert np.allclose(plain.apply(data.documents, "document"), moved, atol=1e-6)
        # A map by heart starts there and finds what it was shown among the moved documents.
        by_heart = kitchen.make(of("facing", ground, of("corpus", epochs=40)))
        again = by_heart.apply(data.documents, "document")
        assert np.array_equal(again, plain.apply(data.documents, "document"))
        right = data.relevance.documents

        def found(adapter: Adapter, moved: Any = moved, right: Any = right) -> float:
            return float(((adapter.apply(data.queries) @ moved.T).argmax(axis=1) == right).mean())

        assert found(by_heart) > found(plain)
        # A gate compares vectors of the base model, whatever became of documents.
        assert kitchen.facing(ground).gate is kitchen.gate


def test_only_linear_maps_of_both_sides_can_be_faced() -> None:
    kitchen = Kitchen(rotated_corpus(documents=40)[0], TrainingOptions())
    with pytest.raises(OptionError, match="Expected linear maps of both sides, got LinearAdapter"):
        kitchen.make(of("facing", of("whitening", power=0.25), IDENTITY))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_yields_an_adapter_that_keeps_its_promise_about_documents(method: str) -> None:
    data, _ = rotated_corpus(documents=40)
    kitchen = Kitchen(data, TrainingOptions(batch_size=16))
    proposed = [] if method == "identity" else stages(method, "both", 1)[0](None)  # type: ignore[arg-type]
    for recipe in proposed:
        adapter = kitchen.make(recipe)
        assert (adapter.input_dim, adapter.output_dim) == (12, 12)
        documents = adapter.apply(data.documents, "document", data.keys)
        assert np.isfinite(documents).all()
        assert np.array_equal(documents, data.documents) == (method not in BOTH_SIDES)
        assert recipe.adapts_documents == adapter.adapts_documents == (method in BOTH_SIDES)


def test_the_nudge_recipe_puts_its_nudges_on_top() -> None:
    data, _ = rotated_corpus(documents=40)
    ridge = of("ridge", strength=1.0)
    kitchen = Kitchen(data, TrainingOptions())
    adapter = kitchen.make(of("nudge", ridge, ridge, epochs=1))
    below, nudges = adapter.adapters  # type: ignore[attr-defined]
    assert below == kitchen.make(ridge)
    assert isinstance(nudges, NudgeAdapter)


# --- stages ---------------------------------------------------------------------------------


def test_maps_are_trained_for_the_same_number_of_steps_whatever_the_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages_module, "_STEPS", 400)
    assert epochs_for(640, 64) == 40  # of ten steps each
    assert epochs_for(64, 64) == 400
    assert epochs_for(10**6, 64) == 1


def test_an_unknown_method_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        OptionError, match=r"one of auto, centering.*nudge, or several, got 'magic'"
    ):
        stages("magic", "query", 1)
    with pytest.raises(OptionError, match="expected one of auto"):
        stages("identity", "query", 1)


@pytest.mark.parametrize("method", sorted(BOTH_SIDES))
def test_methods_that_move_documents_need_leave_to(method: str) -> None:
    with pytest.raises(OptionError, match=f"{method!r} moves documents, which needs adapts="):
        stages(method, "query", 1)
    assert stages(method, "both", 1)


@pytest.mark.parametrize("adapts", ["query", "both"])
def test_auto_proposes_methods_that_move_documents_only_with_leave(adapts: str) -> None:
    known = np.array([True, False] * 10)
    found = evidence(known)
    so_far: list[Recipe] = [IDENTITY]
    for stage in stages("auto", adapts, 1):
        for recipe in stage(Candidates(found, list(so_far), everything(found))):
            found.scores[recipe] = np.full(20, 0.5 + 0.001 * len(so_far))
            so_far.append(recipe)
    assert any(recipe.adapts_documents for recipe in so_far) == (adapts == "both")
    assert {"whitening", "linear", "mean", "kernel", "gate"} <= {r.method for r in so_far}


def proposed(found: Evidence, stage: int) -> list[Recipe]:
    """What a stage proposes on the query side after everything that has scores."""
    so_far = Candidates(found, list(found.scores), everything(found))
    return list(stages("auto", "query", 1)[stage](so_far))


def test_maps_that_move_least_come_first_and_are_parts_of_the_way_of_one_training() -> None:
    maps = proposed(evidence([True, False] * 4), 0)
    shares = [recipe.get("share", 1.0) for recipe in maps if recipe.method == "linear"]
    assert shares == [0.25, 0.5, 0.75, 1.0]
    trained = {recipe.without("share") for recipe in maps if recipe.method in TRAINED}
    assert trained == {of(method, epochs=1) for method in ("mnr", "linear", "corpus")}
    assert [recipe.on for recipe in maps if recipe.method == "mean"][-1] == (
        of("linear", epochs=1),
        of("corpus", epochs=1),
    )


def test_kernels_lie_on_what_generalises_best_and_on_what_gains_most_by_heart() -> None:
    found = evidence([True, False] * 4)
    found.scores[of("linear", epochs=1)] = np.full(8, 0.6)
    found.scores[of("mean", of("linear", epochs=1), of("corpus", epochs=1))] = np.full(8, 0.55)
    found.scores[of("corpus", epochs=1)] = np.tile([0.8, 0.2], 4)
    kernels = proposed(found, 1)
    assert {recipe.method for recipe in kernels} == {"kernel"}
    assert {recipe.on for recipe in kernels} == {
        (of("linear", epochs=1),),
        (of("corpus", epochs=1),),
    }


def test_without_known_documents_kernels_lie_on_what_generalises() -> None:
    found = evidence([False] * 8)  # no document has two questions
    found.scores[of("linear", epochs=1)] = np.full(8, 0.6)
    assert {recipe.on[0] for recipe in proposed(found, 1)} == {of("linear", epochs=1), IDENTITY}
    nothing = np.zeros(8, dtype=bool)
    assert found.choose([IDENTITY, of("linear", epochs=1)], nothing) == IDENTITY


def seen_by(stage: int, **scores: float) -> list[Recipe]:
    """What a stage proposes where documents may move, after maps of some scores."""
    found = evidence([True, False] * 4)
    for method, value in scores.items():
        found.scores[of(method, epochs=1)] = np.full(8, value)
    seen = Candidates(found, list(found.scores), everything(found))
    return list(stages("auto", "both", 1)[stage](seen))


def test_the_query_side_goes_on_learning_in_front_of_the_best_map_of_both_sides() -> None:
    ground = of("two_sided", epochs=1)
    maps = seen_by(3, linear=0.9, shared=0.6, two_sided=0.7)
    assert {recipe.on[0] for recipe in maps} == {ground}
    assert {recipe.on[1].without("share") for recipe in maps} == {of("corpus", epochs=1)}
    assert seen_by(4, two_sided=0.7) == []  # no kernel was worth anything yet
    for stage in (3, 4, 5):  # where no map of both sides gains, nothing faces any
        assert seen_by(stage, linear=0.9, shared=0.4, two_sided=0.3) == []


def test_kernels_face_a_map_with_the_settings_that_were_best_without_it() -> None:
    known = np.array([True, False] * 4)
    found = evidence(known)
    ground, linear = of("two_sided", epochs=1), of("linear", epochs=1)
    found.scores[ground] = np.full(8, 0.7)
    shapes = {0.5: (0.6, 0.7), 1.0: (0.9, 0.1), 2.0: (0.6, 0.6)}  # weight: known and new
    for weight, (old, new) in shapes.items():
        kernel = of("kernel", linear, weight=weight, temperature=0.1)
        found.scores[kernel] = np.where(known, old, new)
    seen = Candidates(found, list(found.scores), everything(found))
    facing = list(stages("auto", "both", 1)[4](seen))
    assert [recipe.on[1]["weight"] for recipe in facing] == [0.5, 1.0]
    assert {(recipe.on[0], recipe.on[1].on[0]) for recipe in facing} == {(ground, IDENTITY)}


def test_nudges_lie_on_the_map_below_kernels_and_gates() -> None:
    ground, corpus = of("two_sided", epochs=1), of("corpus", epochs=1)
    memory = of("kernel", corpus, weight=1.0, temperature=0.1)
    lowest = stages_module._lowest
    assert lowest(of("gate", of("linear", epochs=1), memory, odds=0.0)) == of("linear", epochs=1)
    assert lowest(of("facing", ground, memory)) == of("facing", ground, corpus)
    mean = of("mean", of("linear", epochs=1), corpus)
    assert lowest(of("kernel", mean, weight=1.0, temperature=0.1)) == mean
    assert lowest(ground) == ground


def test_nudges_of_documents_that_stay_come_before_those_of_documents_that_a_map_moves() -> None:
    known = np.array([True, False] * 4)
    kernel = of("kernel", of("linear", epochs=1), weight=1.0, temperature=0.1)
    ground = of("two_sided", epochs=1)
    found = evidence(known)
    found.scores[kernel], found.scores[ground] = np.full(8, 0.6), np.full(8, 0.7)
    seen = Candidates(found, list(found.scores), everything(found))
    nudges = list(stages("auto", "both", 1)[-1](seen))
    assert [recipe.on[0] for recipe in nudges] == [kernel] * 4 + [ground] * 4


def test_the_highest_does_no_harm_and_need_not_be_the_simplest() -> None:
    known = np.array([True, False] * 4)
    close = np.resize([0.71, 0.70, 0.70, 0.71], 8)
    found = evidence(known, simple=0.7, rich=close, by_heart=np.where(known, 2.0, 0.2))
    seen = Candidates(found, list(found.scores), everything(found))
    assert seen.highest(seen.recipes) == RICH
    assert seen.highest([]) == IDENTITY


def test_several_methods_compete_with_auto_or_without() -> None:
    names = [recipe.method for recipe in stages(["ridge", "psd"], "query", 1)[0](None)]  # type: ignore[arg-type]
    assert list(dict.fromkeys(names)) == ["ridge", "psd"]
    assert len(stages(["ridge", "psd"], "query", 1)) == 1
    both = stages(["auto", "psd"], "query", 1)
    assert len(both) == 1 + len(stages("auto", "query", 1))
    with pytest.raises(OptionError, match="'magic'"):
        stages(["auto", "magic"], "query", 1)
    with pytest.raises(OptionError, match="'nudge' moves documents"):
        stages(["auto", "nudge"], "query", 1)
