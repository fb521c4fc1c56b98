import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from benchmarks.known import as_texts
from llama_index_embeddings_adapted import Adapter, EmbeddingQAFinetuneDataset, evaluate_retrieval
from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.core.arrays import Vectors
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.errors import AdaptedError, DatasetError, EncodeError
from llama_index_embeddings_adapted.evaluation import verdict
from llama_index_embeddings_adapted.training.auto import descent, pipelines, search_space
from llama_index_embeddings_adapted.training.auto.tune import AutoResult, tune
from llama_index_embeddings_adapted.training.options import TrainingOptions
from tests.support.synthetic import encoded


def data(relevant: list[list[int]], *, documents: int = 10, dim: int = 8) -> EncodedDataset:
    random = np.random.default_rng(0)
    corpus = random.standard_normal((documents, dim))
    near = np.stack([corpus[rows].mean(axis=0) for rows in relevant])
    return encoded(near + 0.3 * random.standard_normal(near.shape), corpus, relevant)


def each(queries: int = 20, documents: int = 10) -> list[list[int]]:
    return [[row % documents] for row in range(queries)]


def changed(change: Callable[[Vectors], Vectors], *sides: str) -> EncodedDataset:
    """Queries and documents, or one side of them, changed like this."""
    start = data(each())
    vectors = {side: change(getattr(start, side)) for side in sides or ("queries", "documents")}
    return replace(start, **vectors)


def duplicates() -> EncodedDataset:
    start = data(each())
    twins = np.arange(10) // 2 * 2
    twice = {"documents": start.documents[twins], "keys": start.keys[twins]}
    return replace(start, canonical_rows=twins, **twice)


def zeros_among(vectors: Vectors) -> Vectors:
    changed = vectors.copy()
    changed[::3] = 0.0
    return changed


