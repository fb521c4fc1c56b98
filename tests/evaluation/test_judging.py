from typing import Any

import matplotlib.image
import numpy as np
import pytest
import pytrec_eval
from llama_index.core.evaluation import RetrieverEvaluator

import llama_index_embeddings_adapted as package
from benchmarks import sets
from benchmarks.quality.judged import by_part, known_to
from llama_index_embeddings_adapted import AdaptedEmbedding, compare_retrieval, evaluate_retrieval
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.core.arrays import as_vectors, first_k, l2_normalize, top_k
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.errors import MetricError, OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation.retrieval import METRICS, compute, search
from llama_index_embeddings_adapted.evaluation.verdict import paired_difference
from tests.conftest import QUIET, CountingEmbedding, index_of, real_data
from tests.support.synthetic import encoded

RANDOM = np.random.default_rng(0)


def test_vectors_have_length_one_are_checked_and_ties_go_to_the_first_document():
    rows = l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
    assert l2_normalize(np.array([0.0, 5.0])).tolist() == [0.0, 1.0]
    assert l2_normalize(np.zeros(2)).tolist() == [0.0, 0.0]
    for value, dim, message in (
        ([1.0, 2.0], None, r"answers: expected a matrix \(n, dim\), got shape"),
        ([[1.0, 2.0]], 3, "answers: expected 3 dimensions, got 2"),
        ([[1.0, float("nan")]], None, "expected finite numbers, got NaN"),
    ):
        with pytest.raises(ShapeError, match=message):
            as_vectors(value, what="answers", dim=dim)
    documents = np.float32([[0, 1], [1, 0], [1, 0], [1, 0], [0, 1]])
    rows, scores = top_k(np.float32([[1, 0]]), documents, 2)
    assert rows.tolist() == [[1, 2]]
    assert scores.tolist() == [[1, 1]]
    assert top_k(np.float32([[1, 0]]), documents, 9)[0].tolist() == [[1, 2, 3, 0, 4]]
    many = RANDOM.integers(-99, 99, (5, 1_003)).astype(np.float32)  # ties
    assert np.array_equal(first_k(many, 9), np.argsort(-many, axis=1, kind="stable")[:, :9])


def test_metrics_of_a_ranking_that_can_be_done_in_the_head() -> None:
    # Relevant are documents 5 (grade 2) and 7 (grade 1); found at ranks 2 and 4 of 4.
    ranked = np.array([[1, 7, 2, 5]])
    relevance = Qrels.from_lists([[5, 7]], [[2.0, 1.0]])
    values = {f"{m}@4": compute(f"{m}@4", ranked, relevance, corpus_size=9)[0] for m in METRICS}
    ideal = 2 + 1 / np.log2(3)
    ndcg = (1 / np.log2(3) + 2 / np.log2(5)) / ideal
    means = {"map@4": pytest.approx((1 / 2 + 2 / 4) / 2), "ndcg@4": pytest.approx(ndcg)}
    shares = {"hit_rate@4": 1, "mrr@4": 1 / 2, "precision@4": 2 / 4, "recall@4": 2 / 2}
    assert values == {**shares, **means}
    assert compute("hit_rate@1", ranked, relevance, corpus_size=9)[0] == 0
    assert compute("recall@2", ranked, relevance, corpus_size=9)[0] == 1 / 2


