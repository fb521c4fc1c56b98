"""Engines that train a whole small model: beside a black box, or on its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import wrapt
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import composed_store
from llama_index_embeddings_adapted.base_model import check_base
from llama_index_embeddings_adapted.composed import ComposedEmbedding
from llama_index_embeddings_adapted.composed_options import composed_options
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset, answered
from llama_index_embeddings_adapted.encode import CacheDir
from llama_index_embeddings_adapted.errors import NotTrainedError, OptionError
from llama_index_embeddings_adapted.files import atomic_folder
from llama_index_embeddings_adapted.small_engine import SmallModelEngine
from llama_index_embeddings_adapted.small_model import (
    SmallModel,
    check_pooled,
    load_sentence_transformer,
)


class ComposedFinetuneEngine(SmallModelEngine):
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
        report_path: Where ``finetune()`` writes a page about what it found, such as
            ``"report.html"``, if anywhere; see :meth:`FinetuneReport.to_html`.
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
        report_path: str | Path | None = None,
        seed: int = 0,
        show_progress: bool = True,
        verbose: bool = False,
        **train_kwargs: Any,
    ) -> None:
        check_base(embed_model, "embed_model")
        settings = {"weight": weight, "epochs": epochs, "patience": patience, "seed": seed}
        options = composed_options({**settings, "batch_size": batch_size, **train_kwargs})
        super().__init__(
            dataset,
            embed_model,
            options,
            val_dataset=val_dataset,
            model_output_path=model_output_path,
            cache_dir=cache_dir,
            report_path=report_path,
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
            OptionError: ``report_path`` cannot be written.
            EncodeError: The black box gave no usable vector.
            TrainingError: Training diverged; what was saved before is untouched.
        """
        composed_store.check_target(self._output)
        self._check_report_path()
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


_OLD = (
    "save_checkpoints",
    "resume_from_checkpoint",
    "checkpoint_save_steps",
    "checkpoint_save_total_limit",
)


class SentenceTransformersFinetuneEngine(SmallModelEngine):
    """Trains all weights of a sentence-transformers model: the plain full fine-tune.

    The successor of the engine of the same name in ``llama-index-finetuning``, with its arguments:
    the special case of :class:`ComposedFinetuneEngine` without a black box. Unlike there, batches
    hold no document twice, the best epoch on held-out queries is kept, the model before training
    among the candidates, and the report says whether it helped.

    Args:
        dataset: Queries to learn from.
        model_id: Name or folder of a sentence-transformers model.
        model_output_path: Where ``finetune()`` saves it, as a standard folder.
        batch_size: Documents per step, each with its queries.
        val_dataset: Queries that decide on the epoch; some are held out by default.
        loss: Not taken: the ranking loss is the one there is.
        epochs: Passes over the training queries, at most.
        show_progress_bar: Show bars.
        evaluation_steps: Of no effect: every epoch is scored.
        use_all_docs: Learn from all relevant documents of a query, not from the first alone.
        trust_remote_code: Not taken: no folder's code is run.
        device: Of the model; the best there is by default.
        old_arguments: How to keep checkpoints, of no effect: every epoch is kept until training is
            done, and a killed training continues.
        cache_dir: Of the vectors before training, see :class:`ComposedFinetuneEngine`.
        report_path: Of a page about what was found, see :class:`ComposedFinetuneEngine`.
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
        train_kwargs = {k: v for k, v in train_kwargs.items() if k not in _OLD}
        settings = {"epochs": epochs, "batch_size": batch_size, "device": device, "seed": seed}
        options = composed_options({"label_smoothing": 0.0, **settings, **train_kwargs})
        self._small = _fresh(model_id, device)
        whole = answered(dataset, "dataset")
        super().__init__(
            whole if use_all_docs else _first_only(whole),
            HuggingFaceEmbedding(model_id, device=device),
            options,
            val_dataset=val_dataset,
            model_output_path=model_output_path,
            cache_dir=cache_dir,
            report_path=report_path,
            show_progress=show_progress_bar,
            verbose=verbose,
        )

    def finetune(self) -> None:
        """Train and save; see :meth:`ComposedFinetuneEngine.finetune`."""
        composed_store.check_small_target(self._output)
        self._check_report_path()
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


def _first_only(dataset: EmbeddingQAFinetuneDataset) -> EmbeddingQAFinetuneDataset:
    first = {query: documents[:1] for query, documents in dataset.relevant_docs.items()}
    found = EmbeddingQAFinetuneDataset(dataset.queries, dataset.corpus, first)
    return found.reported(None, synthetic=dataset.synthetic)


def _register(types: Any) -> None:
    for engine in (ComposedFinetuneEngine, SentenceTransformersFinetuneEngine):
        types.BaseEmbeddingFinetuneEngine.register(engine)


# As in engines.py: isinstance holds once the old package is imported, which we do not do.
wrapt.register_post_import_hook(_register, "llama_index.finetuning.types")