def contradictory() -> EncodedDataset:
    start = data(each(40))
    return replace(start, queries=start.queries[np.arange(40) // 2 * 2])


ODD: dict[str, Callable[[], EncodedDataset]] = {
    "all questions about one document": lambda: data([[0]] * 20),
    "every document answers every question": lambda: data([list(range(10))] * 20),
    "a corpus of one document": lambda: data([[0]] * 20, documents=1),
    "two documents": lambda: data(each(20, 2), documents=2),
    "duplicate documents": duplicates,
    "duplicate questions with different answers": contradictory,
    "all documents equal": lambda: changed(np.ones_like, "documents"),
    "all questions equal": lambda: changed(np.ones_like, "queries"),
    "everything equal": lambda: changed(np.ones_like),
    "zero questions": lambda: changed(np.zeros_like, "queries"),
    "zero documents": lambda: changed(np.zeros_like, "documents"),
    "some zero vectors": lambda: changed(zeros_among),
    "very long vectors": lambda: changed(lambda vectors: vectors * 1e15),
    "very short vectors": lambda: changed(lambda vectors: vectors * 1e-15),
    "fewer pairs than dimensions": lambda: data(each(12), dim=64),
    "one dimension": lambda: data(each(), dim=1),
    "five questions": lambda: data(each(5)),
    "one pair": lambda: data([[0]]),
}
TOO_LITTLE = {"one pair", "all questions equal", "everything equal", "zero questions"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    monkeypatch.setattr(descent, "_STEPS", 3)
    monkeypatch.setattr(verdict, "RESAMPLES", 99)


def tuned(given: EncodedDataset, method: str) -> AutoResult:
    """Tune; candidates may fail with a warning, but numpy may not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cannot be fitted and is left out")
        options = TrainingOptions(method=method, adapts="both")
        return tune(given, options, show_progress=False)


def assert_finite(adapter: Adapter, given: EncodedDataset) -> None:
    assert np.isfinite(adapter.apply(given.queries)).all()
    assert np.isfinite(adapter.apply(given.documents, "document", given.keys)).all()


def simplest(method: str) -> pipelines.PipelineSpec:
    return search_space.alone(method)[0]


@pytest.mark.parametrize("name", [name for name in ODD if name not in TOO_LITTLE])
def test_auto_works_on_odd_data_and_serves_finite_vectors(name):
    given = ODD[name]()
    found = tuned(given, "auto")
    assert found.choice.verdict
    for adapter in (found.adapter, found.candidate):
        assert_finite(adapter, given)
    gains = [gain for pair in found.choice.gains.values() for gain in pair if gain is not None]
    assert np.isfinite(gains).all()


@pytest.mark.parametrize("name", sorted(TOO_LITTLE))
def test_where_nothing_can_be_learned_the_base_model_stays_and_it_says_what_is_missing(name):
    message = "at least 5 queries, got 1" if name == "one pair" else "cannot be cross-validated"
    found = tuned(ODD[name](), "auto")
    assert found.choice.verdict.decision is verdict.Decision.KEEP_BASE
    assert re.search(message, found.choice.verdict)
    same = package.LinearAdapter.identity(found.adapter.input_dim)
    assert found.adapter == found.candidate == same
    assert found.parts.overall.difference.mean == 0


@pytest.mark.parametrize("method", pipelines.SPECS)
@pytest.mark.parametrize("name", ODD)
def test_each_method_works_on_odd_data_or_gives_one_clear_error(name, method):
    given = ODD[name]()
    try:  # a warning would be an error as well
        adapter = pipelines.PipelineFitter(given, TrainingOptions()).fit(simplest(method))
    except AdaptedError:
        return
    assert_finite(adapter, given)


@pytest.mark.parametrize("method", pipelines.SPECS)
def test_thousands_of_dimensions_and_few_pairs_are_no_trouble(method):
    given = data(each(12), dim=2048)
    adapter = pipelines.PipelineFitter(given, TrainingOptions()).fit(simplest(method))
    assert (adapter.input_dim, adapter.output_dim) == (2048, 2048)
    assert_finite(adapter, given)


@pytest.mark.parametrize("method", ["whitening", "nudge_n"])
def test_tuning_bears_thousands_of_dimensions(method):
    assert tuned(data(each(12), dim=3072), method).candidate.input_dim == 3072


ONE_VECTOR = "gives all 20 queries the same vector"
ZEROS = ("zero questions", "zero documents", "some zero vectors")
FEW = {"one pair": "1 leave 1 and 0. Add queries", "five questions": "5 leave 5 and 0. Add queries"}
EQUAL = dict.fromkeys(("all questions equal", "everything equal"), ONE_VECTOR)
REFUSED = {**FEW, **EQUAL, **dict.fromkeys(ZEROS, "gave a vector of zeros")}


def engine(name: str, tmp_path: Path, **options: Any) -> package.EmbeddingAdapterFinetuneEngine:
    places = {"model_output_path": tmp_path / "adapter", "report_path": tmp_path / "report.html"}
    settings = {"cache_dir": False, "show_progress": False, "epochs": 3, **options}
    return package.EmbeddingAdapterFinetuneEngine(*as_texts(ODD[name]()), **places, **settings)


@pytest.mark.parametrize("name", [name for name in ODD if name not in REFUSED])
def test_linear_trains_saves_and_serves_on_odd_data(name, tmp_path):
    made = engine(name, tmp_path)
    made.finetune()
    assert made.report.verdict
    found = saving.load(tmp_path / "adapter").adapter
    assert np.isfinite(found.apply(ODD[name]().queries)).all()
    model = made.get_finetuned_model()
    assert np.isfinite(model.get_query_embedding("query 0")).all()
    assert np.isfinite(evaluate_retrieval(model, made.dataset, cache_dir=False)["ndcg@10"])


@pytest.mark.parametrize("name", REFUSED)
def test_linear_says_where_nothing_can_be_learned(name, tmp_path):
    with pytest.raises((DatasetError, EncodeError), match=REFUSED[name]):
        engine(name, tmp_path).finetune()
    assert not (tmp_path / "adapter").exists()


@pytest.fixture
def unjudged() -> EmbeddingQAFinetuneDataset:
    texts = {"asked": "query 0", "open": "query 1"}
    relevant = {"asked": ["d0"], "open": []}
    return EmbeddingQAFinetuneDataset(texts, {"d0": "document 0"}, relevant, allow_unjudged=True)


@pytest.mark.parametrize("method", ["linear", "auto", "ridge"])
def test_a_validation_set_without_judgements_is_refused_at_once(method, tmp_path, unjudged):
    with pytest.raises(DatasetError, match=r"val_dataset: 1 of 2 queries have no relevant doc"):
        engine("two documents", tmp_path, method=method, val_dataset=unjudged)


def test_what_cannot_be_judged_is_refused_and_not_scored_as_nan(unjudged, tmp_path):
    _, base = as_texts(data(each(2)))
    with pytest.raises(DatasetError, match=r'1 of 2 .*first: "open".*Drop them with .*judged'):
        evaluate_retrieval(base, unjudged, cache_dir=False, show_progress=False)
    with pytest.raises(DatasetError, match="have no relevant document"):
        package.mine_hard_negatives(unjudged, base, k=1, cache_dir=False, show_progress=False)
    corpus = {"x": "document 0", "y": "document 1"}
    other = EmbeddingQAFinetuneDataset({"v": "another question"}, corpus, {"v": ["x"]})
    made = engine("two documents", tmp_path, val_dataset=other)
    made.finetune()
    assert made.report.known.queries == 1  # known by its text, whatever its id
