"""Engines that train a whole small model: beside a black box, or on its own."""

from __future__ import annotations

import copy
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding

from ..core import files
from ..core.files import atomic_folder
from ..data.dataset import EmbeddingQAFinetuneDataset, answered, data_statistics
from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import OptionError, require_extra
from ..evaluation.comparison import plot_history
from ..evaluation.held_out import known_mask, labels_look_random
from ..evaluation.page import Texts
from ..evaluation.reports import Engine, Epoch, FinetuneReport
from ..training.options import ComposedOptions
from .embedding import OURS, ComposedEmbedding, save_small
from .small_model import ComposedValidation, SmallModel, held_out_split, precision_on

_OLD = ("save_checkpoints", "resume_from_checkpoint")


class SmallModelEngine(Engine, ABC):
    """What both engines share: data, validation, training, report."""

    _composed: ClassVar[bool]

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        small_model: Any,
        embed_model: BaseEmbedding,
        options: ComposedOptions,
        val_dataset: EmbeddingQAFinetuneDataset | None,
        model_output_path: str | Path,
        cache_dir: CacheDir,
        report_path: str | Path | None,
        show_progress: bool,
        verbose: bool,
    ) -> None:
        self.dataset = answered(dataset, "dataset")
        model = SmallModel.of(small_model, device=options.device).model
        if isinstance(model, BaseEmbedding):
            raise OptionError(
                f"augment_model: expected a SentenceTransformer to train, got a "
                f"{type(model).__name__}, which ComposedEmbedding takes as it is."
            )
        self._small = model if options.device is None else model.to(options.device)
        self.embed_model = embed_model
        self._given = None if val_dataset is None else answered(val_dataset, "val_dataset")
        self._options = options
        self._output = Path(model_output_path)
        self._cache_dir = cache_dir
        self._report_path = None if report_path is None else Path(report_path)
        self._show_progress, self._verbose = show_progress, verbose

    @property
    def history(self) -> Sequence[Epoch]:
        """One entry per epoch, epoch 0 included, once ``finetune()`` is done."""
        return self.report.history

    def save_history(self, path: str | Path) -> None:
        """Write the history as JSON: metric, scores of the base model, one object per epoch."""
        report, metric = self.report, self._options.metric
        scored = {"metric": metric, "base": report.settings["base_scores"]}
        epochs = [line.to_dict() for line in report.history]
        data = {**scored, "best_epoch": report.best_epoch, "epochs": epochs}
        files.write_json(Path(path), data)

    def plot_history(self, path: str | Path) -> Path:
        """Draw validation score against epoch, the base model as a line; needs matplotlib."""
        report, metric = self.report, self._options.metric
        scores = [line.scores[metric] for line in report.history]
        base, best = report.settings["base_scores"][metric], report.best_epoch
        return plot_history(scores, base, path, metric=metric, best=best)

    def finetune(self) -> None:
        """Embed what is not cached, train, and save the model to ``model_output_path``.

        For errors see :meth:`EmbeddingAdapterFinetuneEngine.finetune`.
        """
        files.check_target_folder(self._output, self._replaced())
        if self._report_path is not None:
            files.check_target(self._report_path, error=OptionError)
        small = SmallModel(copy.deepcopy(self._small))
        self._train(small)
        self._save(small.model)
        if self._report_path is not None:
            self.report.to_html(self._report_path, title=f"Small model {self._output.name}")
        if not self.report.interrupted:
            shutil.rmtree(self._output.with_name(f"{self._output.name}.checkpoints"))
        if self._verbose:
            metric = self._options.metric
            for line in self.history:
                print(f"epoch {line.number}: {metric} {line.scores[metric]:.4f}")
            print(self.report)

    @abstractmethod
    def _replaced(self) -> frozenset[str]:
        """Return what ``model_output_path`` may hold: files of an earlier model."""

    @abstractmethod
    def _save(self, model: Any) -> None:
        """Write the trained model to ``model_output_path``."""

    def _train(self, small: SmallModel) -> None:
        """Encode, train, judge; leave the best weights in the small model, and λ in the report."""
        began, options = time.perf_counter(), self._options
        for module in ("datasets", "accelerate"):
            require_extra(module, extra="composed")
        if options.lora_rank:
            require_extra("peft", extra="lora")
        from .training import Collator, checkpoint_folder, train, training_groups

        precision_on(small.model.device.type, options)  # refuses before anything is embedded
        cache, shown = self._cache_dir, self._show_progress
        with Encoder(self.embed_model, cache_dir=cache, show_progress=shown) as encoder:
            data, judged = held_out_split(encoder, self.dataset, self._given, seed=options.seed)
        looks_random = labels_look_random(data, seed=options.seed, tell=shown)
        source = self.dataset if self._given is None else self._given
        searched = (judged, Texts.of(source, judged), known_mask(data, judged), options)
        validation = ComposedValidation(*searched, composed=self._composed)
        per_group, negatives = options.queries_per_document, options.hard_negatives
        groups = training_groups(data, per_group=per_group, negatives=negatives)
        collate = Collator(small.model, data, Texts.of(self.dataset, data), frozen=self._composed)
        folder = checkpoint_folder(self._output, self._identity(encoder, small))
        given = (small.model, groups, collate, lambda: validation.scores(small), options)
        fitted = train(*given, folder=folder, show_progress=shown)
        weight, parts, held_out = validation.judge(small)
        settings = {
            **asdict(options),
            **({"tuned_weight": weight} if self._composed else {}),
            "base_scores": validation.scores(None),
            "resumed_from": fitted.resumed_from,
            "judged_on": source.subset(judged.query_ids).sources,
            "looks_random": looks_random,
            "notes": list(judged.notes),
        }
        self._report = FinetuneReport(
            **parts._asdict(),
            best_epoch=fitted.best_epoch,
            history=tuple(fitted.history),
            train_queries=len(data.relevance),
            seconds=time.perf_counter() - began,
            **encoder.spent,
            interrupted=fitted.interrupted,
            settings=settings,
            data=data_statistics(self.dataset),
            held_out=held_out,
        )

    def _identity(self, encoder: Encoder, small: SmallModel) -> dict[str, Any]:
        """Return what tells this training from any other."""
        return {
            "options": asdict(self._options),
            "data": [self.dataset.fingerprint, self._given.fingerprint if self._given else None],
            "hard_negatives": self.dataset.hard_negatives,
            "base_model": encoder.fingerprint.digest,
            "augment_model": small.digest,
        }


