"""Time of an epoch of the composed model beside the loop of the method's authors, taking turns.

Both are timed in processor seconds of one thread, which other programs hardly change.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from benchmarks import sets
from benchmarks.cost import original_loop
from benchmarks.quality.composed import (
    METRICS,
    SMALL,
    TRAINED,
    VARIANTS,
    composed_scores,
    embedded,
    keep,
)
from llama_index_embeddings_adapted import ComposedFinetuneEngine
from llama_index_embeddings_adapted.composed.small_model import SmallModel
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.encoding.encoder import Encoder

SETTINGS = VARIANTS[TRAINED]  #: of both; with those of the paper, both lose on this data
LOOPS = ("original's loop", "ours")


@dataclass(frozen=True)
class Trained:
    """One training: seconds per epoch, dev scores, and the small model it kept."""

    seconds: list[float]
    dev: list[float]
    small: SmallModel


def run(data: Path, cache: Path, black_box: Path | None, epochs: int, rounds: int) -> None:
    """Train with both loops from the same vectors, round after round; judge what they kept."""
    torch.set_num_threads(1)
    base = HuggingFaceEmbedding(str(black_box or SMALL), embed_batch_size=16)
    bench = _Bench(sets.load(data, "uberlyft_10k"), base, cache, epochs)
    loops: dict[str, Callable[[Path], Trained]] = {"original's loop": bench.theirs,
                                                   "ours": bench.ours}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    found: dict[str, Any] = {"epochs": epochs, "settings": SETTINGS}
    for number in range(rounds):
        for name in LOOPS if number % 2 == 0 else LOOPS[::-1]:
            clock = mock.patch.object(time, "perf_counter", time.process_time)
            with tempfile.TemporaryDirectory() as folder, clock:
                trained = loops[name](Path(folder))
                seconds[name].append(sum(trained.seconds) / epochs)
                if number == 0:
                    found[name] = {"dev": trained.dev, **bench.judged(trained.small)}
        for name in LOOPS:
            found[name] |= {"seconds per epoch": median(seconds[name]), "rounds": seconds[name]}
        ratios = [old / new for old, new in zip(*(seconds[name] for name in LOOPS), strict=True)]
        found |= {"ratio": median(ratios), "ratios": ratios}
        keep({"time": found})


class _Bench:
    """Both loops over one data set, with the vectors of the black box at hand."""

    def __init__(
        self, real: sets.RealSet, base: HuggingFaceEmbedding, cache: Path, epochs: int
    ) -> None:
        assert real.dev is not None
        self._train, self._dev, self._test = real.train, real.dev, real.tests["test"]
        self._base, self._cache, self._epochs = base, cache, epochs
        encoder = Encoder(base, cache_dir=cache, show_progress=False)
        self._frozen: dict[str, EncodedDataset] = {
            name: encoder.dataset(dataset)
            for name, dataset in (("train", self._train), ("dev", self._dev), ("test", self._test))
        }

    def ours(self, folder: Path) -> Trained:
        """Train with the engine; its epochs include validation, as those of the original do."""
        engine = ComposedFinetuneEngine(
            self._train,
            self._base,
            SMALL,
            val_dataset=self._dev,
            epochs=self._epochs,
            patience=None,
            cache_dir=self._cache,
            model_output_path=folder / "ours",
            show_progress=False,
            **SETTINGS,
        )
        engine.finetune()
        first, *lines = engine.history
        dev = [line.scores["hit_rate@5"] for line in (first, *lines)]
        model = engine.get_finetuned_model()
        return Trained([line.seconds for line in lines], dev, SmallModel(model.augment_model))

    def theirs(self, folder: Path) -> Trained:
        """Train with the original's loop."""
        found = original_loop.train(
            self._train, self._dev, self._frozen["train"], self._frozen["dev"], SMALL, folder,
            self._epochs, **SETTINGS,
        )  # fmt: skip
        small = SmallModel(found.best)
        small.model  # noqa: B018 - loaded while its folder is there
        return Trained(found.seconds, found.scores, small)

    def judged(self, small: SmallModel) -> dict[str, float]:
        """Return the test scores of a small model beside the black box, at the λ of training."""
        vectors = embedded(small, self._test)
        scores = composed_scores(self._frozen["test"], vectors, SETTINGS["weight"])
        return {f"test {metric}": scores[metric] for metric in METRICS}
