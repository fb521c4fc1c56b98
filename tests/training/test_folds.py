from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_embeddings_adapted import LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter
from llama_index_embeddings_adapted.core.encoded import EncodedDataset, Qrels
from llama_index_embeddings_adapted.errors import DatasetError
from llama_index_embeddings_adapted.evaluation import retrieval
from llama_index_embeddings_adapted.training.auto import cross_fitting
from llama_index_embeddings_adapted.training.auto.cross_fitting import Fold, folds
from tests.support.synthetic import encoded


def dataset(relevant: list[list[int]], *, documents: int) -> EncodedDataset:
    random = np.random.default_rng(0)
    queries = random.standard_normal((len(relevant), 4))
    return encoded(queries, random.standard_normal((documents, 4)), relevant)


def single(queries: int = 60) -> EncodedDataset:
    return dataset([[row % 20] for row in range(queries)], documents=25)


def pairs(data: EncodedDataset) -> set[tuple[str, int]]:
    names = [data.query_ids[row] for row in data.relevance.queries]
    return set(zip(names, data.relevance.documents.tolist(), strict=True))


def judged_pairs(
    data: EncodedDataset, judged: cross_fitting.TestFold, *, known: bool
) -> set[tuple[str, int]]:
    entries = zip(judged.relevance.queries, judged.relevance.documents.tolist(), strict=True)
    found = [(judged.rows[row], d) for row, d in entries if judged.known[row] == known]
    return {(data.query_ids[row], document) for row, document in found}


def rows_of(parts: list[Fold], *, known: bool) -> list[int]:
    found = np.concatenate([fold.test.rows[fold.test.known == known] for fold in parts])
    return sorted(found.tolist())


def honest_folds(data: EncodedDataset, **options: Any) -> list[Fold]:
    """No fold judges by what it trained on, and no query is judged twice in one way."""
    parts = list(folds(data, **options))
    for kind in (True, False):
        rows = rows_of(parts, known=kind)
        assert len(rows) == len(set(rows))
    for fold in parts:
        trained = pairs(fold.train)
        known = judged_pairs(data, fold.test, known=True)
        new = judged_pairs(data, fold.test, known=False)
        vectors = {vector.tobytes() for vector in fold.train.queries}
        assert not any(vector.tobytes() in vectors for vector in fold.test.queries)
        assert not {query for query, _ in trained} & {query for query, _ in known | new}
        assert not {document for _, document in trained} & {document for _, document in new}
        assert {document for _, document in known} <= {document for _, document in trained}
    return parts


def test_every_query_is_judged_once_as_new_and_once_as_known():
    parts = honest_folds(single(300))
    assert len(parts) == 5
    for kind in (True, False):
        assert rows_of(parts, known=kind) == list(range(300))


def test_queries_that_do_not_judge_only_train():
    data, judging = single(300), np.arange(300) % 3 == 0
    parts, whole = honest_folds(data, judging=judging), list(folds(data))
    for kind in (True, False):
        assert rows_of(parts, known=kind) == list(range(0, 300, 3))
    for fold, other in zip(parts, whole, strict=True):
        assert fold.train.query_ids == other.train.query_ids


def test_a_document_that_nobody_else_asks_for_is_not_judged_as_known() -> None:
    # Documents 0 to 9 are asked for twenty times each, the other hundred once.
    relevant = [[row % 10] for row in range(200)] + [[10 + row] for row in range(100)]
    parts = honest_folds(dataset(relevant, documents=110))
    assert rows_of(parts, known=True) == list(range(200))
    assert rows_of(parts, known=False) == list(range(300))


def test_each_fold_trains_on_most_pairs_and_no_new_document_as_the_seed_says():
    for fold in folds(single()):
        assert 0.5 < len(fold.train.relevance) / 60 < 0.8  # 0.64, on average
        new = fold.test.relevance.take(np.flatnonzero(~fold.test.known)).documents
        assert len(new) == 12  # a fifth of the documents, three queries each
        assert not np.isin(new, fold.train.relevance.documents).any()
    drawn = [list(folds(single(), seed=seed)) for seed in (1, 1, 2)]
    one, again, other = ([fold.test.rows.tolist() for fold in parts] for parts in drawn)
    assert one == again != other


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True), min_size=12, max_size=30
    ),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_whatever_the_relevance_no_fold_judges_by_what_it_trained_on(relevant, times, seed):
    data = dataset(relevant, documents=12)
    asked = np.arange(len(relevant)) // times  # each question up to three times
    honest_folds(replace(data, queries=data.queries[asked]), seed=seed)