class ComposedFinetuneEngine(SmallModelEngine):
    """Trains a small model to fill the gaps of a frozen black box: FAE, or Mafin.

    The black box embeds each distinct text once, ever, through the vector cache. The small model
    learns by the ranking loss on the composed cosine. After every epoch the composition is scored
    on held-out queries, before the first epoch too; training stops when they stop gaining, and the
    best epoch is kept. In the end λ is tuned on them, λ = 0 among the candidates: the
    model returned is never worse than the black box on them.

    Every finished epoch is kept beside ``model_output_path`` until training is done: the same call
    after a kill continues there, with the state of optimizer and schedule.

    Args:
        dataset: Queries to learn from.
        embed_model: The black box: any LlamaIndex embedding model.
        augment_model: The small model: a ``SentenceTransformer``, which is copied, or the name or
            folder of one.
        val_dataset: Queries that decide on epoch and λ. By default a tenth of the queries, and
            another tenth with all its documents, are held out.
        weight, epochs, patience, batch_size: See :class:`ComposedOptions`.
        model_output_path: Where ``finetune()`` saves the model.
        cache_dir: Folder of the vector cache, see :class:`Encoder`.
        report_path: Where ``finetune()`` writes a page about what it found, if anywhere.
        seed: Same seed, same machine, same weights.
        show_progress: Show bars.
        verbose: Print the score of every epoch and the report.
        train_kwargs: Fields of :class:`ComposedOptions`: ``learning_rate``, ``lora_rank``, ….

    Raises:
        OptionError: An argument out of range, an unknown keyword, or a small model that gives no
            vector per text.
        DatasetError: Queries without a relevant document.

    Source: Zhang et al. 2024, arXiv:2402.12177.
    """

    _composed = True
    _loads = 'ComposedEmbedding.from_pretrained("{}", embed_model)'

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding | str,
        augment_model: Any,
        *,
        val_dataset: EmbeddingQAFinetuneDataset | None = None,
        weight: float = 0.5,
        epochs: int = 20,
        patience: int | None = 4,
        batch_size: int = 20,
        model_output_path: str | Path = "composed_model",
        cache_dir: CacheDir = None,
        report_path: str | Path | None = None,
        seed: int = 0,
        show_progress: bool = True,
        verbose: bool = False,
        **train_kwargs: Any,
    ) -> None:
        embed_model = check_base(embed_model, "embed_model")
        settings = {"weight": weight, "epochs": epochs, "patience": patience, "seed": seed}
        options = ComposedOptions.of({**settings, "batch_size": batch_size, **train_kwargs})
        given = (val_dataset, model_output_path, cache_dir, report_path, show_progress, verbose)
        super().__init__(dataset, augment_model, embed_model, options, *given)

    def _replaced(self) -> frozenset[str]:
        return OURS

    def _save(self, model: Any) -> None:
        training = {"data": self.dataset.fingerprint, "report": self.report.to_dict()}
        parts = self.embed_model, model, self.report.settings["tuned_weight"]
        ComposedEmbedding(*parts, training=training).save_pretrained(self._output)

    def get_finetuned_model(self, **model_kwargs: Any) -> ComposedEmbedding:
        """Return the trained ComposedEmbedding, with these arguments; or a NotTrainedError."""
        self._trained("model")
        options = {"device": self._options.device, "verify": False, **model_kwargs}
        return ComposedEmbedding.from_pretrained(self._output, self.embed_model, **options)


