"""``finetune()`` and ``get_finetuned_model()``: thin shells over the floors below."""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import wrapt
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted import folder as folders
from llama_index_embeddings_adapted import legacy, store
from llama_index_embeddings_adapted.adapters import Adapter, LinearAdapter
from llama_index_embeddings_adapted.closed_form import whitening
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.encode import CacheDir, EncodedDataset, Encoder
from llama_index_embeddings_adapted.errors import (
    DatasetError,
    NotTrainedError,
    OptionError,
    ShapeError,
)
from llama_index_embeddings_adapted.options import TrainingOptions
from llama_index_embeddings_adapted.report import FinetuneReport
from llama_index_embeddings_adapted.training import Fit, fit, refit
from llama_index_embeddings_adapted.validation import (
    HeldOut,
    Validation,
    hold_out,
    known_documents,
)

METHODS = ("linear",)
_HELD_OUT_QUERIES = 0.1
_HELD_OUT_DOCUMENTS = 0.1
_ENOUGH_NEW = 100  # new-document queries in a validation set that make holding out more needless


class EmbeddingAdapterFinetuneEngine:
    """Trains an adapter on the query vectors of any embedding model; documents stay as they are.

    The successor of the engine of the same name in ``llama-index-finetuning``, with its arguments.
    Each distinct text is embedded once, ever; training runs on the cached vectors.

    Without a validation set, a tenth of the queries is held out at random and another tenth
    together with all its documents, to see what training does to queries about documents that it
    has no questions for. A validation set without such queries is complemented in the same way.
    Training stops when held-out queries stop gaining, and keeps the best epoch, the base model
    included; then, with ``refit``, all training queries are trained on for as many epochs.

    Args:
        dataset: Queries to learn from.
        embed_model: Any LlamaIndex embedding model.
        batch_size: Queries per step.
        epochs: Passes over the queries, at most.
        adapter_model: Where to start: an :class:`Adapter`, or a ``LinearLayer`` or ``TwoLayerNN``
            of ``llama-index-embeddings-adapter``. By default a linear map.
        dim: Dimension of the model's vectors, checked if given.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; by default the best there is.
        model_output_path: Where ``finetune()`` saves the adapter.
        model_checkpoint_path: Where to save adapters on the way, if anywhere.
        checkpoint_save_steps: How often, in steps.
        verbose: Print the report, and a line per epoch.
        bias: Give the linear map a bias.
        val_dataset: Queries that decide when to stop; never trained on.
        method: ``"linear"``.
        expect: The share of live queries, in [0, 1], about documents that training has questions
            for, if you know it: epochs are then chosen by that mixture, and a loss on the other
            documents is accepted if the mixture gains. None: no part may lose.
        start: Of the default linear map: ``"whitening"``, computed from the documents without
            labels, or ``"identity"``.
        refit: Train on everything once the number of epochs is known.
        seed: Same seed, same machine, same weights.
        cache_dir: Folder of the vector cache; ``None`` is LlamaIndex's cache folder, ``False``
            keeps vectors in memory only.
        show_progress: Show bars.
        train_kwargs: Fields of
            :class:`~llama_index_embeddings_adapted.options.TrainingOptions`: ``loss``,
            ``optimizer_class``, ``optimizer_params``, ``learning_rate``, ``max_grad_norm``, ….

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
    """

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        batch_size: int = 64,
        epochs: int = 40,
        adapter_model: Any | None = None,
        dim: int | None = None,
        device: str | None = None,
        model_output_path: str | Path = "model_output",
        model_checkpoint_path: str | Path | None = None,
        checkpoint_save_steps: int = 100,
        verbose: bool = False,
        bias: bool = True,
        *,
        val_dataset: EmbeddingQAFinetuneDataset | None = None,
        method: str = "linear",
        expect: float | None = None,
        start: str = "whitening",
        refit: bool = True,
        seed: int = 0,
        cache_dir: CacheDir = None,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> None:
        if not isinstance(embed_model, BaseEmbedding):
            raise OptionError(
                "embed_model: expected a LlamaIndex embedding model, got "
                f"{type(embed_model).__name__}. Strings: use resolve_embed_model first."
            )
        if method not in METHODS:
            raise OptionError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
        if expect is not None and not 0.0 <= expect <= 1.0:
            raise OptionError(f"expect: expected a share in [0, 1] or None, got {expect!r}.")
        if start not in ("whitening", "identity"):
            raise OptionError(f'start: expected "whitening" or "identity", got {start!r}.')
        if checkpoint_save_steps < 1:
            raise OptionError(
                f"checkpoint_save_steps: expected at least 1, got {checkpoint_save_steps}."
            )
        self.dataset = _as_dataset(dataset, "dataset")
        self.embed_model = embed_model
        self._start = None if adapter_model is None else _as_adapter(adapter_model)
        self._start_name, self._bias, self._dim = start, bias, dim
        self._output = Path(model_output_path)
        self._checkpoints = None if model_checkpoint_path is None else Path(model_checkpoint_path)
        self._checkpoint_steps = checkpoint_save_steps
        self._verbose, self._show_progress = verbose, show_progress
        self._refit, self._cache_dir, self._expect = refit, cache_dir, expect
        self._val_dataset = None if val_dataset is None else _as_dataset(val_dataset, "val_dataset")
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "epochs": epochs,
            "device": device,
            "seed": seed,
            **_known_options(train_kwargs),
        }
        TrainingOptions(**self._options)  # refuse bad values before anything is embedded
        self._model: AdaptedEmbedding | None = None
        self._report: FinetuneReport | None = None

    @classmethod
    def from_model_path(
        cls,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding,
        model_path: str | Path,
        model_cls: Any | None = None,
        **kwargs: Any,
    ) -> EmbeddingAdapterFinetuneEngine:
        """Start from a saved adapter, ours or one of the old package.

        Args:
            dataset: See the class.
            embed_model: See the class.
            model_path: Its folder.
            model_cls: Accepted for old scripts; the folder says what it holds.
            kwargs: See the class.
        """
        return cls(
            dataset, embed_model, adapter_model=store.load(Path(model_path)).adapter, **kwargs
        )

    def finetune(self, **train_kwargs: Any) -> None:
        """Embed what is not cached, train, and save the adapter to ``model_output_path``.

        Args:
            train_kwargs: Override those of the constructor for this call.

        Raises:
            DatasetError: Too few queries to hold some out.
            FolderError: ``model_output_path`` cannot be written, or holds something else.
            EncodeError: The base model gave no usable vector.
            TrainingError: Training diverged; what was saved before is untouched.
        """
        options = TrainingOptions(**{**self._options, **_known_options(train_kwargs)})
        folders.check_target(self._output)
        began = time.perf_counter()
        encoder = Encoder(
            self.embed_model, cache_dir=self._cache_dir, show_progress=self._show_progress
        )
        try:
            start = self._checked_start(encoder.fingerprint.dim)
            data, given = self._encoded(encoder)
        finally:
            encoder.close()
        start = start or self._default_start(data)
        train, validation = _hold_out(data, given, expect=self._expect, seed=options.seed)
        found = fit(
            train,
            validation,
            start,
            options,
            show_progress=self._show_progress,
            on_step=self._checkpoint if self._checkpoints else None,
        )
        adapter = self._refitted(found, data, start, options)
        overall, known, new = validation.report(found.adapter)
        self._report = FinetuneReport(
            overall=overall,
            known=known,
            new=new,
            best_epoch=found.best_epoch,
            history=found.history,
            train_queries=len(data.relevance if self._refit else train.relevance),
            seconds=time.perf_counter() - began,
            base_calls=encoder.base_calls,
            base_texts=encoder.base_texts,
            interrupted=found.interrupted,
            settings={
                **_settings(options),
                "start": self._start_name,
                "refit": self._refit,
                "expect": self._expect,
                "judged_on_synthetic": (self._val_dataset or self.dataset).synthetic,
            },
        )
        self._model = AdaptedEmbedding(
            self.embed_model,
            adapter,
            training={"data": self.dataset.fingerprint, "report": self._report.to_dict()},
        )
        self._model.save_pretrained(self._output)
        if self._verbose:
            print(self._report)

    def get_finetuned_model(self, **model_kwargs: Any) -> AdaptedEmbedding:
        """Return the base model with the trained adapter.

        Args:
            model_kwargs: Passed to :class:`AdaptedEmbedding`.

        Raises:
            NotTrainedError: Before ``finetune()``. A folder that an earlier run left behind is not
                this engine's; load it with ``AdaptedEmbedding.from_pretrained``.
        """
        if self._model is None:
            raise NotTrainedError(
                "There is no model before finetune(). To load an earlier one: "
                f'AdaptedEmbedding.from_pretrained("{self._output}", embed_model).'
            )
        model = self._model
        return AdaptedEmbedding(
            model.base_embed_model,
            model.adapter,
            **{"training": model.training, **model_kwargs},
        )

    @property
    def report(self) -> FinetuneReport:
        """What ``finetune()`` found.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._report is None:
            raise NotTrainedError("There is no report before finetune().")
        return self._report

    def _encoded(self, encoder: Encoder) -> tuple[EncodedDataset, EncodedDataset | None]:
        data = encoder.dataset(self.dataset)
        if self._val_dataset is None:
            return data, None
        given = encoder.dataset(self._val_dataset)
        return _without_shared_questions(data, given), given

    def _checked_start(self, dim: int) -> Adapter | None:
        if self._dim is not None and self._dim != dim:
            raise ShapeError("dim", expected=f"{dim}, as the base model gives", actual=self._dim)
        start = self._start
        if start is not None and (start.input_dim, start.output_dim) != (dim, dim):
            raise ShapeError(
                "adapter_model",
                expected=f"{dim} → {dim}, as the base model gives",
                actual=f"{start.input_dim} → {start.output_dim}",
            )
        return start

    def _default_start(self, data: EncodedDataset) -> Adapter:
        if self._start_name == "identity":
            return LinearAdapter.identity(data.queries.shape[1], bias=self._bias)
        return whitening(data.documents, bias=self._bias)

    def _refitted(
        self, found: Fit, data: EncodedDataset, start: Adapter, options: TrainingOptions
    ) -> Adapter:
        if not self._refit or found.interrupted or found.best_epoch == 0:
            return found.adapter
        adapter = refit(
            data, start, options, epochs=found.best_epoch, show_progress=self._show_progress
        )
        return found.adapter if adapter is None else adapter

    def _checkpoint(self, step: int, export: Callable[[], Adapter]) -> None:
        if self._checkpoints is not None and step % self._checkpoint_steps == 0:
            export().save(self._checkpoints / f"step_{step}")


def _hold_out(
    data: EncodedDataset, given: EncodedDataset | None, *, expect: float | None, seed: int
) -> tuple[EncodedDataset, Validation]:
    """Decide what to train on and what to validate on."""
    parts: list[HeldOut] = []
    by_query = _HELD_OUT_QUERIES if given is None else 0.0
    by_document = _HELD_OUT_DOCUMENTS
    if expect == 1.0 or (
        given is not None and (~known_documents(data, given)).sum() >= _ENOUGH_NEW
    ):
        by_document = 0.0
    if len(data.relevance) > 1 and (data.queries == data.queries[0]).all():
        raise DatasetError(
            f"The base model gives all {len(data.relevance)} queries the same vector. Is it a mock?"
        )
    rows, held = hold_out(data, queries=by_query, documents=by_document, seed=seed)
    train = data.take(rows)
    if given is not None:
        parts.append(HeldOut(given, known_documents(train, given)))
    if len(held):
        own = data.take(held)
        parts.append(HeldOut(own, known_documents(train, own)))
    if not len(rows) or not parts:
        raise DatasetError(
            f"Training needs queries to learn from and queries to validate on; "
            f"{len(data.relevance)} leave {len(rows)} and {len(held)}. Add queries, or pass "
            "val_dataset."
        )
    return train, Validation(*parts, expect=expect)


def _without_shared_questions(train: EncodedDataset, given: EncodedDataset) -> EncodedDataset:
    """Leave out training queries that are also in the validation set: they would prove nothing."""
    judged = {vector.tobytes() for vector in given.queries}
    own = [row for row, vector in enumerate(train.queries) if vector.tobytes() not in judged]
    shared = len(train.queries) - len(own)
    if shared:
        warnings.warn(
            f"{shared} training queries are also in val_dataset; they are not trained on.",
            stacklevel=4,
        )
    return train.take(np.array(own, dtype=np.int64))


def _as_adapter(value: Any) -> Adapter:
    return value if isinstance(value, Adapter) else legacy.from_module(value)


def _known_options(options: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(TrainingOptions)}
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            close = ["learning_rate"] if name == "lr" else close
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise OptionError(
                f'Unknown argument "{name}".{hint} Training takes {", ".join(sorted(known))}.'
            )
    return options


def _settings(options: TrainingOptions) -> dict[str, Any]:
    optimizer = options.optimizer_class
    plain = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("optimizer_class", "optimizer_params")
    }
    return {
        **plain,
        "optimizer_class": None if optimizer is None else getattr(optimizer, "__name__", "custom"),
        "optimizer_params": {
            key: value if isinstance(value, (int, float, str, bool)) else repr(value)
            for key, value in options.optimizer_params.items()
        },
    }


def _as_dataset(value: Any, name: str) -> EmbeddingQAFinetuneDataset:
    """Accept our dataset, and objects of the old package's class."""
    if isinstance(value, EmbeddingQAFinetuneDataset):
        return value
    try:
        return EmbeddingQAFinetuneDataset(value.queries, value.corpus, value.relevant_docs)
    except AttributeError:
        raise OptionError(
            f"{name}: expected an EmbeddingQAFinetuneDataset, got {type(value).__name__}."
        ) from None


def _register(types: Any) -> None:
    types.BaseEmbeddingFinetuneEngine.register(EmbeddingAdapterFinetuneEngine)


# isinstance(engine, BaseEmbeddingFinetuneEngine) holds once that class exists, without our
# importing the old package, which takes seconds and may not be importable at all.
wrapt.register_post_import_hook(_register, "llama_index.finetuning.types")
