import json

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.adapters.composites import StackedAdapter
from llama_index_embeddings_adapted.adapters.maps import NudgeAdapter, UnitAdapter
from llama_index_embeddings_adapted.core.arrays import content_hashes
from llama_index_embeddings_adapted.errors import OptionError
from tests.conftest import QUIET

TEXTS = ("apple pie", "blue whale", "city bus")
OFFSETS = np.outer([0.1, 0.4, 0.2], np.eye(16)[0])
NUDGES = NudgeAdapter.of(content_hashes(TEXTS), OFFSETS)
CORPUS = {"pie": "apple pie", "whale": "blue whale, edited", "bus": "city bus", "sea": "deep sea"}


@pytest.fixture(params=["alone", "in a stack"])
def model(request, base) -> package.AdaptedEmbedding:
    below = package.LinearAdapter(np.diag(np.arange(1.0, 17.0)))  # for queries
    stacked = StackedAdapter(below, NUDGES)
    return package.AdaptedEmbedding(base, NUDGES if request.param == "alone" else stacked)


def test_the_report_says_which_documents_moved_and_how_far(model, base):
    report = package.moved_documents(model, CORPUS, **QUIET)
    assert list(report.distances) == ["bus", "pie"]  # the farthest first
    for name, length in report.distances.items():
        text = CORPUS[name]
        moved = np.subtract(model.get_text_embedding(text), base.vector("document", text))
        assert length == pytest.approx(np.linalg.norm(moved), abs=1e-4)
    assert report.new == ("whale", "sea")  # edited, and new: both keep their vectors
    assert report.deleted == 1  # the text that was edited is gone
    assert report.bound == pytest.approx(0.4)
    assert report.farthest <= report.bound
    assert report.mean == pytest.approx(np.mean(list(report.distances.values())))
    assert "2 of 4 documents move" in str(report)
    assert report.to_markdown(limit=1).endswith(f"| bus | {report.farthest:.3f} |")
    assert json.loads(json.dumps(report.to_dict()))["moved"] == 2


def test_nudges_are_undone_by_their_text_and_bounded_afterwards(model, base):
    less = package.undo_nudges(model.adapter, ["city bus", "never there"])
    undone = package.AdaptedEmbedding(base, less)
    assert list(package.moved_documents(undone, CORPUS, **QUIET).distances) == ["pie"]
    assert undone.get_query_embedding("why?") == model.get_query_embedding("why?")
    clean = package.undo_nudges(model.adapter, keep=list(CORPUS.values()))
    report = package.moved_documents(package.AdaptedEmbedding(base, clean), CORPUS, **QUIET)
    assert (len(report.distances), report.deleted) == (2, 0)
    assert report.bound == pytest.approx(0.2)  # the longest belonged to the text that is gone
    none = package.AdaptedEmbedding(base, package.undo_nudges(model.adapter, TEXTS))
    report = package.moved_documents(none, CORPUS, **QUIET)
    assert (report.distances, report.bound, report.farthest, report.mean) == ({}, None, 0.0, 0.0)
    texts = list(CORPUS.values())
    assert np.allclose(none.get_text_embedding_batch(texts), base.get_text_embedding_batch(texts))
    assert np.allclose(none.get_query_embedding("why?"), model.get_query_embedding("why?"))
    bounded = package.AdaptedEmbedding(base, package.bound_nudges(model.adapter, 0.15))
    before, after = (package.moved_documents(each, CORPUS, **QUIET) for each in (model, bounded))
    assert after.bound == pytest.approx(0.15)
    assert after.distances["pie"] == pytest.approx(before.distances["pie"])
    assert after.distances["bus"] < before.distances["bus"]


def test_a_map_of_all_documents_and_a_prior_are_reported_as_well(base):
    turned = package.AdaptedEmbedding(base, package.LinearAdapter(-np.eye(16), shared=True))
    report = package.moved_documents(turned, CORPUS, **QUIET)
    assert list(report.distances.values()) == pytest.approx([2.0] * 4)
    assert report.new == ()
    still = package.AdaptedEmbedding(base, UnitAdapter(16))
    assert not package.moved_documents(still, CORPUS, **QUIET).distances
    corpus = dict(zip("abc", TEXTS, strict=True))
    vectors = base.vectors("document", TEXTS)
    prior = package.DocumentPrior.of(vectors[:1], vectors, weight=0.5)
    report = package.moved_documents(package.AdaptedEmbedding(base, prior), corpus, **QUIET)
    changes = np.abs(prior.shifts(vectors))
    assert dict(report.distances) == pytest.approx(dict(zip("abc", changes, strict=True)))
    assert report.farthest == pytest.approx(changes.max())
    plain = package.LinearAdapter.identity(16)
    with pytest.raises(OptionError, match="LinearAdapter has no nudges to undo"):
        package.undo_nudges(plain, TEXTS)
    with pytest.raises(OptionError, match="LinearAdapter has no nudges to bound"):
        package.bound_nudges(plain, 1.0)
    with pytest.raises(OptionError, match="max_drift: expected a number >= 0, got -1"):
        package.bound_nudges(NUDGES, -1)
    with pytest.raises(OptionError, match="corpus: expected at least one document"):
        package.moved_documents(package.AdaptedEmbedding(base, plain), {}, **QUIET)
    wider = package.AdaptedEmbedding(base, package.LinearAdapter(np.ones((4, 16)), shared=True))
    with pytest.raises(OptionError, match="by no distance"):
        package.moved_documents(wider, CORPUS, **QUIET)