class SentenceTransformersFinetuneEngine(SmallModelEngine):
    """Trains all weights of a sentence-transformers model: the plain full fine-tune.

    The successor of the engine of the same name in ``llama-index-finetuning``, with its arguments:
    the special case of :class:`ComposedFinetuneEngine` without a black box. Unlike there, batches
    hold no document twice, the best epoch on held-out queries is kept, the model before training
    among the candidates, and the report says whether it helped.

    Args:
        dataset, batch_size, epochs: See :class:`ComposedFinetuneEngine`.
        model_id: Name or folder of a sentence-transformers model.
        model_output_path: Where ``finetune()`` saves it, as a standard folder.
        val_dataset: Queries that decide on the epoch; some are held out by default.
        loss: Not taken: the ranking loss is the one there is.
        show_progress_bar: Show bars.
        evaluation_steps: Of no effect: every epoch is scored.
        use_all_docs: Learn from all relevant documents of a query, not from the first alone.
        trust_remote_code: Not taken: no folder's code is run.
        device: Of the model; the best there is by default.
        old_arguments: How to keep checkpoints, of no effect: every epoch is kept until training is
            done, and a killed training continues.
        cache_dir, report_path, seed, verbose, train_kwargs: See :class:`ComposedFinetuneEngine`.

    For errors see :class:`ComposedFinetuneEngine`.
    """

    _composed = False
    _loads = 'HuggingFaceEmbedding("{}")'

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        model_id: str = "BAAI/bge-small-en",
        model_output_path: str | Path = "exp_finetune",
        batch_size: int = 10,
        val_dataset: EmbeddingQAFinetuneDataset | None = None,
        loss: None = None,
        epochs: int = 2,
        show_progress_bar: bool = True,
        evaluation_steps: int = 50,
        use_all_docs: bool = False,
        trust_remote_code: bool = False,
        device: str | None = None,
        *old_arguments: Any,
        cache_dir: CacheDir = None,
        report_path: str | Path | None = None,
        seed: int = 0,
        verbose: bool = False,
        **train_kwargs: Any,
    ) -> None:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        if loss is not None or trust_remote_code:
            raise OptionError(
                "loss and trust_remote_code are not taken: the ranking loss is the one there is, "
                "and no folder's code is run. Leave them out."
            )
        for name in [n for n in train_kwargs if n in _OLD or n.startswith("checkpoint_save_")]:
            del train_kwargs[name]
        settings = {"epochs": epochs, "batch_size": batch_size, "device": device, "seed": seed}
        options = ComposedOptions.of({"label_smoothing": 0.0, **settings, **train_kwargs})
        dataset = answered(dataset, "dataset")
        if not use_all_docs:
            first = {query: documents[:1] for query, documents in dataset.relevant_docs.items()}
            changes = {"relevant_docs": first, "grades": None, "hard_negatives": None}
            dataset = dataset.model_copy(update=changes).reported(None)
        model = HuggingFaceEmbedding(model_id, device=device)
        given = (val_dataset, model_output_path, cache_dir, report_path, show_progress_bar, verbose)
        super().__init__(dataset, model_id, model, options, *given)

    def _replaced(self) -> frozenset[str]:
        is_model = (self._output / "modules.json").is_file()
        return frozenset(path.name for path in (self._output.iterdir() if is_model else ()))

    def _save(self, model: Any) -> None:
        with atomic_folder(self._output) as temporary:
            save_small(model, temporary)

    def get_finetuned_model(self, **model_kwargs: Any) -> BaseEmbedding:
        """Return a HuggingFaceEmbedding of what was trained; before, a NotTrainedError."""
        self._trained("model")
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        options = {"device": self._options.device, **model_kwargs}
        model: BaseEmbedding = HuggingFaceEmbedding(str(self._output), **options)
        return model
