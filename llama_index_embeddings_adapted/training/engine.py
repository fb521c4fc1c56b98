"""``finetune()`` and ``get_finetuned_model()``: thin shells over the floors below.

Two ways to an adapter: one trained with early stopping, or one that won in cross-fitting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import wrapt
from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.adapters.base import Adapter
from llama_index_embeddings_adapted.adapters.maps import LinearAdapter
from llama_index_embeddings_adapted.adapters.sketch import QuerySketch
from llama_index_embeddings_adapted.core import files
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.data.dataset import (
    EmbeddingQAFinetuneDataset,
    answered,
    data_statistics,
)
from llama_index_embeddings_adapted.encoding.base_model import check_base
from llama_index_embeddings_adapted.encoding.cache import CacheDir
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import NotTrainedError, OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation.held_out import (
    divide,
    held_out_scores,
    refuse_one_vector,
    without_shared_questions,
)
from llama_index_embeddings_adapted.evaluation.reports import Comparison, FinetuneReport
from llama_index_embeddings_adapted.evaluation.retrieval import Texts
from llama_index_embeddings_adapted.serving.embedding import AdaptedEmbedding
from llama_index_embeddings_adapted.training.auto.tune import stages, tune
from llama_index_embeddings_adapted.training.closed_form import whitening
from llama_index_embeddings_adapted.training.options import (
    TrainingOptions,
    known_options,
    settings_of,
)
from llama_index_embeddings_adapted.training.trainer import Fit, fit, refit

ADAPTS = ("query", "both")
SHIP = ("proven", "always")
STARTS = ("whitening", "identity")


@dataclass(frozen=True, eq=False)
class Obtained:
    """What a job found: the adapter to serve, the one it would rather serve, and why."""

    adapter: Adapter
    candidate: Adapter
    report: FinetuneReport


@dataclass(frozen=True, eq=False)
class AdapterJob:
    """What to train on and how to choose; the fields are those of the engine, checked at once.

    Raises:
        OptionError: A value outside its range.
    """

    dataset: EmbeddingQAFinetuneDataset
    val_dataset: EmbeddingQAFinetuneDataset | None
    method: str | list[str]
    adapts: str
    ship: str
    expect: float | None
    start: str
    given_start: Adapter | None
    bias: bool
    dim: int | None
    refit: bool
    show_progress: bool
    on_step: Callable[[int, Callable[[], Adapter]], None] | None

    def __post_init__(self) -> None:
        choices = {"adapts": ADAPTS, "ship": SHIP, "start": STARTS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"{name}: expected one of {', '.join(known)}, got {value!r}.")
        stages(self.method, self.adapts, 1)  # refuses unknown methods
        if self.expect is not None and not 0.0 <= self.expect <= 1.0:
            raise OptionError(f"expect: expected a share in [0, 1] or None, got {self.expect!r}.")

    def run(self, encoder: Encoder, options: TrainingOptions) -> Obtained:
        """Encode, train and judge.

        Raises:
            DatasetError: Too few queries to hold some out.
            EncodeError: The base model gave no usable vector.
            ShapeError: ``dim`` or the adapter to start from is not as the base model.
            TrainingError: Training diverged.
        """
        self._check_start(encoder.fingerprint.dim)
        if self.method == "linear":
            return self._stop_early(*self._encoded(encoder), options)
        return self._cross_fit(encoder, options)

    def _stop_early(
        self, data: EncodedDataset, given: EncodedDataset | None, options: TrainingOptions
    ) -> Obtained:
        start = self.given_start or self._default_start(data)
        train, validation = divide(data, given, expect=self.expect, seed=options.seed)
        found = fit(
            train,
            validation,
            start,
            options,
            show_progress=self.show_progress,
            on_step=self.on_step,
        )
        adapter = self._refitted(found, data, start, options)
        overall, known, new = validation.report(found.adapter)
        sources = [(data, self.dataset)]
        if given is not None and self.val_dataset is not None:
            sources.append((given, self.val_dataset))
        report = FinetuneReport(
            overall=overall,
            known=known,
            new=new,
            best_epoch=found.best_epoch,
            history=found.history,
            train_queries=len(data.relevance if self.refit else train.relevance),
            interrupted=found.interrupted,
            settings={
                **settings_of(options),
                "method": "linear",
                "start": self.start,
                "refit": self.refit,
                "expect": self.expect,
                "judged_on_synthetic": (self.val_dataset or self.dataset).synthetic,
            },
            held_out=Comparison(*held_out_scores(validation, found.adapter, sources)),
        )
        return Obtained(adapter, adapter, report)

    def _cross_fit(self, encoder: Encoder, options: TrainingOptions) -> Obtained:
        if self.given_start is not None:
            raise OptionError(
                f'adapter_model: method="{self.method}" starts where it sees fit; use '
                'method="linear" to continue from an adapter.'
            )
        given = self.val_dataset
        everything = self.dataset if given is None else self.dataset.merged(given)
        data = encoder.dataset(everything)
        refuse_one_vector(data)
        tuned = tune(
            data,
            options,
            method=self.method,
            adapts=self.adapts,
            expect=self.expect,
            always=self.ship == "always",
            show_progress=self.show_progress,
        )
        settings = {
            "method": self.method,
            "adapts": self.adapts,
            "expect": self.expect,
            "judged_on_synthetic": any(d.synthetic for d in (self.dataset, given) if d),
        }
        judged = tuned.judged["base"]
        texts = Texts(
            tuple(everything.queries[query] for query in judged.query_ids),
            tuple(everything.corpus[name] for name in judged.document_ids),
        )
        report = FinetuneReport(
            overall=tuned.overall,
            known=tuned.known,
            new=tuned.new,
            train_queries=len(data.relevance),
            settings={**settings, "seed": options.seed},
            choice=tuned.choice,
            held_out=Comparison(tuned.judged, texts),
        )
        return Obtained(tuned.adapter, tuned.candidate, report)

    def _encoded(self, encoder: Encoder) -> tuple[EncodedDataset, EncodedDataset | None]:
        data = encoder.dataset(self.dataset)
        if self.val_dataset is None:
            return data, None
        given = encoder.dataset(self.val_dataset)
        return without_shared_questions(data, given), given

    def _check_start(self, dim: int) -> None:
        if self.dim is not None and self.dim != dim:
            raise ShapeError("dim", expected=f"{dim}, as the base model gives", actual=self.dim)
        start = self.given_start
        if start is not None and (start.input_dim, start.output_dim) != (dim, dim):
            raise ShapeError(
                "adapter_model",
                expected=f"{dim} → {dim}, as the base model gives",
                actual=f"{start.input_dim} → {start.output_dim}",
            )

    def _default_start(self, data: EncodedDataset) -> Adapter:
        if self.start == "identity":
            return LinearAdapter.identity(data.queries.shape[1], bias=self.bias)
        return whitening(data.documents, bias=self.bias)

    def _refitted(
        self, found: Fit, data: EncodedDataset, start: Adapter, options: TrainingOptions
    ) -> Adapter:
        if not self.refit or found.interrupted or found.best_epoch == 0:
            return found.adapter
        adapter = refit(
            data, start, options, epochs=found.best_epoch, show_progress=self.show_progress
        )
        return found.adapter if adapter is None else adapter


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
        val_dataset: Queries that decide when to stop; never trained on by ``"linear"``. Other
            methods hold out every query in turn, these too, and learn from all in the end.
        method: ``"linear"``: trained with early stopping, as above. ``"auto"``: many methods
            compete in cross-fitting; what wins is refitted on everything, and served only if its
            gain is proven and nothing is harmed. Or another method alone, with the same proof:
            ``"whitening"``, ``"kernel"``, ``"gate"``, ``"nudge"``, …. Or a list of names that
            compete, such as ``["auto", "psd"]``.
        adapts: ``"query"``: documents keep their vectors, an index keeps working. ``"both"``:
            methods that move documents compete too, and the index has to be rebuilt, which costs
            no call of the base model where its vectors are cached.
        ship: ``"proven"``: where the verdict is against it, the model returned is the base model,
            and the candidate is kept aside, in :attr:`candidate` and in the folder
            ``<model_output_path>.candidate``. ``"always"``: the candidate is returned. Of no effect
            with ``method="linear"``.
        expect: The share of live queries, in [0, 1], about documents that training has questions
            for, if you know it: epochs are then chosen by that mixture, and a loss on the other
            documents is accepted if the mixture gains. None: no part may lose.
        start: Of the default linear map: ``"whitening"``, computed from the documents without
            labels, or ``"identity"``.
        refit: Train on everything once the number of epochs is known.
        seed: Same seed, same machine, same weights.
        cache_dir: Folder of the vector cache; ``None`` is LlamaIndex's cache folder, ``False``
            keeps vectors in memory only.
        report_path: Where ``finetune()`` writes a page about what it found, such as
            ``"report.html"``, if anywhere; see :meth:`FinetuneReport.to_html`.
        show_progress: Show bars.
        train_kwargs: Fields of
            :class:`TrainingOptions`: ``loss``,
            ``optimizer_class``, ``optimizer_params``, ``learning_rate``, ``max_grad_norm``, ….

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
        DatasetError: A query without a relevant document.
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
        method: str | Sequence[str] = "linear",
        adapts: str = "query",
        ship: str = "proven",
        expect: float | None = None,
        start: str = "whitening",
        refit: bool = True,
        seed: int = 0,
        cache_dir: CacheDir = None,
        report_path: str | Path | None = None,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> None:
        check_base(embed_model, "embed_model")
        if checkpoint_save_steps < 1:
            raise OptionError(
                f"checkpoint_save_steps: expected at least 1, got {checkpoint_save_steps}."
            )
        self.dataset = answered(dataset, "dataset")
        self.embed_model = embed_model
        self._checkpoints = None if model_checkpoint_path is None else Path(model_checkpoint_path)
        self._checkpoint_steps = checkpoint_save_steps
        self._job = AdapterJob(
            dataset=self.dataset,
            val_dataset=None if val_dataset is None else answered(val_dataset, "val_dataset"),
            method=method if isinstance(method, str) else list(method),
            adapts=adapts,
            ship=ship,
            expect=expect,
            start=start,
            given_start=None if adapter_model is None else _as_adapter(adapter_model),
            bias=bias,
            dim=dim,
            refit=refit,
            show_progress=show_progress,
            on_step=None if model_checkpoint_path is None else self._checkpoint,
        )
        self._output = Path(model_output_path)
        self._candidate_output = self._output.with_name(f"{self._output.name}.candidate")
        self._report_path = None if report_path is None else Path(report_path)
        self._verbose, self._show_progress, self._cache_dir = verbose, show_progress, cache_dir
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "epochs": epochs,
            "device": device,
            "seed": seed,
            **known_options(train_kwargs),
        }
        TrainingOptions(**self._options)  # refuse bad values before anything is embedded
        self._model: AdaptedEmbedding | None = None
        self._candidate: AdaptedEmbedding | None = None
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
            dataset, embed_model, adapter_model=saving.load(Path(model_path)).adapter, **kwargs
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
        options = TrainingOptions(**{**self._options, **known_options(train_kwargs)})
        folders.check_target_folder(self._output)
        if self._report_path is not None:
            files.check_target(self._report_path, error=OptionError)
        if self._job.method != "linear":
            folders.check_target_folder(self._candidate_output)
        began = time.perf_counter()
        encoder = Encoder(
            self.embed_model, cache_dir=self._cache_dir, show_progress=self._show_progress
        )
        try:
            found = self._job.run(encoder, options)
            sketch = self._sketch(encoder)
        finally:
            encoder.close()
        self._report = replace(
            found.report,
            seconds=time.perf_counter() - began,
            base_calls=encoder.base_calls,
            base_texts=encoder.base_texts,
            base_tokens=encoder.base_tokens,
            data=data_statistics(self.dataset),
        )
        training = {"data": self.dataset.fingerprint, "report": self._report.to_dict()}
        known: dict[str, Any] = {"training": training, "sketch": sketch}
        self._model = AdaptedEmbedding(self.embed_model, found.adapter, **known)
        self._candidate = AdaptedEmbedding(self.embed_model, found.candidate, **known)
        self._model.save_pretrained(self._output)
        if found.candidate is not found.adapter:
            self._candidate.save_pretrained(self._candidate_output)
        if self._report_path is not None:
            self._report.to_html(self._report_path)
        if self._verbose:
            print(self._report)

    def _sketch(self, encoder: Encoder) -> QuerySketch:
        """Keep what the training queries looked like; their vectors are cached by now."""
        texts = self.dataset.queries
        groups = [next(iter(self.dataset.relevant_docs[query]), query) for query in texts]
        return QuerySketch.of(encoder.encode(list(texts.values()), "query"), groups)

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
            **{"training": model.training, "sketch": model.sketch, **model_kwargs},
        )

    @property
    def candidate(self) -> AdaptedEmbedding:
        """The model that was chosen, also where the verdict is against serving it.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._candidate is None:
            raise NotTrainedError("There is no candidate before finetune().")
        return self._candidate

    @property
    def report(self) -> FinetuneReport:
        """What ``finetune()`` found.

        Raises:
            NotTrainedError: Before ``finetune()``.
        """
        if self._report is None:
            raise NotTrainedError("There is no report before finetune().")
        return self._report

    def _checkpoint(self, step: int, export: Callable[[], Adapter]) -> None:
        if self._checkpoints is not None and step % self._checkpoint_steps == 0:
            export().save(self._checkpoints / f"step_{step}")


def _as_adapter(value: Any) -> Adapter:
    return value if isinstance(value, Adapter) else saving.from_module(value)


def _register(types: Any) -> None:
    types.BaseEmbeddingFinetuneEngine.register(EmbeddingAdapterFinetuneEngine)


# isinstance(engine, BaseEmbeddingFinetuneEngine) holds once that class exists, without our
# importing the old package, which takes seconds and may not be importable at all.
wrapt.register_post_import_hook(_register, "llama_index.finetuning.types")
