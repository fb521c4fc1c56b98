"""Engines that train a whole small model: beside a black box, or on its own."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import wrapt
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import composed_store
from llama_index_embeddings_adapted.composed import ComposedEmbedding
from llama_index_embeddings_adapted.composed_batches import Collator, Texts, places
from llama_index_embeddings_adapted.composed_history import ComposedEpoch
from llama_index_embeddings_adapted.composed_options import ComposedOptions, composed_options
from llama_index_embeddings_adapted.composed_validation import ComposedValidation
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset, as_dataset
from llama_index_embeddings_adapted.division import refuse_one_vector, without_shared_questions
from llama_index_embeddings_adapted.encode import CacheDir, EncodedDataset, Encoder
from llama_index_embeddings_adapted.errors import (
    DatasetError,
    NotTrainedError,
    OptionError,
    examples,
    need,
)
from llama_index_embeddings_adapted.files import atomic_folder, write_json
from llama_index_embeddings_adapted.plotting import plot_history
from llama_index_embeddings_adapted.report import FinetuneReport
from llama_index_embeddings_adapted.small_model import (
    SmallModel,
    check_pooled,
    load_sentence_transformer,
)
from llama_index_embeddings_adapted.validation import hold_out, known_documents

_HELD_OUT = 0.1


class _SmallModelEngine:
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
        show_progress: bool,
        verbose: bool,
    ) -> None:
        self.dataset = _answered(dataset, "dataset")
        self.embed_model = embed_model
        self._given = None if val_dataset is None else _answered(val_dataset, "val_dataset")
        self._options = options
        self._output = Path(model_output_path)
        self._cache_dir = cache_dir
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
        write_json(Path(path), data)

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

    def _train(self, small: SmallModel) -> float:
        """Encode, train, judge; leave the best weights in the small model and return λ."""
        for module in ("datasets", "accelerate"):
            need(module, extra="composed")
        from llama_index_embeddings_adapted.composed_training import train

        began, options = time.perf_counter(), self._options
        encoder = Encoder(
            self.embed_model, cache_dir=self._cache_dir, show_progress=self._show_progress
        )
        try:
            data, judged = self._divided(encoder)
        finally:
            encoder.close()
        source = self.dataset if self._given is None else self._given
        validation = ComposedValidation(
            judged,
            Texts(source.queries, source.corpus, judged),
            known_documents(data, judged),
            composed=self._composed,
        )
        pool = validation.pool(options.val_depth)
        self._base_scores = validation.base_scores(options.metric, pool)
        fitted = train(
            small.model,
            places(data, per_place=options.queries_per_document, negatives=options.hard_negatives),
            Collator(
                small.model,
                data,
                Texts(self.dataset.queries, self.dataset.corpus, data),
                frozen=self._composed,
            ),
            lambda: validation.scores(small, options.weight, options.metric, pool),
            options,
            folder=self._checkpoints(encoder, small),
            show_progress=self._show_progress,
        )
        weight, overall, known, new = validation.judge(small, options.weight)
        self._report = FinetuneReport(
            overall=overall,
            known=known,
            new=new,
            best_epoch=fitted.best_epoch,
            history=fitted.history,
            train_queries=len(data.relevance),
            seconds=time.perf_counter() - began,
            base_calls=encoder.base_calls,
            base_texts=encoder.base_texts,
            interrupted=fitted.interrupted,
            settings={
                **asdict(options),
                **({"tuned_weight": weight} if self._composed else {}),
                "base_scores": self._base_scores,
                "resumed_from": fitted.resumed_from,
                "judged_on_synthetic": source.synthetic,
            },
        )
        return weight

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
        """Drop the checkpoints, unless training was interrupted and may go on."""
        if not self.report.interrupted:
            shutil.rmtree(self._output.with_name(f"{self._output.name}.checkpoints"))
        if self._verbose:
            metric = self._options.metric
            for line in self.history:
                print(f"epoch {line.epoch}: {metric} {line.scores[metric]:.4f}")
            print(self.report)

    def _training(self) -> dict[str, Any]:
        return {"data": self.dataset.fingerprint, "report": self.report.to_dict()}


class ComposedFinetuneEngine(_SmallModelEngine):
    """Trains a small model to fill the gaps of a frozen black box: FAE, or Mafin.

    The black box embeds each distinct text once, ever, through the vector cache. The small model
    learns by the ranking loss on the composed cosine. After every epoch the composition is scored
    on held-out queries, before the first epoch too; training stops when they stop gaining, and the
    best epoch is kept. In the end λ is tuned on them, exactly, λ = 0 among the candidates: the
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
        weight: λ while training.
        epochs: Passes over the training queries, at most.
        patience: Epochs without a better validation score before training stops; None: never.
        batch_size: Documents per step, each with its queries.
        model_output_path: Where ``finetune()`` saves the model.
        cache_dir: Folder of the vector cache; ``None`` is LlamaIndex's cache folder, ``False``
            keeps vectors in memory only.
        seed: Same seed, same machine, same weights.
        show_progress: Show bars.
        verbose: Print the score of every epoch and the report.
        train_kwargs: Fields of
            :class:`~llama_index_embeddings_adapted.composed_options.ComposedOptions`:
            ``learning_rate``, ``mini_batch_size``, ``hard_negatives``, ``lora_rank``, ….

    Raises:
        OptionError: An argument out of range, an unknown keyword, or a small model that gives no
            vector per text.
        DatasetError: Queries without a relevant document.

    Source:
        Zhang et al. 2024, arXiv:2402.12177.
    """

    _composed = True

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        augment_model: Any,
        *,
        val_dataset: EmbeddingQAFinetuneDataset | None = None,
        weight: float = 0.5,
        epochs: int = 20,
        patience: int | None = 4,
        batch_size: int = 20,
        model_output_path: str | Path = "composed_model",
        cache_dir: CacheDir = None,
        seed: int = 0,
        show_progress: bool = True,
        verbose: bool = False,
        **train_kwargs: Any,
    ) -> None:
        if not isinstance(embed_model, BaseEmbedding):
            raise OptionError(
                "embed_model: expected a LlamaIndex embedding model, got "
                f"{type(embed_model).__name__}. Strings: use resolve_embed_model first."
            )
        settings = {"weight": weight, "epochs": epochs, "patience": patience, "seed": seed}
        options = composed_options({**settings, "batch_size": batch_size, **train_kwargs})
        super().__init__(
            dataset,
            embed_model,
            options,
            val_dataset=val_dataset,
            model_output_path=model_output_path,
            cache_dir=cache_dir,
            show_progress=show_progress,
            verbose=verbose,
        )
        self._small = _fresh(augment_model, options.device)
        self._model: ComposedEmbedding | None = None

    def finetune(self) -> None:
        """Embed what is not cached, train, and save the model to ``model_output_path``.

        Raises:
            DatasetError: Too few queries to hold some out.
            FolderError: ``model_output_path`` cannot be written, or holds something else.
            EncodeError: The black box gave no usable vector.
            TrainingError: Training diverged; what was saved before is untouched.
        """
        composed_store.check_target(self._output)
        small = SmallModel(copy.deepcopy(self._small))
        weight = self._train(small)
        composed_store.save(self._output, small.model, weight, self.embed_model, self._training())
        self._model = ComposedEmbedding.from_pretrained(
            self._output, self.embed_model, verify=False, device=self._options.device
        )
        self._finished()

    def get_finetuned_model(self, **model_kwargs: Any) -> ComposedEmbedding:
        """Return the black box with the small model beside it.

        Args:
            model_kwargs: Passed to :class:`ComposedEmbedding`.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._model is None:
            raise NotTrainedError(
                "There is no model before finetune(). To load an earlier one: "
                f'ComposedEmbedding.from_pretrained("{self._output}", embed_model).'
            )
        options = {"device": self._options.device, **model_kwargs}
        return ComposedEmbedding.from_pretrained(
            self._output, self.embed_model, verify=False, **options
        )


