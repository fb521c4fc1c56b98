"""Each method alone, at one setting that nothing chose: what ``method="auto"`` has to work with."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import environment, sets
from benchmarks.quality import quality
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.evaluation.retrieval import search
from llama_index_embeddings_adapted.training.auto.pipelines import TRAINED, Kitchen, Recipe
from llama_index_embeddings_adapted.training.auto.tune import epochs_for
from llama_index_embeddings_adapted.training.options import TrainingOptions

of = Recipe.of
_RANDOM = ("nudge", "gate", "facing", "mean", *TRAINED)
_OPTIONS = TrainingOptions(max_candidates=1_024, batch_size=192)  # as auto has them


def recipes(epochs: int) -> dict[str, Recipe]:
    """Return the middle setting of each method."""
    linear, corpus = of("linear", epochs=epochs), of("corpus", epochs=epochs)
    return {
        "centering": of("centering"),
        "whitening": of("whitening", power=0.25),
        "ridge": of("ridge", strength=3.0),
        **{method: of(method, epochs=epochs) for method in TRAINED},
        "mean": of("mean", linear, corpus),
        "kernel": of("kernel", of("identity"), weight=1.0, temperature=0.2),
        "gate": of("gate", linear, corpus, odds=0.0),
        "nudge_m": of("nudge_m", distance=0.2),
        "nudge_n": of("nudge_n", distance=0.2),
        "facing": of("facing", of("two_sided", epochs=epochs), corpus),
        "nudge": of("nudge", of("identity"), of("identity"), epochs=3),
    }


def run(data: Path, cache: Path, names: tuple[str, ...], seeds: int) -> None:
    """Fit on train and dev, test once; what is there already is kept."""
    encoder = Encoder(environment.minilm(), cache_dir=cache, show_progress=False)
    for name in names:
        real = sets.load(data, name)
        train = encoder.dataset(real.train if real.dev is None else real.train.merged(real.dev))
        test = encoder.dataset(real.tests["test"])
        epochs = epochs_for(len(train.relevance), _OPTIONS.batch_size)
        for method, recipe in recipes(epochs).items():
            for seed in range(seeds if method in _RANDOM else 1):
                if seed not in _there(name, method):
                    row = _one(train, test, recipe, seed)
                    parts = quality.parts(row.pop("scores"), real, "test")
                    _keep(name, method, {part: quality.means(kept) for part, kept in parts} | row)


def _one(train: EncodedDataset, test: EncodedDataset, recipe: Recipe, seed: int) -> dict[str, Any]:
    began = time.perf_counter()
    adapter = Kitchen(train, replace(_OPTIONS, seed=seed)).make(recipe)
    seconds = time.perf_counter() - began
    documents = adapter.apply(test.documents, "document", test.keys)
    scores = {
        "base": search(test, test.queries, test.documents),
        "adapted": search(test, adapter.apply(test.queries), documents),
    }
    return {"recipe": str(recipe), "seed": seed, "seconds": seconds, "scores": scores}


def _there(name: str, method: str) -> set[int]:
    found = environment.load("alone")["sets"] if environment.exists("alone") else {}
    return {row["seed"] for row in found.get(name, {}).get(method, [])}


def _keep(name: str, method: str, row: dict[str, Any]) -> None:
    def change(results: dict[str, Any]) -> None:
        runs = results.setdefault("sets", {}).setdefault(name, {})
        environment.put(runs.setdefault(method, []), row)

    environment.update("alone", "python -m benchmarks alone --seeds 5", change)
    print(f"{name}, {row['recipe']}, seed {row['seed']}: {row['all']['difference']:+.4f}; "
          f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
