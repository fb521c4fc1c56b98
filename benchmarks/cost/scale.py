"""From ten thousand documents to a million: seconds, bytes and memory of each step.

Each step runs in a process of its own, whose peak memory is its own; the steps of one size share a
cache folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.cost import grown
from benchmarks.cost.grown import CheapBase, Grown
from benchmarks.processes import in_a_process, memory

SIZES = ((1_000, 10_000), (10_000, 100_000), (100_000, 1_000_000))  # pairs, documents
JUDGED = 1_000  # queries that are evaluated, at every size
CANDIDATES = 1_000  # documents that a step scores, at every size
EPOCHS = 2
TEXTS = 512


class Clock:
    """Wall and processor seconds of a block; the memory before it, in MiB."""

    def __enter__(self) -> Clock:
        self._began = time.perf_counter(), time.process_time()
        self._before = memory("VmHWM")
        return self

    def __exit__(self, *_: object) -> None:
        wall, cpu = self._began
        self.found = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "memory_before_mib": self._before,
        }


def _quiet(folder: Path) -> dict[str, Any]:
    return {"cache_dir": folder / "cache", "show_progress": False}


def _encode(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index_embeddings_adapted import embed_corpus

    base = CheapBase(corpus)
    options = _quiet(folder)
    with Clock() as clock:
        embed_corpus(corpus.documents(), base, **options)
    stored = sum(file.stat().st_size for file in (folder / "cache").iterdir())
    embed_corpus(corpus.queries(), base, role="query", **options)
    return {**clock.found, "bytes_per_document": stored / corpus.count}


def _encoded(corpus: Grown, folder: Path) -> Any:
    from llama_index_embeddings_adapted.encoding.encoder import Encoder

    with Encoder(CheapBase(corpus), **_quiet(folder)) as encoder:
        return encoder.dataset(corpus.dataset())


def _read(corpus: Grown, folder: Path) -> dict[str, Any]:
    with Clock() as clock:
        _encoded(corpus, folder)
    return clock.found


def _train(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index_embeddings_adapted.training.closed_form import whitening
    from llama_index_embeddings_adapted.training.options import TrainingOptions
    from llama_index_embeddings_adapted.training.trainer import states

    data = _encoded(corpus, folder)
    _warm_up(data)
    with Clock() as clock:
        start = whitening(data.documents)
        options = TrainingOptions(epochs=1, max_candidates=CANDIDATES)
        *_, (_, export) = states(data, start, options)
    export().save(folder / "adapter")
    return clock.found


def _warm_up(data: Any) -> None:
    """Take a step: torch loads more when it is first used."""
    from llama_index_embeddings_adapted import LinearAdapter
    from llama_index_embeddings_adapted.training.options import TrainingOptions
    from llama_index_embeddings_adapted.training.trainer import states

    start = LinearAdapter.identity(data.queries.shape[1])
    options = TrainingOptions(epochs=1, steps_per_epoch=1, anchor=0, max_candidates=10)
    list(states(data, start, options))


def _evaluate(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index_embeddings_adapted import AdaptedEmbedding, Adapter, evaluate_retrieval

    model = AdaptedEmbedding(CheapBase(corpus), Adapter.load(folder / "adapter"))
    dataset = corpus.dataset(JUDGED)
    with Clock() as clock:
        scores = evaluate_retrieval(model, dataset, **_quiet(folder))
    return {**clock.found, "ndcg@10": scores["ndcg@10"]}


def _finetune(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine as Engine

    options = {"epochs": EPOCHS, "max_candidates": CANDIDATES, **_quiet(folder)}
    place = folder / "finetuned"
    engine = Engine(corpus.dataset(), CheapBase(corpus), model_output_path=place, **options)
    _warm_up(_encoded(Grown(folder / "real.npz", 10, 10), folder))
    with Clock() as clock:
        engine.finetune()
    overall = engine.report.overall
    judged = {"held_out_queries": overall.queries, "difference": overall.difference.mean}
    return {**clock.found, **judged}


def _rebuild(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index_embeddings_adapted import adapt_vectors

    model, file = _both_sides(corpus, folder), folder / "vectors.npy"
    with Clock() as clock:
        adapt_vectors(corpus.documents(), model, file, **_quiet(folder))
    stored = file.stat().st_size
    file.unlink()
    return {**clock.found, "bytes_per_document": stored / corpus.count}


def _rebuild_store(corpus: Grown, folder: Path) -> dict[str, Any]:
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    from llama_index_embeddings_adapted import adapt_nodes

    model, place = _both_sides(corpus, folder), folder / "lance"
    store = LanceDBVectorStore(uri=str(place), table_name="new", mode="create")
    nodes = (TextNode(id_=f"d{row}", text=text) for row, text in enumerate(corpus.documents()))
    with Clock() as clock:
        adapt_nodes(nodes, model, store, batch_size=8192, **_quiet(folder))
    stored = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return {**clock.found, "bytes_per_document": stored / corpus.count}


def _both_sides(corpus: Grown, folder: Path) -> Any:
    from llama_index_embeddings_adapted import AdaptedEmbedding, Adapter, LinearAdapter

    trained: Any = Adapter.load(folder / "adapter")
    return AdaptedEmbedding(CheapBase(corpus), LinearAdapter(trained.weight, shared=True))


def _embed(data: Path) -> dict[str, Any]:
    """Embed real paragraphs with MiniLM."""
    from benchmarks import sets  # loads torch, which measured processes may not need

    texts = list(islice(sets.load(data, "squad_dev").train.corpus.values(), TEXTS))
    base = environment.minilm()
    base.get_text_embedding("the first call of a model is slower than the others")
    with Clock() as clock:
        base.get_text_embedding_batch(texts)
    words = sum(len(text.split()) for text in texts) / TEXTS
    return {"texts": TEXTS, "words_per_text": words, "cpu_seconds": clock.found["cpu_seconds"]}


WORK: dict[str, Callable[[Grown, Path], dict[str, Any]]] = {
    "encode": _encode,
    "read": _read,
    "train": _train,
    "evaluate": _evaluate,
    "finetune": _finetune,
    "rebuild, vectors": _rebuild,
    "rebuild, LanceDB": _rebuild_store,
}


def run(data: Path, cache: Path) -> None:
    """Measure each size and step, on real vectors of the cache; keep what there is after each."""
    rows: list[dict[str, Any]] = []
    found = {"threads": 1, "judged_queries": JUDGED, "candidates_per_step": CANDIDATES}
    found |= {"epochs": {"train": 1, "finetune": EPOCHS}, "rows": rows, "MiniLM": _embed(data)}
    for pairs, documents in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            grown.prepare(data, cache, Path(folder))
            for work in WORK:
                rows.append(in_a_process("-m", __name__, work, pairs, documents, folder))
                print(rows[-1], flush=True)
                environment.save("scale", "python -m benchmarks scale", found)


def _measure(work: str, pairs: int, documents: int, folder: Path) -> dict[str, Any]:
    corpus = Grown(folder / "real.npz", pairs, documents)
    found = WORK[work](corpus, folder)
    facts = {"work": work, "pairs": pairs, "documents": documents, **found}
    rate = documents / found["cpu_seconds"]
    return {**facts, "documents_per_second": rate, "peak_memory_mib": memory("VmHWM")}


if __name__ == "__main__":
    name, queries, count, place = sys.argv[1:]
    print(json.dumps(_measure(name, int(queries), int(count), Path(place))))
