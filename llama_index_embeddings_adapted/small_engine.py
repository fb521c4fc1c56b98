"""What the engines that train a whole small model share: data, validation, training, report."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import files
from llama_index_embeddings_adapted.composed_batches import Collator, places
from llama_index_embeddings_adapted.composed_history import ComposedEpoch
from llama_index_embeddings_adapted.composed_options import ComposedOptions
from llama_index_embeddings_adapted.composed_validation import ComposedValidation
from llama_index_embeddings_adapted.data_statistics import data_statistics
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset, answered
from llama_index_embeddings_adapted.division import refuse_one_vector, without_shared_questions
from llama_index_embeddings_adapted.encode import CacheDir, EncodedDataset, Encoder
from llama_index_embeddings_adapted.errors import (
    DatasetError,
    NotTrainedError,
    OptionError,
    need,
)
from llama_index_embeddings_adapted.evaluation import Texts
from llama_index_embeddings_adapted.plotting import plot_history
from llama_index_embeddings_adapted.report import FinetuneReport
from llama_index_embeddings_adapted.small_model import SmallModel
from llama_index_embeddings_adapted.validation import hold_out, known_documents

_HELD_OUT = 0.1


class SmallModelEngine:
    """What both engines share: data, validation, training, report."""

    _composed: bool

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        options: ComposedOptions,
        *,
        val_dataset: EmbeddingQAFinetuneDataset | None,
        model_output_path: str | Path,
        cache_dir: CacheDir,
        report_path: str | Path | None,
        show_progress: bool,
        verbose: bool,
    ) -> None:
        self.dataset = answered(dataset, "dataset")
        self.embed_model = embed_model
        self._given = None if val_dataset is None else answered(val_dataset, "val_dataset")
        self._options = options
        self._output = Path(model_output_path)
        self._cache_dir = cache_dir
        self._report_path = None if report_path is None else Path(report_path)
        self._show_progress, self._verbose = show_progress, verbose
        self._report: FinetuneReport | None = None
        self._base_scores: dict[str, float] = {}

    @property
    def report(self) -> FinetuneReport:
        """What ``finetune()`` found.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._report is None:
            raise NotTrainedError("There is no report before finetune().")
        return self._report

    @property
    def history(self) -> Sequence[ComposedEpoch]:
        """One entry per epoch, epoch 0 included.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        return [line for line in self.report.history if isinstance(line, ComposedEpoch)]

    def save_history(self, path: str | Path) -> None:
        """Write the history as JSON: metric, scores of the base model, one object per epoch."""
        data = {
            "metric": self._options.metric,
            "base": self._base_scores,
            "best_epoch": self.report.best_epoch,
            "epochs": [line.to_dict() for line in self.history],
        }
        files.write_json(Path(path), data)

    def plot_history(self, path: str | Path) -> Path:
        """Draw validation score against epoch, the base model as a horizontal line.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return plot_history(
            [line.scores[self._options.metric] for line in self.history],
            self._base_scores[self._options.metric],
            path,
            metric=self._options.metric,
            best=self.report.best_epoch,
        )

    def _check_report_path(self) -> None:
        """Refuse a page that cannot be written, before anything is paid for.

        Raises:
            OptionError: It cannot.
        """
        if self._report_path is not None:
            files.check_target(self._report_path, error=OptionError)

    def _train(self, small: SmallModel) -> float:
        """Encode, train, judge; leave the best weights in the small model and return λ."""
        began, options = time.perf_counter(), self._options
        for module in ("datasets", "accelerate"):
            need(module, extra="composed")
        if options.lora_rank:
            need("peft", extra="lora")
        from llama_index_embeddings_adapted.composed_body import precision_on
        from llama_index_embeddings_adapted.composed_training import train

        precision_on(small.model.device.type, options)  # refuses before anything is embedded
        encoder = Encoder(
            self.embed_model, cache_dir=self._cache_dir, show_progress=self._show_progress
        )
        try:
            data, judged = self._divided(encoder)
        finally:
            encoder.close()
        source = self.dataset if self._given is None else self._given
        known = known_documents(data, judged)
        validation = ComposedValidation(
            judged, Texts.of(source, judged), known, composed=self._composed
        )
        pool = validation.pool(options.val_depth)
        self._base_scores = validation.base_scores(options.metric, pool)
        own = Texts.of(self.dataset, data)
        fitted = train(
            small.model,
            places(data, per_place=options.queries_per_document, negatives=options.hard_negatives),
            Collator(small.model, data, own, frozen=self._composed),
            lambda: validation.scores(small, options.weight, options.metric, pool),
            options,
            folder=self._checkpoints(encoder, small),
            show_progress=self._show_progress,
        )
        found = validation.judge(small, options.weight)
        self._report = FinetuneReport(
            overall=found.overall,
            known=found.known,
            new=found.new,
            best_epoch=fitted.best_epoch,
            history=fitted.history,
            train_queries=len(data.relevance),
            seconds=time.perf_counter() - began,
            base_calls=encoder.base_calls,
            base_texts=encoder.base_texts,
            base_tokens=encoder.base_tokens,
            interrupted=fitted.interrupted,
            settings={
                **asdict(options),
                **({"tuned_weight": found.weight} if self._composed else {}),
                "base_scores": self._base_scores,
                "resumed_from": fitted.resumed_from,
                "judged_on_synthetic": source.synthetic,
            },
            data=data_statistics(self.dataset),
            held_out=found.held_out,
        )
        return found.weight

    def _divided(self, encoder: Encoder) -> tuple[EncodedDataset, EncodedDataset]:
        data = encoder.dataset(self.dataset)
        refuse_one_vector(data)
        if self._given is not None:
            given = encoder.dataset(self._given)
            train, judged = without_shared_questions(data, given), given
        else:
            rows, held = hold_out(
                data, queries=_HELD_OUT, documents=_HELD_OUT, seed=self._options.seed
            )
            train, judged = data.take(rows), data.take(held)
        if not len(train.relevance) or not len(judged.relevance):
            raise DatasetError(
                "Training needs queries to learn from and queries to validate on; "
                f"{len(data.relevance)} leave {len(train.relevance)} and {len(judged.relevance)}. "
                "Add queries, or pass val_dataset."
            )
        return train, judged

    def _checkpoints(self, encoder: Encoder, small: SmallModel) -> Path:
        """Return the folder of this very training; what another one left there is deleted."""
        folder = self._output.with_name(f"{self._output.name}.checkpoints")
        identity = {
            "options": asdict(self._options),
            "data": [self.dataset.fingerprint, self._given.fingerprint if self._given else None],
            "hard_negatives": self.dataset.hard_negatives,
            "base_model": encoder.fingerprint.digest,
            "augment_model": _digest(small.model),
        }
        run = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        if folder.exists():
            for other in folder.iterdir():
                if other.name != run:
                    shutil.rmtree(other)
        (folder / run).mkdir(parents=True, exist_ok=True)
        return folder / run

    def _finished(self) -> None:
        """Write and print the report; drop the checkpoints, unless training may go on."""
        if self._report_path is not None:
            self.report.to_html(self._report_path, title="Training of a small model")
        if not self.report.interrupted:
            shutil.rmtree(self._output.with_name(f"{self._output.name}.checkpoints"))
        if self._verbose:
            metric = self._options.metric
            for line in self.history:
                print(f"epoch {line.epoch}: {metric} {line.scores[metric]:.4f}")
            print(self.report)

    def _training(self) -> dict[str, Any]:
        return {"data": self.dataset.fingerprint, "report": self.report.to_dict()}


def _digest(model: Any) -> str:
    """Return a hash of the weights, which tells a training from that of another small model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().float().numpy()
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