def test_metrics_equal_those_of_trec_eval_on_graded_real_judgements():
    data = Dataset.from_beir(real_data("nfcorpus"), "test")
    assert (len(data.queries), len(data.corpus)) == (323, 3633)
    assert {grade for judged in (data.grades or {}).values() for grade in judged.values()} == {1, 2}
    place = {document: row for row, document in enumerate(data.corpus)}
    grades = [[data.grade(q, d) for d in docs] for q, docs in data.relevant_docs.items()]
    rows = [[place[d] for d in docs] for docs in data.relevant_docs.values()]
    relevance = Qrels.from_lists(rows, grades)
    # Vectors of relevant documents lie near their query, so that there is something to find.
    documents = RANDOM.standard_normal((len(place), 32))
    found = [relevance.relevant_to(row) for row in range(len(data))]
    queries = np.array([documents[rows].mean(axis=0) for rows in found])
    ranked, _ = top_k(l2_normalize(queries), l2_normalize(documents), 100)
    names = list(place)
    qrels = {q: {d: int(data.grade(q, d)) for d in docs} for q, docs in data.relevant_docs.items()}
    lists = ({names[d]: float(100 - rank) for rank, d in enumerate(row)} for row in ranked)
    runs = dict(zip(data.queries, lists, strict=True))
    theirs = {"ndcg": "ndcg_cut", "recall": "recall", "precision": "P", "map": "map_cut",
              "hit_rate": "success"}  # fmt: skip
    measures = {f"{name}.1,5,10,100" for name in theirs.values()} | {"recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(runs)
    for ours, name in theirs.items():
        for k in (1, 5, 10, 100):
            values = compute(f"{ours}@{k}", ranked, relevance, corpus_size=len(names))
            expected = [found[query][f"{name}_{k}"] for query in data.queries]
            assert np.allclose(values, expected, atol=1e-6), (ours, k)
    mrr = compute("mrr@100", ranked, relevance, corpus_size=len(names))
    assert np.allclose(mrr, [found[query]["recip_rank"] for query in data.queries], atol=1e-6)
    assert 0.1 < mrr.mean() < 0.99  # neither trivial


def test_relevance_gives_grades_by_rank_keeps_parts_and_adds_twins_once():
    relevance = Qrels.from_lists([[3, 1], [], [2]], [[2.0, 1.0], [], [1.0]])
    grades = relevance.grades_at(np.array([[1, 0, 3], [1, 2, 3], [2, 0, 1]]))
    assert grades.tolist() == [[1, 0, 2], [0, 0, 0], [1, 0, 0]]
    some = relevance.take(np.array([2, 0]))
    assert (some.counts.tolist(), some.documents.tolist()) == ([1, 2], [2, 3, 1])
    assert some.queries.tolist() == [0, 1, 1]
    first = np.array([0, 1, 0, 3, 1])
    found = Qrels.from_lists([[2], [1, 4], [3]], [[1.0], [1.0, 2.0], [1.0]]).with_twins(first)
    assert [found.relevant_to(row).tolist() for row in range(3)] == [[0, 2], [1, 4], [3]]
    assert found.grades.tolist() == [1.0, 1.0, 2.0, 2.0, 1.0]
    among = found.among(np.array([2, 3]))
    assert [among.relevant_to(row).tolist() for row in range(3)] == [[0], [], [1]]
    assert found.plus(found).counts.tolist() == [4, 4, 2]
    assert found.last(np.array([[0, 1], [1, 0], [0, 1]])).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_identical_models_do_not_differ_a_clear_gain_is_proven_a_small_one_says_how():
    values = RANDOM.random(50)
    found = paired_difference(values, values, metric="ndcg@10")
    assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert found.verdict == "inconclusive: the same on every query"
    assert found.queries_needed == 0
    found = paired_difference(np.array([0.1]), np.array([0.9]), metric="m")  # one proves nothing
    assert found.p_value == 1
    assert found.low < 0 < found.high
    base = RANDOM.random(200)
    clear = paired_difference(base, base + 0.1 + 0.05 * RANDOM.standard_normal(200), metric="m")
    assert clear.low < 0.1 < clear.high or abs(clear.mean - 0.1) < 0.02
    assert clear.p_value < 0.001
    assert clear.verdict == "better: the interval lies above zero"
    worse = paired_difference(base, base - 0.1, metric="m")
    assert worse.verdict == "worse: the interval lies below zero"
    noise = 0.3 * np.resize([1.0, -1.0], 200)
    small = paired_difference(base, base + 0.022 + noise, metric="m")
    needed = (3.24 * small.deviation / 0.022) ** 2
    assert small.queries_needed == pytest.approx(needed, rel=0.01)
    assert f"about {small.queries_needed - 200:,} more judged queries" in small.verdict
    pair, groups = (base, base - 0.1 + noise), np.tile(np.arange(200), 20)
    again = paired_difference(*(np.tile(values, 20) for values in pair), groups=groups)
    once = paired_difference(*pair)  # the same questions 20 times prove no more
    assert [again.queries, again.p_value] == [200, once.p_value]
    assert (again.low, again.high) == pytest.approx((once.low, once.high))
    assert small.provable == pytest.approx(3.24 * small.deviation / 200**0.5)


def test_chance_is_called_significant_about_as_often_as_stated():
    random = np.random.default_rng(1)
    pairs = [(np.zeros(40), random.standard_normal(40)) for _ in range(120)]
    found = [paired_difference(*pair, metric="m", seed=n) for n, pair in enumerate(pairs)]
    rate = np.mean([difference.p_value < 0.05 for difference in found])
    assert rate < 0.12  # expected .05, standard error .02
    covered = np.mean([difference.low <= 0 <= difference.high for difference in found])
    assert covered > 0.86


def test_of_many_queries_resampling_would_find_the_same(monkeypatch):
    pair = np.full(2_000, 0.013), (np.random.default_rng(2).random(2_000) < 0.02) * 1.0  # skewed
    found = paired_difference(*pair, metric="m")
    three = paired_difference(np.zeros(2_000), np.arange(2_000) < 3, metric="m")  # they do not
    assert (three.low, three.verdict.decision.value) == (0.0, "inconclusive")
    monkeypatch.setattr(f"{paired_difference.__module__}._MANY", 2_001)
    drawn = paired_difference(*pair, metric="m")
    near = 0.04 * (drawn.high - drawn.low)
    assert [found.low, found.high] == pytest.approx([drawn.low, drawn.high], abs=near)


async def test_scores_equal_those_of_llama_index_on_the_same_index(base, tmp_path):
    words = [f"w{i}" for i in range(12)]
    corpus = {f"d{i}": " ".join(RANDOM.choice(words, 5)) + f" only{i}" for i in range(40)}
    relevant = {f"q{i}": [f"d{i}", f"d{(i + 7) % 40}"] for i in range(25)}
    queries = {f"q{i}": " ".join(corpus[f"d{i}"].split()[:3]) + f" ask{i}" for i in range(25)}
    data = Dataset(queries, corpus, relevant)
    scores = evaluate_retrieval(base, data, ks=(5,), cache_dir=tmp_path, show_progress=False)
    retriever = index_of(corpus, base).as_retriever(similarity_top_k=5)
    evaluator = RetrieverEvaluator.from_metric_names(["hit_rate", "mrr"], retriever=retriever)
    for query, text in queries.items():
        result = await evaluator.aevaluate(text, relevant[query])
        assert result.metric_vals_dict["hit_rate"] == scores.per_query["hit_rate@5"][query]
        assert result.metric_vals_dict["mrr"] == pytest.approx(scores.per_query["mrr@5"][query])
        assert result.retrieved_ids == scores.retrieved(query, 5)
    assert 0 < scores["hit_rate@5"] < 1


def test_any_metric_can_be_asked_for_down_to_the_depth(small, base):
    scores = evaluate_retrieval(CountingEmbedding(), small, ks=(1, 3), **QUIET)
    assert scores["recall@100"] == 1.0  # deeper than the corpus is all of it
    assert scores["map@2"] == scores.values("map@2").mean()
    assert set(scores.per_query) == {f"{m}@{k}" for m in METRICS for k in (1, 3)}
    assert scores.to_dict()["metrics"]["ndcg@3"] == scores["ndcg@3"]
    assert str(scores).startswith("12 queries, 6 documents: hit_rate@1")
    for wrong in ("ndcg", "ndcg@0", "f1@3", "ndcg@ten"):
        with pytest.raises(MetricError, match=f'"{wrong}": expected a metric and a cut-off'):
            scores[wrong]
    deep = encoded(np.eye(3), RANDOM.standard_normal((300, 3)), [[0], [1], [2]])
    shallow = search(deep, deep.queries, deep.documents)
    with pytest.raises(MetricError, match="ndcg@200: only 100 documents per query were retrieved"):
        shallow["ndcg@200"]
    with pytest.raises(OptionError, match="query_id: 'q9' is none of those that were judged"):
        shallow.retrieved("q9")
    for change, match in (
        ({"ks": (0,)}, r"ks: expected whole numbers >= 1, got \(0,\)"),
        ({"ks": 5}, "ks: expected whole numbers >= 1, got 5"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1 to 2048, got 0"),
        ({"batch_size": "8"}, "batch_size: expected a whole number from 1 to 2048, got '8'"),
        ({"cache_dir": True}, "cache_dir: expected a folder, None or False, got bool"),
    ):
        with pytest.raises(OptionError, match=match):
            evaluate_retrieval(base, small, **change)
    for models in ({}, "minilm"):
        with pytest.raises(OptionError, match="models: expected at least one"):
            compare_retrieval(models, small)
    assert base.asked == []


def test_parts_of_the_scores_are_those_of_the_queries(small):
    scores = evaluate_retrieval(CountingEmbedding(), small, **QUIET)
    real = sets.RealSet("small", small.subset(["q00", "q11"]), None, {"test": small})
    told = known_to(real.train, small)
    assert [query for query, known in told.items() if known] == ["q00", "q01", "q10", "q11"]
    some = by_part({"base": scores, "adapted": scores}, real, "test")["known"]
    mean = scores.values("ndcg@10")[list(told.values())].mean()
    assert (some["queries"], some["base"]["ndcg@10"]) == (4, pytest.approx(mean))


def test_models_over_one_base_cost_one_embedding_run(small, tmp_path):
    base = CountingEmbedding(embed_batch_size=4)
    flipped = AdaptedEmbedding(base, package.LinearAdapter(-np.eye(16, dtype=np.float32)))
    models = {"base": base, "flipped": flipped, "same": AdaptedEmbedding(base, flipped.adapter)}
    quiet: Any = {"cache_dir": tmp_path, "show_progress": False}
    found = compare_retrieval(models, small, ks=(np.int64(1), 3), **quiet)
    assert found.to_markdown("ndcg@3") == found.to_markdown(["ndcg@3"])
    with pytest.raises(OptionError, match=r"models\['none'\]: expected"):
        compare_retrieval({**models, "none": None}, small, **quiet)
    asked = [entry for entry in base.asked if "apple" in entry[1] or "whale" in entry[1]]
    assert len(asked) == len(set(asked)) == 6
    assert found["flipped"].base_calls == 0
    assert found["base"]["ndcg@3"] > 0.8 > 0.2 > found["flipped"]["ndcg@3"]
    difference = found.significance("base", "flipped", metric="ndcg@3")
    assert difference.high < 0
    assert found.significance("flipped", "same", metric="ndcg@3").p_value == 1
    with pytest.raises(OptionError, match="No model 'best' here; models are base, flipped, same"):
        found["best"]


def test_tables_and_figure_show_every_model(small, tmp_path):
    models = {f"seed {seed}": CountingEmbedding(seed=seed, dim=2) for seed in (1, 2)}
    found = compare_retrieval(models, type("OldDataset", (), dict(small)), **QUIET)
    lines = found.to_markdown(["mrr@5", "ndcg@10"]).splitlines()
    assert lines[0] == "| model | mrr@5 | ndcg@10 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| seed 1", "| seed 2"]
    best = max(found["seed 1"]["mrr@5"], found["seed 2"]["mrr@5"])
    assert f"**{best:.4f}**" in found.to_markdown(["mrr@5"])
    assert "hit_rate@1 | hit_rate@5 | hit_rate@10 | mrr@10" in str(found)
    frame = found.to_dataframe(["mrr@5"])
    assert frame.loc["seed 2", "mrr@5"] == found["seed 2"]["mrr@5"]
    image = matplotlib.image.imread(found.plot(tmp_path / "plots" / "bars"))
    with pytest.raises(OptionError, match="the ending of path: expected one of"):
        found.plot(tmp_path / "bars.xyz")
    with pytest.raises(OptionError, match="metrics: expected at least one"):
        found.plot(tmp_path / "bars", metrics=())
    with pytest.raises(OptionError, match="scores: expected those of at least one model"):
        package.Comparison({}).to_markdown()
    assert image.shape[0] > 400
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 10  # bars, text, axes


def test_a_query_does_not_find_itself_and_a_twin_of_an_answer_is_one(base, tmp_path):
    corpus = {"a": "red blue", "b": "red green", "c": "grey", "b2": "red green", "d": "white"}
    data = Dataset({"a": "red blue"}, corpus, {"a": ["b2"]})
    scores = evaluate_retrieval(base, data, cache_dir=tmp_path)
    assert scores["hit_rate@1"] == scores["ndcg@10"] == 1.0
    assert scores.retrieved("a", 2) == ["b", "b2"]
    assert "(ignore_identical_ids)" in str(scores)
    assert "(twins_count)" in str(scores)
    plain = data.scored(ignore_identical_ids=False, twins_count=False)
    plain.save_json(tmp_path / "plain.json")
    assert Dataset.from_json(tmp_path / "plain.json") == plain
    scores = evaluate_retrieval(base, plain, cache_dir=tmp_path)
    assert scores["mrr@10"] == 1 / 3
    assert not scores.notes
    answered = Dataset({"a": "red blue"}, corpus, {"a": ["a"]})  # by its own id, and rightly
    assert evaluate_retrieval(base, answered, cache_dir=tmp_path)["hit_rate@1"] == 1.0