class SentenceTransformersFinetuneEngine(_SmallModelEngine):
    """Trains all weights of a sentence-transformers model: the plain full fine-tune.

    The successor of the engine of the same name in ``llama-index-finetuning``, with its arguments:
    the special case of :class:`ComposedFinetuneEngine` without a black box. Unlike there, batches
    hold no document twice, the best epoch on held-out queries is kept, the model before training
    among the candidates, and the report says whether it helped. A loss of your own, and
    ``trust_remote_code``, are not taken.

    Args:
        dataset: Queries to learn from.
        model_id: Name or folder of a sentence-transformers model.
        model_output_path: Where ``finetune()`` saves it, as a standard folder.
        batch_size: Documents per step, each with its queries.
        val_dataset: Queries that decide on the epoch; some are held out by default.
        epochs: Passes over the training queries, at most.
        show_progress_bar: Show bars.
        use_all_docs: Learn from all relevant documents of a query, not from the first alone.
        device: Of the model; the best there is by default.
        cache_dir: Of the vectors before training, see :class:`ComposedFinetuneEngine`.
        seed: Same seed, same machine, same weights.
        verbose: Print the score of every epoch and the report.
        train_kwargs: Fields of
            :class:`~llama_index_embeddings_adapted.composed_options.ComposedOptions`.

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
        DatasetError: Queries without a relevant document.
    """

    _composed = False

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        model_id: str = "BAAI/bge-small-en",
        model_output_path: str | Path = "exp_finetune",
        batch_size: int = 10,
        val_dataset: EmbeddingQAFinetuneDataset | None = None,
        epochs: int = 2,
        show_progress_bar: bool = True,
        use_all_docs: bool = False,
        device: str | None = None,
        *,
        cache_dir: CacheDir = None,
        seed: int = 0,
        verbose: bool = False,
        **train_kwargs: Any,
    ) -> None:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        settings = {"epochs": epochs, "batch_size": batch_size, "device": device, "seed": seed}
        options = composed_options({"label_smoothing": 0.0, **settings, **train_kwargs})
        self._small = _fresh(model_id, device)
        answered = _answered(dataset, "dataset")
        super().__init__(
            answered if use_all_docs else _first_only(answered),
            HuggingFaceEmbedding(model_id, device=device),
            options,
            val_dataset=val_dataset,
            model_output_path=model_output_path,
            cache_dir=cache_dir,
            show_progress=show_progress_bar,
            verbose=verbose,
        )

    def finetune(self) -> None:
        """Train and save; see :meth:`ComposedFinetuneEngine.finetune`."""
        small = SmallModel(copy.deepcopy(self._small))
        self._train(small)
        with atomic_folder(self._output) as temporary:
            composed_store.save_small(small.model, temporary)
        self._finished()

    def get_finetuned_model(self, **model_kwargs: Any) -> BaseEmbedding:
        """Return the trained model as LlamaIndex loads it by ``"local:<folder>"``.

        Args:
            model_kwargs: Passed to ``HuggingFaceEmbedding``.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._report is None:
            raise NotTrainedError("There is no model before finetune().")
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        model: BaseEmbedding = HuggingFaceEmbedding(
            str(self._output), **{"device": self._options.device, **model_kwargs}
        )
        return model


def _fresh(model: Any, device: str | None) -> Any:
    if isinstance(model, (str, Path)):
        return load_sentence_transformer(model, device=device)
    return check_pooled(model if device is None else model.to(device))


def _digest(model: Any) -> str:
    """Return a hash of the weights, which tells a training from that of another small model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        array = value.detach().cpu().float().numpy()
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _answered(value: Any, name: str) -> EmbeddingQAFinetuneDataset:
    """Refuse queries without an answer before anything is embedded."""
    dataset = as_dataset(value, name)
    without = [query for query in dataset.queries if not dataset.relevant_docs.get(query)]
    if without:
        raise DatasetError(
            f"{name}: {len(without)} of {len(dataset.queries)} queries have no relevant document "
            f"(first: {examples(without)}). Drop them with dataset.judged()."
        )
    return dataset


def _first_only(dataset: EmbeddingQAFinetuneDataset) -> EmbeddingQAFinetuneDataset:
    first = {query: documents[:1] for query, documents in dataset.relevant_docs.items()}
    found = EmbeddingQAFinetuneDataset(dataset.queries, dataset.corpus, first)
    return found.reported(None, synthetic=dataset.synthetic)


def _register(types: Any) -> None:
    for engine in (ComposedFinetuneEngine, SentenceTransformersFinetuneEngine):
        types.BaseEmbeddingFinetuneEngine.register(engine)


# As in engines.py: isinstance holds once the old package is imported, which we do not do.
wrapt.register_post_import_hook(_register, "llama_index.finetuning.types")
