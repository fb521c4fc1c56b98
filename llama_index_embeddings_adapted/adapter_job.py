"""Two ways to an adapter: one trained with early stopping, or one that won in cross-fitting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.autotune import tune
from llama_index_embeddings_adapted.closed_form import whitening
from llama_index_embeddings_adapted.comparison import Comparison
from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.division import (
    divide,
    refuse_one_vector,
    without_shared_questions,
)
from llama_index_embeddings_adapted.encode import EncodedDataset, Encoder
from llama_index_embeddings_adapted.errors import OptionError, ShapeError
from llama_index_embeddings_adapted.evaluation import Texts
from llama_index_embeddings_adapted.held_out import held_out_scores
from llama_index_embeddings_adapted.maps import LinearAdapter
from llama_index_embeddings_adapted.options import TrainingOptions, settings_of
from llama_index_embeddings_adapted.report import FinetuneReport
from llama_index_embeddings_adapted.stages import stages
from llama_index_embeddings_adapted.training import Fit, fit, refit

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
