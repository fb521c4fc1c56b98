from typing import Any

import numpy as np
import pytest

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.errors import DatasetError, OptionError
from tests.conftest import QUIET, index_of


@pytest.mark.parametrize("adapted", [False, True])
def test_a_mixture_a_hybrid_retriever_and_its_ranking_agree(adapted, small, base):
    model: Any = base
    if adapted:
        turn = np.roll(np.eye(base.dim, dtype=np.float32), 1, axis=0)
        model = package.AdaptedEmbedding(base, package.LinearAdapter(turn))
    bank = [model.get_query_embedding(text) for text in small.queries.values()]
    documents = base.vectors("document", small.corpus.values())
    prior = package.DocumentPrior.of(np.float32(bank), documents, weight=0.4, neighbours=3)
    index = index_of(small.corpus, model)
    nodes = list(index.docstore.docs.values())
    hybrid = package.HybridRetriever.from_nodes(index, nodes, weight=0.3, prior=prior, **QUIET)
    mixed = package.evaluate_retrieval(package.Mixture(model, 0.3, prior), small, **QUIET)
    served = package.evaluate_retrieval(hybrid, small, **QUIET)
    assert np.array_equal(mixed.ranked, served.ranked)
    plain = package.evaluate_retrieval(model, small, **QUIET)
    assert not np.array_equal(mixed.ranked, plain.ranked)
    nothing = package.evaluate_retrieval(package.Mixture(model, weight=0.0), small, **QUIET)
    assert np.array_equal(nothing.ranked, plain.ranked)


def test_words_alone_rank_what_shares_words_and_nothing_else():
    corpus = {"a": "red apple", "b": "green apple", "c": "blue sea"}
    dataset = Dataset({"q": "a green apple", "r": "zebra"}, corpus, {"q": ["b"], "r": ["c"]})
    words = package.evaluate_retrieval(package.BM25Index.of(corpus), dataset)
    assert words.retrieved("q") == ["b", "a"]
    assert words.retrieved("r") == []
    assert words["mrr@10"] == 0.5
    assert words.base_calls == 0


def test_they_stand_side_by_side_in_a_comparison(small, base):
    retriever = index_of(small.corpus, base).as_retriever(similarity_top_k=6)
    models = {"base": base, "words": package.BM25Index.of(small.corpus), "retriever": retriever}
    models["mixture"] = package.Mixture(base, 0.2)
    compared = package.compare_retrieval(models, small, **QUIET)
    assert compared["retriever"]["ndcg@10"] == pytest.approx(compared["base"]["ndcg@10"])
    assert compared.significance("base", "mixture").low <= 1
    for name in models:
        assert f"| {name} |" in compared.to_markdown()


def test_a_retriever_of_other_documents_is_refused(small, base):
    index = index_of({**small.corpus, "x": "what is a blue whale"}, base)
    retriever = index.as_retriever(similarity_top_k=7)
    with pytest.raises(DatasetError, match=r'document ids as node ids; it gave "x"'):
        package.evaluate_retrieval(retriever, small)
    with pytest.raises(OptionError, match="weight: expected a number >= 0"):
        package.Mixture(base, -0.1)
