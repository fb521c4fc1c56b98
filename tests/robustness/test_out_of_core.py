import os

import numpy as np
import pytest
import torch

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, evaluate_retrieval
from llama_index_embeddings_adapted.core import arrays
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import CacheError
from llama_index_embeddings_adapted.evaluation import held_out
from llama_index_embeddings_adapted.training import modules
from llama_index_embeddings_adapted.training.closed_form import Spectrum
from llama_index_embeddings_adapted.training.modules import TrainingDocuments
from llama_index_embeddings_adapted.training.options import TrainingOptions
from llama_index_embeddings_adapted.training.trainer import states
from tests.conftest import QUIET
from tests.support.synthetic import rotated_corpus

DIM = 12


@pytest.fixture
def corpus() -> np.ndarray:
    random = np.random.default_rng(0)
    rows = arrays.l2_normalize(random.standard_normal((230, DIM)))
    rows[40:45] = rows[200:205] = rows[7]  # ties within a block and across blocks
    return rows


@pytest.fixture
def in_blocks(monkeypatch) -> None:
    """Let 32 documents be a block, and 64 scores be many."""
    monkeypatch.setattr(arrays, "DOCUMENTS_PER_BLOCK", 32)
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", 64)
    monkeypatch.setattr(modules, "MOST_BYTES", 1)
    monkeypatch.setattr(arrays, "MOST_IN_MEMORY", 1)


@pytest.mark.parametrize("k", [1, 10, 100, 500])
def test_search_in_blocks_finds_what_search_in_one_piece_finds(corpus, k, request):
    queries = arrays.l2_normalize(np.random.default_rng(1).standard_normal((17, DIM)))
    whole = arrays.top_k(queries, corpus, k)
    request.getfixturevalue("in_blocks")
    rows, scores = arrays.top_k(queries, arrays.NormalizedRows(corpus), k)
    assert np.allclose(scores, whole[1], atol=1e-6)
    # Blocks of other sizes may be added up in another order, so near ties may change places.
    for mine, theirs, found in zip(rows, whole[0], scores, strict=True):
        gaps = np.abs(np.diff(found)) > 1e-6
        clear = np.append(gaps, True) & np.insert(gaps, 0, True)
        assert np.array_equal(mine[clear], theirs[clear])
        assert len(set(mine.tolist())) == len(mine)


def test_ranks_in_blocks_are_those_in_one_piece(corpus, request):
    queries = arrays.l2_normalize(corpus[[7, 7, 120, 3]] + 0.1)
    wanted = Qrels.from_lists([[7], [202, 41], [229], [100]])
    hidden = Qrels.from_lists([[40], [7, 200], [], []])
    whole = wanted.ranks(queries, corpus)
    competing = wanted.ranks(queries, corpus, hidden=hidden)
    assert (whole - competing).tolist() == [0, 2, 1, 0, 0]  # of equal ones, those before
    request.getfixturevalue("in_blocks")
    rows = arrays.NormalizedRows(corpus)
    assert np.array_equal(wanted.ranks(queries, rows), whole)
    assert np.array_equal(wanted.ranks(queries, rows, hidden=hidden), competing)
    near = wanted.ranks(queries, rows, depth=2)  # exact where they are below 2
    assert np.array_equal(np.minimum(near, 2), np.minimum(whole, 2))


def test_the_directions_of_many_documents_are_found_a_block_at_a_time(corpus, request):
    whole = Spectrum(3 * corpus)
    expected = whole.mean, whole.power(0.5, 1.0)
    request.getfixturevalue("in_blocks")
    parts = Spectrum(3 * corpus)
    assert np.allclose(parts.mean, expected[0], atol=1e-6)
    assert np.allclose(parts.power(0.5, 1.0), expected[1], atol=1e-5)


def test_training_on_documents_left_in_their_file_learns_the_same(request):
    data, _ = rotated_corpus()
    options = TrainingOptions(epochs=2, max_candidates=64)
    start = LinearAdapter.identity(DIM)
    held = [export() for _, export in states(data, start, options)][-1]
    request.getfixturevalue("in_blocks")
    read = [export() for _, export in states(data, start, options)][-1]
    assert np.allclose(read.weight, held.weight, atol=1e-5)


@pytest.mark.usefixtures("in_blocks")
def test_documents_left_in_their_file_are_taken_as_unit_rows_adapted_with_their_keys(corpus):
    documents = TrainingDocuments(2 * corpus, torch.device("cpu"))
    assert np.allclose(documents.take(np.array([3, 1])).numpy(), corpus[[3, 1]], atol=1e-6)
    assert np.allclose(documents.moment().numpy(), corpus.T @ corpus / 230, atol=1e-6)
    keys = np.arange(230, dtype=np.uint64)
    rows = arrays.NormalizedRows(corpus, keys, lambda part, of: part * (1 + of[:, None]))
    assert np.allclose(rows[10:20], corpus[10:20])
    assert np.allclose(rows[np.array([5, 4])], corpus[[5, 4]])


@pytest.mark.usefixtures("in_blocks")
def test_vectors_beyond_a_limit_lie_in_a_file_that_leaves_nothing_behind(base, tmp_path):
    texts = [f"text {number % 7}" for number in range(20)]
    with Encoder(base, cache_dir=tmp_path, show_progress=False) as encoder:
        found = encoder.encode(texts, "document")
        assert isinstance(found, np.memmap)
        assert np.array_equal(found, base.vectors("document", texts))
    assert {path.suffix for path in tmp_path.iterdir()} == {".f32", ".sqlite"}


@pytest.mark.usefixtures("in_blocks")
def test_no_room_for_the_file_is_an_error_and_without_a_folder_there_is_none(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CacheError, match=r"expected room for 0 MiB.*No space left on device"):
        arrays.allocate_vectors((3, 4), tmp_path)
    monkeypatch.setattr(arrays, "MOST_IN_MEMORY", 1)
    assert not isinstance(arrays.allocate_vectors((3, 4), None), np.memmap)


def test_an_adapter_that_moves_documents_scores_the_same_in_blocks(small, base, monkeypatch):
    dim = len(base.vector("document", "a"))
    weight = np.float32(np.random.default_rng(2).standard_normal((dim, dim)))
    model = AdaptedEmbedding(base, LinearAdapter(weight, shared=True))
    whole = evaluate_retrieval(model, small, **QUIET)
    monkeypatch.setattr(arrays, "DOCUMENTS_PER_BLOCK", 2)
    parts = evaluate_retrieval(model, small, **QUIET)
    assert np.array_equal(parts.ranked[:, :2], whole.ranked[:, :2])


def test_where_judging_would_take_long_fewer_queries_are_held_out(monkeypatch):
    data, _ = rotated_corpus()
    _, usual = held_out.hold_out_split(data, None, expect=None, seed=0)
    monkeypatch.setattr(held_out, "_SCORES_PER_JUDGEMENT", 1)
    monkeypatch.setattr(held_out, "_FEWEST_JUDGES", 10)
    train, capped = held_out.hold_out_split(data, None, expect=None, seed=0)
    assert len(usual) > 100
    assert len(capped) < 30
    assert len(train.relevance) + len(capped) == len(data.relevance)
