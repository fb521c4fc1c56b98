import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.adapters.composites import halfway
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.errors import NotTrainedError, OptionError
from tests.conftest import QUIET, CountingEmbedding, index_of, nodes_of

COUNT = 120


@pytest.fixture
def reports() -> package.EmbeddingQAFinetuneDataset:
    """Documents that only a code tells apart."""
    random = np.random.default_rng(0)
    codes = [f"{number:06d}" for number in random.choice(10**6, COUNT, replace=False)]
    corpus = {f"d{at}": f"report {code} of the year" for at, code in enumerate(codes)}
    queries = {f"q{at}": f"what says report {code}" for at, code in enumerate(codes)}
    return package.EmbeddingQAFinetuneDataset(queries, corpus, {q: [f"d{q[1:]}"] for q in queries})


def engine_of(dataset: package.EmbeddingQAFinetuneDataset, folder: Path, **options: Any) -> Any:
    given = {"model_output_path": folder / "out", **QUIET, **options}
    return package.EmbeddingAdapterFinetuneEngine(dataset, CountingEmbedding(dim=4), **given)


@pytest.mark.parametrize("options", [{"epochs": 2}, {"method": "whitening"}, {"method": "linear"}])
def test_a_retriever_has_the_weights_that_held_out_queries_found(options, reports, tmp_path):
    engine = engine_of(reports, tmp_path, **options)
    with pytest.raises(NotTrainedError):
        engine.get_finetuned_retriever([])
    engine.finetune()
    views = engine.report.views
    assert views.words > 0
    told = engine.report.to_dict()["views"]
    assert told["views"]["BM25"]["ndcg@10"] > told["views"]["base"]["ndcg@10"] + 0.3
    assert told["overall"]["difference"]["low"] > 0
    assert "· words - " in str(engine.report)
    assert {"base", "adapted", "BM25", "rank fusion", "mixture"} <= {*engine.report.held_out.scores}
    nodes = nodes_of(reports.corpus)
    retriever = engine.get_finetuned_retriever(nodes, top_k=3)
    assert (retriever.views.weight, retriever.top_k) == (views.words, 3)
    found = [retriever.retrieve(query) for query in reports.queries.values()]
    assert np.mean([nodes[0].node_id == f"d{at}" for at, nodes in enumerate(found)]) > 0.9
    retriever.save_pretrained(tmp_path / "retriever")
    base = CountingEmbedding(dim=4)
    dense = index_of(reports.corpus, base).as_retriever(similarity_top_k=100)
    named = {node.node_id: node for node in nodes}
    again = package.HybridRetriever.from_pretrained(tmp_path / "retriever", dense, named)
    for query, one in zip(list(reports.queries.values())[:5], found, strict=False):
        other = again.retrieve(query)
        assert [node.node_id for node in other] == [node.node_id for node in one]
        assert [n.score for n in other] == pytest.approx([n.score for n in one], abs=1e-5)


def test_without_lexical_there_are_vectors_only(reports, tmp_path):
    engine = engine_of(reports, tmp_path, lexical=None, epochs=2)
    engine.finetune()
    assert engine.report.views is engine.report.to_dict()["views"] is None
    assert set(engine.report.held_out.scores) == {"base", "adapted"}
    retriever = engine.get_finetuned_retriever(nodes_of(reports.corpus))
    assert (retriever.views.weight, retriever.views.prior) == (0.0, None)
    with pytest.raises(OptionError, match="lexical: expected one of auto, None"):
        engine_of(reports, tmp_path, lexical="bm25")


@pytest.mark.parametrize("options", [{"epochs": 2}, {"method": "whitening"}])
def test_by_queries_of_an_llm_all_weights_are_safe(options, reports, tmp_path, monkeypatch):
    halved: list[Any] = []
    for room in ("training.auto.selection", "evaluation.views"):
        place = f"{package.__name__}.{room}.halfway"
        monkeypatch.setattr(place, lambda model: halved.append(model) or halfway(model))
    engine = engine_of(reports.with_provenance("llm"), tmp_path, **options)
    engine.finetune()
    assert halved  # what competes beside words
    views = engine.report.views
    assert views.verdict.decision is package.Decision.PROMISING
    assert views.weights == (views.words, views.prior)  # what was judged is served, no more
    assert views.words == 0.4
    weight, queries = map(l2_normalize, np.random.default_rng(0).standard_normal((2, 4, 4)))
    adapted, model = dataclasses.replace(views, model=1), package.LinearAdapter(weight)
    half = l2_normalize(queries + model.map(queries))
    assert adapted.beside(model).map(queries) == pytest.approx(half, abs=1e-6)
    assert dataclasses.replace(adapted, sources=None).beside(model) is model  # proven
    assert dataclasses.replace(adapted, model=0).beside(model).is_identity
