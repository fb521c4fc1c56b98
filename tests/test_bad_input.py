"""Data that is odd or scarce: tuning works, or gives one clear error."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from llama_index_embeddings_adapted import significance
from llama_index_embeddings_adapted import stages as stages_module
from llama_index_embeddings_adapted.autotune import Tuned, tune
from llama_index_embeddings_adapted.encode import EncodedDataset
from llama_index_embeddings_adapted.errors import AdaptedError, DatasetError
from llama_index_embeddings_adapted.options import TrainingOptions
from llama_index_embeddings_adapted.recipes import METHODS, Kitchen
from llama_index_embeddings_adapted.vectors import Vectors
from tests.synthetic import encoded


def data(
    relevant: list[list[int]], *, documents: int = 10, dim: int = 8, seed: int = 0
) -> EncodedDataset:
    """Queries near the mean of their documents."""
    random = np.random.default_rng(seed)
    corpus = random.standard_normal((documents, dim))
    near = np.stack([corpus[rows].mean(axis=0) for rows in relevant])
    return encoded(near + 0.3 * random.standard_normal(near.shape), corpus, relevant)


def each(queries: int = 20, documents: int = 10) -> list[list[int]]:
    return [[row % documents] for row in range(queries)]


def with_vectors(
    start: EncodedDataset, *, queries: Vectors | None = None, documents: Vectors | None = None
) -> EncodedDataset:
    return replace(
        start,
        queries=start.queries if queries is None else np.float32(queries),
        documents=start.documents if documents is None else np.float32(documents),
    )


def duplicates() -> EncodedDataset:
    """Each document is there twice, and a query asks for either."""
    start = data(each())
    twins = np.arange(10) // 2 * 2
    return replace(start, documents=start.documents[twins], twins=twins, keys=start.keys[twins])


def zeros_among(vectors: Vectors) -> Vectors:
    changed = vectors.copy()
    changed[::3] = 0.0
    return changed


def contradictory() -> EncodedDataset:
    """Every question is there twice, with different answers."""
    start = data(each(40))
    return with_vectors(start, queries=start.queries[np.arange(40) // 2 * 2])


ODD: dict[str, Callable[[], EncodedDataset]] = {
    "all questions about one document": lambda: data([[0]] * 20),
    "every document answers every question": lambda: data([list(range(10))] * 20),
    "a corpus of one document": lambda: data([[0]] * 20, documents=1),
    "two documents": lambda: data(each(20, 2), documents=2),
    "duplicate documents": duplicates,
    "duplicate questions with different answers": contradictory,
    "all documents equal": lambda: with_vectors(data(each()), documents=np.ones((10, 8))),
    "all questions equal": lambda: with_vectors(data(each()), queries=np.ones((20, 8))),
    "everything equal": lambda: with_vectors(
        data(each()), queries=np.ones((20, 8)), documents=np.ones((10, 8))
    ),
    "zero questions": lambda: with_vectors(data(each()), queries=np.zeros((20, 8))),
    "zero documents": lambda: with_vectors(data(each()), documents=np.zeros((10, 8))),
    "some zero vectors": lambda: with_vectors(
        data(each()),
        queries=zeros_among(data(each()).queries),
        documents=zeros_among(data(each()).documents),
    ),
    "very long vectors": lambda: with_vectors(
        data(each()), queries=data(each()).queries * 1e15, documents=data(each()).documents * 1e15
    ),
    "very short vectors": lambda: with_vectors(
        data(each()), queries=data(each()).queries * 1e-15, documents=data(each()).documents * 1e-15
    ),
    "fewer pairs than dimensions": lambda: data(each(12), dim=64),
    "one dimension": lambda: data(each(), dim=1),
    "five questions": lambda: data(each(5)),
    "one pair": lambda: data([[0]]),
}
TOO_LITTLE = {"one pair", "all questions equal", "everything equal", "zero questions"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages_module, "_STEPS", (2, 4))
    monkeypatch.setattr(significance, "RESAMPLES", 99)


def tuned(given: EncodedDataset, method: str) -> Tuned:
    """Tune; candidates may fail with a warning, but numpy may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*cannot be fitted and is left out")
        return tune(given, TrainingOptions(), method=method, adapts="both", show_progress=False)


@pytest.mark.parametrize("name", [name for name in ODD if name not in TOO_LITTLE])
def test_auto_works_on_odd_data_and_serves_finite_vectors(name: str) -> None:
    given = ODD[name]()
    found = tuned(given, "auto")
    assert found.choice.verdict
    for adapter in (found.adapter, found.candidate):
        assert np.isfinite(adapter.apply(given.queries)).all()
        assert np.isfinite(adapter.apply(given.documents, "document", given.keys)).all()
    assert all(np.isfinite(gain) for gains in found.choice.gains.values() for gain in gains
               if gain is not None)  # fmt: skip


@pytest.mark.parametrize("name", sorted(TOO_LITTLE))
def test_where_nothing_can_be_learned_it_says_what_is_missing(name: str) -> None:
    message = "needs at least 5 queries, got 1" if name == "one pair" else "none to learn from"
    with pytest.raises(DatasetError, match=message):
        tuned(ODD[name](), "auto")


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"identity"}))
@pytest.mark.parametrize("name", ODD)
def test_each_method_works_on_odd_data_or_gives_one_clear_error(name: str, method: str) -> None:
    given = ODD[name]()
    [stage] = stages_module.stages(method, "both", (1, 2))
    *_, recipe = stage(None)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            adapter = Kitchen(given, TrainingOptions(), (1, 2)).make(recipe)
        except AdaptedError:
            return
    assert np.isfinite(adapter.apply(given.queries)).all()
    assert np.isfinite(adapter.apply(given.documents, "document", given.keys)).all()


@pytest.mark.parametrize("method", ["centering", "nudge_n"])
def test_thousands_of_dimensions_and_few_pairs_are_no_trouble(method: str) -> None:
    found = tuned(data(each(12), dim=4096), method)
    assert found.candidate.input_dim == 4096