def test_documents_that_share_queries_or_texts_and_equal_queries_stay_together():
    # Documents 2i and 2i + 1 are both relevant to three queries.
    relevant = [[2 * (row % 20), 2 * (row % 20) + 1] for row in range(60)]
    for fold in honest_folds(dataset(relevant, documents=40)):
        assert (fold.test.relevance.counts == 2).all()
        assert not len(fold.test.excluded.documents)
        assert (fold.train.relevance.counts == 2).all()
    # Each question is asked twice, and answered by another document the second time.
    once = dataset([[row] for row in range(60)], documents=60)
    queries = np.repeat(once.queries[:30], 2, axis=0)
    for fold in honest_folds(replace(once, queries=queries)):
        rows = fold.test.rows[~fold.test.known]
        assert set(rows // 2 * 2) == set(rows[rows % 2 == 0])  # always both of them
        assert len(rows) == 2 * len(set(rows // 2))
    apart = dataset([[row % 20] for row in range(60)], documents=20)
    twins = np.arange(20) // 2 * 2
    for fold in folds(replace(apart, canonical_rows=twins)):
        new = fold.test.relevance.take(np.flatnonzero(~fold.test.known)).documents
        assert not set(twins[new]) & set(twins[fold.train.relevance.documents])


def test_with_dozens_of_answers_per_query_single_documents_are_assigned_and_the_rest_excluded():
    random = np.random.default_rng(0)
    relevant = [random.choice(50, size=25, replace=False).tolist() for _ in range(40)]
    parts = honest_folds(dataset(relevant, documents=50))
    assert len(rows_of(parts, known=False)) == 40
    for fold in parts:
        judged = fold.test
        for place, row in enumerate(judged.rows):
            shown, hidden = judged.relevance.relevant_to(place), judged.excluded.relevant_to(place)
            assert sorted([*shown, *hidden]) == sorted(relevant[row])
            assert len(shown) == pytest.approx(20 if judged.known[place] else 5, abs=6)


def test_questions_about_one_document_only_are_judged_as_known_only():
    parts = honest_folds(dataset([[0] for _ in range(30)], documents=5))
    assert all(len(fold.train.relevance) for fold in parts)
    assert all(fold.test.known.all() for fold in parts)
    assert sum(len(fold.test) for fold in parts) == 30


def test_too_few_queries_or_one_asked_many_times_are_an_error_that_says_so():
    with pytest.raises(DatasetError, match=r"in 5 folds needs at least 5 queries, got 4$"):
        next(folds(dataset([[0], [1], [2], [3]], documents=4)))
    once = dataset([[row % 3] for row in range(20)], documents=3)
    data = replace(once, queries=np.repeat(once.queries[:1], 20, axis=0))
    with pytest.raises(DatasetError, match="20 queries cannot be cross-validated: every"):
        list(folds(data))


@pytest.mark.parametrize("most", [1, 12])  # answers per query; few are ranked in another way
@pytest.mark.parametrize("seed", range(6))
def test_the_score_is_that_of_a_full_sort_whatever_is_tied_or_excluded(most, seed):
    random = np.random.default_rng(seed)
    documents = random.integers(-1, 2, size=(60, 3)).astype(np.float32)  # 27 different ones
    queries = random.integers(-1, 2, size=(30, 3)).astype(np.float32)  # the zero vector too
    rows = [random.permutation(60) for _ in range(30)]
    counts = random.integers(1, most + 1, size=30)
    shown = [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]
    hidden = [row[count : count + 15].tolist() for row, count in zip(rows, counts, strict=True)]
    grades = [random.integers(1, 4, size=count).tolist() for count in counts]
    relevance, kept_out = Qrels.from_lists(shown, grades), Qrels.from_lists(hidden)
    judged = cross_fitting.TestFold(queries, np.arange(30), relevance, kept_out, np.full(30, True))

    scores = queries @ documents.T
    for line, out in zip(scores, hidden, strict=True):
        line[out] = -np.inf
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    expected = retrieval.compute("ndcg@10", ranked, relevance, corpus_size=60)
    assert judged.score(queries, documents) == pytest.approx(expected, abs=1e-12)


def test_documents_are_scored_as_the_adapter_moves_them() -> None:
    # The queries are away from their documents; an offset takes each document to its query.
    queries, corpus = np.eye(10), np.roll(np.eye(10), 1, axis=0)
    data = encoded(queries, corpus, [[row] for row in range(10)])
    nudges = NudgeAdapter(data.keys, 99 * np.eye(10))
    for fold in folds(data):
        assert fold.score(nudges).tolist() == [1.0] * len(fold.test)
        assert fold.score(LinearAdapter.identity(10)).max() < 1.0
