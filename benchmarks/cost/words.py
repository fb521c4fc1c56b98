"""What words and a prior cost, and how often a retriever ranks as mixing all documents does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import QueryBundle, TextNode

from benchmarks import environment, sets
from llama_index_embeddings_adapted import BM25Index, DocumentPrior, HybridRetriever
from llama_index_embeddings_adapted.core.arrays import content_hashes, l2_normalize
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.lexical.bm25 import best_rows
from llama_index_embeddings_adapted.serving.views import Views

SIZES, WORDS, QUERIES, DIM, CANDIDATES = (100_000, 1_000_000), 100, 200, 384, 100
WEIGHT, PENALTY = 0.4, 0.2
STORES = ("chroma", "lancedb", "qdrant", "faiss", "milvus", "postgres")


def run(data: Path, cache: Path) -> dict[str, Any]:
    """Measure; seconds are those of this process alone, as a busy machine says too much."""
    costs = [cost(data, documents) for documents in SIZES]
    return {"cost": costs, "exactness": exactness(data, cache)}


def cost(data: Path, documents: int) -> dict[str, Any]:
    """Index documents whose words are drawn from real ones, and mix for queries drawn alike."""
    random = np.random.default_rng(0)
    real = " ".join(sets.load(data, "squad_dev").tests["test"].corpus.values()).split()
    drawn = random.integers(len(real), size=(documents + QUERIES, WORDS))
    texts = [" ".join([real[at] for at in row]) for row in drawn.tolist()]
    queries = [" ".join(text.split()[:10]) for text in texts[documents:]]
    corpus = dict(zip(map(str, range(documents)), texts, strict=False))
    began = time.process_time()
    words = BM25Index.of(corpus)
    build = time.process_time() - began
    vectors = l2_normalize(random.standard_normal((documents, DIM), dtype=np.float32))
    prior = DocumentPrior(vectors[:1_000])
    views = Views(words, vectors, np.zeros(documents, np.uint64), WEIGHT, prior)
    dense = random.integers(documents, size=(QUERIES, CANDIDATES))
    taken = []
    for query, found in zip(queries * 2, [*dense, *dense], strict=True):
        began = time.process_time()
        shares = words.shares(query)
        rows = np.union1d(best_rows(shares, CANDIDATES), found)
        views.scores(rows, vectors[0], shares)
        taken.append(1e3 * (time.process_time() - began))
    size = sum(array.nbytes for array in words._arrays.values()) / documents
    rows = sum(array.nbytes for array in words._whole.values()) / documents
    return {
        "documents": documents,
        "words of a document": WORDS,
        "documents indexed per second": round(documents / build),
        "ms per query": round(float(np.median(taken[QUERIES:])), 3),
        "bytes per document": round(size),
        "bytes per document, of frequent words when in use": round(rows),
    }


def exactness(data: Path, cache: Path) -> dict[str, Any]:
    """Compare the first ten of a retriever on each store with those of mixing everything."""
    import tempfile

    from tests.support.stores import ENGINES, postgres_alone

    test = sets.load(data, "scifact").tests["test"]
    base = environment.minilm()
    with Encoder(base, cache_dir=cache, show_progress=False) as encoder:
        encoded = encoder.dataset(test)
    texts, queries = list(test.corpus.values()), list(test.queries.values())
    vectors, asked = l2_normalize(encoded.documents), l2_normalize(encoded.queries)
    ids = [f"00000000-0000-0000-0000-{row:012d}" for row in range(len(texts))]
    nodes = [TextNode(id_=name, text=text) for name, text in zip(ids, texts, strict=True)]
    prior = DocumentPrior.of(asked, vectors, weight=PENALTY)
    words = BM25Index.of(dict(zip(ids, texts, strict=True)))
    shares = np.stack([words.shares(query) for query in queries])
    exact = asked @ vectors.T + WEIGHT * shares - prior.shifts(vectors)
    best = np.sort(exact, axis=1)[:, ::-1][:, :10]
    found = {}
    for name, engine in {**ENGINES, "postgres": postgres_alone}.items():
        if name not in STORES:
            continue
        with tempfile.TemporaryDirectory() as folder, engine(Path(folder)) as stores:
            for node, vector in zip(nodes, vectors, strict=True):
                node.embedding = vector.tolist()
            storage = StorageContext.from_defaults(vector_store=stores("words", DIM))
            index = VectorStoreIndex(nodes, embed_model=base, storage_context=storage)
            hybrid = HybridRetriever(
                index.as_retriever(similarity_top_k=CANDIDATES), words, vectors=vectors,
                nodes=dict(zip(ids, nodes, strict=True)), keys=content_hashes(texts),
                weight=WEIGHT, prior=prior, embed_model=base,
            )  # fmt: skip
            same = 0
            for row, query in enumerate(queries):
                given = hybrid.retrieve(QueryBundle(query, embedding=asked[row].tolist()))
                same += np.allclose([node.score for node in given], best[row], atol=1e-4)
            found[name] = same / len(queries)
            print(name, found[name], flush=True)
    return {"queries": len(queries), "documents": len(texts), "first ten the same": found}
