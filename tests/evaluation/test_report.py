import copy
import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_embeddings_adapted.evaluation import verdict as verdicts
from llama_index_embeddings_adapted.evaluation.held_out import REPORTED, PartReport
from llama_index_embeddings_adapted.evaluation.reports import Epoch, FinetuneReport
from llama_index_embeddings_adapted.evaluation.retrieval import ScoreShift
from llama_index_embeddings_adapted.evaluation.verdict import Decision, paired_difference
from llama_index_embeddings_adapted.operations.similarity import CalibratedScores


def part(*change: float, queries: int = 200) -> PartReport:
    """Half of the queries change by the first number, half by the second."""
    base = np.full(queries, 0.5)
    adapted = base + np.resize(change, queries)
    means = [{name: float(values.mean()) for name in REPORTED} for values in (base, adapted)]
    return PartReport(*means, paired_difference(base, adapted, metric="ndcg@10"))


def report(overall: PartReport, **changes: Any) -> FinetuneReport:
    gain = {"overall": 0.1, "new": 0.1}
    history = (Epoch(0, float("nan"), gain, 0.5), Epoch(1, 1.0, gain, 0.5))
    fields: dict[str, Any] = {"overall": overall, "known": None, "new": None, "history": history}
    fields |= {"best_epoch": 1, "train_queries": 100, "seconds": 1.5}
    fields |= {"base_calls": 7, "base_texts": 70}
    return FinetuneReport(**{**fields, **changes})


GOOD, BAD = part(0.3, 0.1), part(-0.3, -0.1)
REAL = "^promising: judge on real queries before shipping; "


@pytest.mark.parametrize(
    ("overall", "changes", "settings", "verdict"),
    [
        (GOOD, {}, {}, r"^ship: held-out queries gain \+0.2000"),
        (part(0.3, -0.29), {}, {}, "^inconclusive: no significant gain or loss$"),
        (part(0.0), {"best_epoch": 0}, {}, "^keep the base model: no epoch of training was better"),
        (GOOD, {"new": BAD}, {}, "^do not ship: NDCG@10 drops on new documents$"),
        (GOOD, {"known": BAD}, {"tuned_weight": 0.5}, "^do not ship: .* on known documents$"),
        (GOOD, {"new": BAD}, {"expect": 0.9}, "^ship"),
        (GOOD, {"new": part(-0.3, -0.1, queries=6), "known": GOOD}, {},
         r"^ship: .*; too few queries to show a loss: 6 on new documents$"),
        (GOOD, {}, {"judged_on": {"llm": 150, "structure": 50}}, REAL + r"none of .* \+0.2000"),
        (GOOD, {}, {"judged_on": {"llm": 181, "human": 19}}, REAL + "19 of those judged"),
        (part(0.3, 0.1, queries=18), {}, {}, "^promising: .* at least 20 are needed"),
        (GOOD, {}, {"judged_on": {"llm": 150, "human": 50}}, REAL + "50 of those .* 70 would"),
        (GOOD, {}, {"judged_on": {"human": 50}}, "^ship"),
        (GOOD, {}, {"looks_random": True}, "^do not ship: .*mismatched ids"),
        (GOOD, {"new": GOOD}, {"looks_random": True}, "^ship: held-out queries gain"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_numbers_say(overall, changes, settings, verdict):
    found = report(overall, settings=settings, **changes)
    assert re.search(verdict, found.verdict)
    assert found.verdict in str(found)
    assert found.to_dict()["decision"] == found.verdict.decision.value


def test_a_verdict_is_its_words_keeps_its_decision_and_believes_rarer_gains_only():
    verdict = report(part(0.3, 0.1)).verdict
    for copied in (copy.deepcopy(verdict), pickle.loads(pickle.dumps(verdict))):
        assert copied == verdict == f"ship: {verdict.reason}"
        assert copied.decision is Decision.SHIP
        assert copied.difference == verdict.difference
    assert json.loads(json.dumps(verdict)) == str(verdict)
    assert verdicts.Verdict(Decision.KEEP_BASE, "why") == "keep the base model: why"
    found = report(part(0.3, -0.22))
    assert 0.02 < found.overall.difference.p_value < 0.05
    assert found.verdict.startswith("inconclusive: the gain may be chance, as the same queries")
    assert report(part(0.3, -0.2)).verdict.decision is Decision.SHIP


@pytest.mark.parametrize(
    ("change", "said"),
    [((0.3, -0.2), "about 64 more judged queries"), ((0.3, -0.29), None), ((0.0,), None)],
)
def test_what_would_settle_it_is_said_below_ten_times_the_queries(change, said):
    verdict = verdicts.inconclusive(part(*change).difference)
    assert verdict.startswith("inconclusive: no significant gain or loss")
    assert ("settle" in verdict) == (said is not None)
    assert said is None or said in verdict


def test_the_report_is_json_without_nan_and_reads_well():
    found = report(part(0.3, 0.1), known=part(0.2, 0.1))
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["overall"]["queries"] == 200
    scores = {"overall": 0.1, "new": 0.1}
    assert data["history"][1] == {"epoch": 1, "loss": 1.0, "scores": scores, "seconds": 0.5}
    assert data["history"][0]["loss"] is None
    assert Epoch.from_dict(data["history"][1]) == found.history[1]
    assert data["new"] is None
    assert "all: NDCG@10 0.5000 → 0.7000" in str(found)
    assert "saved: the candidate that was judged" in str(found)
    kept_aside = report(part(0.0), saved="base", candidate="out.candidate")
    assert "saved: the base model, unchanged; the candidate is in out.candidate" in str(kept_aside)
    assert kept_aside.to_dict()["saved"] == "base"
    assert "kept: epoch 1 of 1; 100 training queries, 1.5 s, 70 texts embedded in 7" in str(found)


def test_scores_move_to_the_base_models_scale_and_keep_their_order():
    shift = ScoreShift.of(np.linspace(0.4, 0.6, 50), np.linspace(0.5, 0.8, 50))
    assert shift.mean == pytest.approx(0.15)
    assert shift.to_adapted(0.5) == pytest.approx(0.65)
    assert shift.to_base(0.65) == pytest.approx(0.5)
    nodes = [NodeWithScore(node=TextNode(text="t"), score=s) for s in (0.95, 0.8, 0.65, 0.2)]
    given = CalibratedScores(base=list(shift.base), adapted=list(shift.adapted))
    scores = [node.score for node in given.postprocess_nodes(nodes)]
    assert scores == pytest.approx([0.75, 0.6, 0.5, 0.1])
    assert "a cut-off of 0.500 for the base model is one of 0.650 now" in str(shift)
