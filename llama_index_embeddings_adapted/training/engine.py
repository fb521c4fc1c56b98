"""``finetune()`` and ``get_finetuned_model()``: thin shells over the floors below.

Two ways to an adapter: one that won in cross-fitting, or one map trained with early stopping.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store import VectorStoreIndex
from llama_index.core.schema import BaseNode

from ..adapters import saving
from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter
from ..adapters.saving import QuerySketch
from ..core import files
from ..core.arrays import Vectors, alike
from ..core.encoded import EncodedDataset
from ..data.dataset import EmbeddingQAFinetuneDataset, answered, data_statistics
from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir, cache_folder
from ..encoding.encoder import Encoder
from ..encoding.serialize import base_name
from ..errors import OptionError, check_whole
from ..evaluation import held_out
from ..evaluation.comparison import Comparison
from ..evaluation.held_out import Validation, compare_by_part, scoring_notes
from ..evaluation.page import Texts
from ..evaluation.reports import Deployment, Engine, FinetuneReport
from ..evaluation.verdict import FEWEST_ALONE, LOOKS_RANDOM, MADE, prove
from ..evaluation.views import WordScores, bank_of, judge_on
from ..serving.embedding import AdaptedEmbedding
from ..serving.hybrid import HybridRetriever
from ..serving.views import index_and_nodes
from .auto.search_space import check_method
from .auto.tune import tune
from .closed_form import whitening
from .options import LINEAR_ONLY, TrainingOptions, check_dim, implied_method, settings_of
from .trainer import fit, refit

_TIMED = 64  # queries, to say what the adapter takes for one


@dataclass(frozen=True, eq=False)
class _Found:
    """The model to serve, the one a training would rather serve, and why; what a mixture takes."""

    model: AdaptedEmbedding
    candidate: AdaptedEmbedding
    report: FinetuneReport
    mixed: Adapter | None
    bank: Vectors


class EmbeddingAdapterFinetuneEngine(Engine):
    """Trains an adapter on the query vectors of any embedding model; documents stay as they are.

    The successor of the engine of the same name in ``llama-index-finetuning``, with its arguments.
    Each distinct text is embedded once, ever; training runs on the cached vectors.

    By default, candidates compete in cross-fitting: every query is judged by adapters that saw
    neither it nor, once, its documents. What wins is fitted on everything, and served if its gain
    is proven and nothing is harmed; else the model is the base model.

    With ``method="linear"``, a tenth of the queries is held out at random and another tenth
    together with all its documents. A validation set without such queries is complemented in the
    same way. Training stops when held-out queries stop gaining, and keeps the best epoch, the base
    model included; then, with ``refit``, all training queries are trained on for as many epochs.

    Args:
        dataset: Queries to learn from.
        embed_model: Any LlamaIndex embedding model, or what names one, such as ``"minilm"``.
        batch_size: Queries per step; 64 by default.
        epochs: Passes over the queries of ``"linear"``, at most; 40 by default.
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
        method: ``"auto"``: candidates compete in cross-fitting, as above. ``"linear"``: one linear
            map, trained with early stopping. Another method alone, with the same proof as
            ``"auto"``: ``"whitening"``, ``"kernel"``, ``"gate"``, …, or a list of names that
            compete. None: ``"linear"`` where an argument speaks of a training loop (``epochs``,
            ``batch_size``, ``adapter_model``, ``optimizer_class``, ``learning_rate``, …), as
            scripts of the old package do; else ``"auto"``.
        adapts: ``"query"``: documents keep their vectors, an index keeps working. ``"both"``:
            methods that move documents compete too; the index is rebuilt, from cached vectors.
        ship: ``"proven"``: where the verdict is against it, the model returned is the base model,
            and the candidate is kept aside, in :attr:`candidate` and in the folder
            ``<model_output_path>.candidate``. ``"always"``: the candidate is returned.
            ``method="linear"`` returns it unless the judgements look random.
        expect: Share of live queries, in [0, 1], about documents with training queries, if you
            know it: a loss on the others is accepted if the mixture gains. None: none may lose.
        start: Of the default linear map: ``"whitening"``, computed from the documents without
            labels, or ``"identity"``.
        refit: Train on everything once the number of epochs is known.
        lexical: ``"auto"``: held-out queries also tell what words and a document prior beside the
            vectors add, and at which weights, for :meth:`get_finetuned_retriever`. None: vectors
            only.
        seed: Same seed, same machine, same weights.
        cache_dir: Folder of the vector cache; ``None`` is LlamaIndex's cache folder, ``False``
            keeps vectors in memory only.
        report_path: Where to write a page, if anywhere; see :meth:`FinetuneReport.to_html`.
        show_progress: Show bars.
        train_kwargs: Fields of :class:`TrainingOptions`: ``loss``, ``optimizer_class``, ….

    Raises:
        OptionError: An argument out of range, or an unknown keyword.
        DatasetError: A query without a relevant document.
    """

    _loads = 'AdaptedEmbedding.from_pretrained("{}", embed_model)'
    _found: _Found
    _asked: dict[str, str]  # of all queries, their texts by id
    _sources: dict[str, str]  # of them, as far as told

    def __init__(
        self,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding | str,
        batch_size: int | None = None,
        epochs: int | None = None,
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
        method: str | Sequence[str] | None = None,
        adapts: str = "query",
        ship: str = "proven",
        expect: float | None = None,
        start: str | None = None,
        refit: bool | None = None,
        lexical: str | None = "auto",
        seed: int = 0,
        cache_dir: CacheDir = None,
        report_path: str | Path | None = None,
        show_progress: bool = True,
        **train_kwargs: Any,
    ) -> None:
        check_whole("checkpoint_save_steps", checkpoint_save_steps)
        self.dataset = answered(dataset, "dataset")
        self._val_dataset = None if val_dataset is None else answered(val_dataset, "val_dataset")
        ours = adapter_model is None or isinstance(adapter_model, Adapter)
        self._start: Adapter | None = adapter_model if ours else saving.from_module(adapter_model)
        loop = {"batch_size": batch_size, "epochs": epochs, "start": start, "refit": refit}
        given = {name: value for name, value in loop.items() if value is not None}
        self._settings: dict[str, Any] = train_kwargs | given | {
            "dim": dim, "device": device, "bias": bias, "adapts": adapts, "ship": ship,
            "expect": expect, "seed": seed, "method": method, "lexical": lexical,
        }  # fmt: skip
        self._checkpoints = None if model_checkpoint_path is None else Path(model_checkpoint_path)
        self._options_for({})
        self._output = Path(model_output_path)
        self._checkpoint_steps = checkpoint_save_steps
        self._report_path = None if report_path is None else Path(report_path)
        self._verbose, self._show_progress, self._cache_dir = verbose, show_progress, cache_dir
        if isinstance(embed_model, str):  # which loads a model, so it comes last
            self._check_destinations()
        self.embed_model = check_base(embed_model, "embed_model")

    @classmethod
    def from_model_path(
        cls,
        dataset: EmbeddingQAFinetuneDataset,
        embed_model: BaseEmbedding | str,
        model_path: str | Path,
        model_cls: Any | None = None,
        **kwargs: Any,
    ) -> EmbeddingAdapterFinetuneEngine:
        """Start from a saved adapter, ours or one of the old package.

        Args:
            dataset, embed_model, kwargs: See the class.
            model_path: Its folder; ``model_cls`` is accepted, but the folder says what it holds.
        """
        adapter = saving.load(Path(model_path)).adapter
        return cls(dataset, embed_model, adapter_model=adapter, **kwargs)

    def finetune(self, **train_kwargs: Any) -> None:
        """Embed what is not cached, train, and save the adapter to ``model_output_path``.

        ``train_kwargs`` override those of the constructor for this call.

        Raises:
            DatasetError: Too few queries to hold some out.
            FolderError: ``model_output_path`` cannot be written, or holds something else.
            EncodeError: The base model gave no usable vector.
            ShapeError: ``dim`` or the adapter to start from is not as the base model.
            TrainingError: Training diverged; what was saved before is untouched.
        """
        options = self._options_for(train_kwargs)
        idle = sorted(LINEAR_ONLY.intersection(self._settings | train_kwargs))
        idle += ["model_checkpoint_path"] * (self._checkpoints is not None)
        idle += ["bias"] * (not options.bias)
        if idle and options.method != "linear":
            warnings.warn(f'{", ".join(idle)}: heeded by method="linear" only.', stacklevel=2)
        candidate_output = self._check_destinations()
        began = time.perf_counter()
        cache, shown = self._cache_dir, self._show_progress
        with Encoder(self.embed_model, cache_dir=cache, show_progress=shown) as encoder:
            check_dim(encoder.fingerprint.dim, options.dim, self._start)
            train = self._stop_early if options.method == "linear" else self._cross_fit
            found = train(encoder, options, began)
        self._found, self._report = found, found.report
        found.model.save_pretrained(self._output)
        if found.candidate is not found.model:
            found.candidate.save_pretrained(candidate_output)
        if self._report_path is not None:
            found.report.to_html(self._report_path)
        if self._verbose:
            print(found.report)

    def _check_destinations(self) -> Path:
        files.check_target_folder(self._output)
        candidate_output = self._output.with_name(f"{self._output.name}.candidate")
        files.check_target_folder(candidate_output)
        files.check_outside("model_checkpoint_path", self._checkpoints, self._output)
        files.check_outside("report_path", self._report_path, self._output)
        if self._report_path is not None:
            files.check_target(self._report_path, error=OptionError)
        cache_folder(self._cache_dir)
        return candidate_output

    def _options_for(self, more: dict[str, Any]) -> TrainingOptions:
        settings = {**self._settings, **more}
        if settings["method"] is None:
            in_mind = self._start is not None or self._checkpoints is not None
            settings["method"] = implied_method(settings, training_loop=in_mind)
        elif not isinstance(settings["method"], str):
            settings["method"] = list(settings["method"])
        options = TrainingOptions.of(settings)
        check_method(options, self._start)
        return options

    def _stop_early(self, encoder: Encoder, options: TrainingOptions, began: float) -> _Found:
        """Train with early stopping, then on everything for as many epochs."""
        own = encoder.dataset(self.dataset)
        given = None if self._val_dataset is None else encoder.dataset(self._val_dataset)
        both = (self._val_dataset or self.dataset, self.dataset)  # of equal ids, ours is said
        self._asked = {q: text for each in both for q, text in each.queries.items()}
        self._sources = {q: s for each in both for q, s in (each.provenance or {}).items()}
        data = own if given is None else held_out.drop_leaked_queries(own, given)
        start, dim = self._start, data.documents.shape[1]
        if start is None and options.start == "identity":
            start = LinearAdapter.identity(dim, bias=options.bias)
        start = start or whitening(data.documents, bias=options.bias)
        seed, shown = options.seed, self._show_progress
        looks_random = held_out.labels_look_random(data, seed=seed, tell=shown)
        theirs = () if given is None else given.query_ids
        written = len(self._people(data.query_ids)) < len(data.query_ids)
        alone = written and FEWEST_ALONE <= len(theirs) == len(self._people(theirs))
        how: Any = {"alone": alone, "expect": options.expect, "seed": seed}
        train, validation = held_out.hold_out_split(data, given, **how)
        how = {"show_progress": shown, "on_step": self._checkpoint}
        fitted = fit(train, validation, start, options, **how)
        candidate = fitted.adapter
        if options.refit and fitted.best_epoch and not fitted.interrupted:
            again = refit(data, start, options, epochs=fitted.best_epoch, show_progress=shown)
            candidate = again or candidate
        judged = {"base": validation.base_scores, "adapted": validation.judge(fitted.adapter)}
        texts, views = self._texts(validation, given), None
        if options.lexical:
            held = (validation, texts, fitted.adapter, train.queries, list(self._asked.values()))
            whose = self._whose(judged["base"].query_ids)
            views = judge_on(*held, seed=seed, prove=prove(whose))
        notes = scoring_notes(validation.parts[0].data, candidate)
        report = FinetuneReport(
            *compare_by_part(judged["base"], judged["adapted"], validation.known),
            train_queries=len((data if options.refit else train).relevance),
            best_epoch=fitted.best_epoch,
            history=fitted.history,
            interrupted=fitted.interrupted,
            settings=settings_of(options) | {"looks_random": looks_random} | notes,
            held_out=Comparison(judged | (views.scores if views else {}), Texts.joined(texts)),
            views=None if looks_random else views,
        )
        against = report.verdict == LOOKS_RANDOM and options.ship != "always"
        served = LinearAdapter.identity(dim) if against else candidate
        report = self._completed(report, encoder, began, judged["base"].query_ids)
        return self._serving(served, candidate, report, own, data, candidate)

    def _cross_fit(self, encoder: Encoder, options: TrainingOptions, began: float) -> _Found:
        """Let methods compete on all queries, each judged by what has not seen it."""
        given = self._val_dataset
        everything = self.dataset if given is None else self.dataset.merged(given)
        self._asked, self._sources = everything.queries, everything.provenance or {}
        data = encoder.dataset(everything)
        held_out.check_queries_differ(data)
        words = None if options.lexical is None else partial(WordScores.within, everything)
        judges, kept = self._judges(data.query_ids), f"{self._output.name}.fitting"
        proven = prove(self._whose(data.query_ids if judges is None else judges))
        asked: Any = {"judges": judges, "curve": everything.synthetic, "prove": proven}
        asked |= {"kept": self._output.with_name(kept), "show_progress": self._show_progress}
        tuned = tune(data, options, words=words, **asked)
        texts = Texts.of(everything, tuned.judged["base"])
        told = {name: getattr(options, name) for name in ("method", "adapts", "expect", "seed")}
        report = FinetuneReport(
            *tuned.parts,
            train_queries=len(data.relevance),
            settings=told | scoring_notes(data, tuned.candidate),
            choice=tuned.choice,
            held_out=Comparison(tuned.judged | (tuned.views.scores if tuned.views else {}), texts),
            views=tuned.views,
        )
        report = self._completed(report, encoder, began, tuned.judged["base"].query_ids)
        written = (report.data or {}).get("questions")  # what is merged knows of no writing
        report = replace(report, data=data_statistics(everything) | {"questions": written})
        return self._serving(tuned.adapter, tuned.candidate, report, data, data, tuned.mixed)

    def _completed(
        self, report: FinetuneReport, encoder: Encoder, began: float, judged: Iterable[str]
    ) -> FinetuneReport:
        """Add what it cost, what it learnt from, and how many of the judged queries are whose."""
        sources, scores = self._whose(judged), report.held_out and report.held_out.scores
        people = None
        if scores and not set(MADE).isdisjoint(sources):
            both = scores["base"], scores["adapted"]
            theirs = np.isin(both[0].query_ids, self._people(both[0].query_ids))
            people = compare_by_part(*both, theirs).known
        return replace(
            report,
            people=people,
            settings={**report.settings, "judged_on": sources},
            views=report.views and report.views.judged_by(sources),
            seconds=time.perf_counter() - began,
            **encoder.spent,
            data=data_statistics(self.dataset),
        )

    def _whose(self, judged: Iterable[str]) -> dict[str, int]:
        """Return how many of the judged queries are from which source; one asked again is one."""
        sources = {
            alike(self._asked[query]): self._sources.get(query, "unknown") for query in judged
        }
        return dict(Counter(sources.values()))

    def _people(self, queries: Iterable[str]) -> list[str]:
        """Return those that neither an LLM wrote nor documents contain."""
        return [query for query in queries if self._sources.get(query) not in MADE]

    def _judges(self, queries: Sequence[str]) -> list[str] | None:
        """Return the queries of people where they are enough to judge alone; None: all judge."""
        people = self._people(queries)
        return people if FEWEST_ALONE <= len(people) < len(queries) else None

    def _serving(
        self,
        adapter: Adapter,
        candidate: Adapter,
        report: FinetuneReport,
        own: EncodedDataset,
        learnt: EncodedDataset,
        mixed: Adapter | None,
    ) -> _Found:
        """Put adapter and candidate on the base model; ``own`` is all that was trained on."""
        name, asked = self._output.name, own.relevance.documents[own.relevance.offsets[:-1]]
        sketch = QuerySketch.of(own.queries, asked.tolist())
        base, timed = base_name(self.embed_model), own.queries[:_TIMED]
        report = replace(report, deployment=Deployment.of(name, base, candidate, timed))

        def model(adapter: Adapter, report: FinetuneReport) -> AdaptedEmbedding:
            training = {"data": self.dataset.fingerprint, "report": report.to_dict()}
            return AdaptedEmbedding(self.embed_model, adapter, training=training, sketch=sketch)

        if candidate is adapter or candidate.is_identity:  # then there is none to keep
            report = replace(report, saved="base" if adapter.is_identity else "candidate")
            served = kept = model(adapter, report)
        else:
            kept = model(candidate, report)
            report = replace(report, saved="base", candidate=f"{name}.candidate")
            served = model(adapter, report)
        return _Found(served, kept, report, mixed, bank_of(learnt.queries))

    def _texts(self, validation: Validation, given: EncodedDataset | None) -> list[Texts]:
        theirs = None if given is None else given.document_ids
        return [
            Texts.of((part.document_ids is theirs and self._val_dataset) or self.dataset, part)
            for part in (each.data for each in validation.parts)
        ]

    def _checkpoint(self, step: int, export: Callable[[], Adapter]) -> None:
        if self._checkpoints is not None and step % self._checkpoint_steps == 0:
            export().save(self._checkpoints / f"step_{step}")

    def get_finetuned_model(self, **model_kwargs: Any) -> AdaptedEmbedding:
        """Return the trained AdaptedEmbedding, with these arguments; or a NotTrainedError."""
        model_kwargs.pop("adapter_cls", None)  # of old scripts: the adapter knows its class
        self._trained("model")
        model = self._found.model
        known = {name: getattr(model, name) for name in ("adapter", "training", "sketch")}
        return AdaptedEmbedding(model.base_embed_model, **{**known, **model_kwargs})

    def get_finetuned_retriever(
        self, index_or_nodes: VectorStoreIndex | Iterable[BaseNode], **settings: Any
    ) -> HybridRetriever:
        """Return what held-out queries find best of vectors, words and a document prior together.

        Where they prove no gain, words and prior have at most their safe weights, and queries go
        half of the adapter's way, see :func:`halfway`; where the verdict on the mixture is against
        it, it is :meth:`get_finetuned_model` alone.

        Args:
            index_or_nodes: An index over the base model's vectors, or over those of the adapted
                model where documents move. Or nodes, for an index in memory.
            settings: Of :meth:`HybridRetriever.from_nodes`.

        Raises:
            NotTrainedError: Before ``finetune()``.
            StoreError: The index cannot list its nodes.
        """
        views, model = self._trained("retriever").views, self.get_finetuned_model()
        found, given = self._found, dict[str, Any](weight=0.0, cache_dir=self._cache_dir)
        if views and found.mixed and views.verdict.decision.stance != "against":
            adapter = views.beside(found.mixed)
            model = self.get_finetuned_model(adapter=adapter)
            bank = adapter.apply(found.bank)
            given |= dict(zip(("weight", "penalty"), views.weights, strict=True), bank=bank)
            given["queries"] = list(self._asked.values())
        index, nodes = index_and_nodes(index_or_nodes, model)
        return HybridRetriever.from_nodes(index, nodes, embed_model=model, **{**given, **settings})

    @property
    def candidate(self) -> AdaptedEmbedding:
        """The model that was chosen, also where the verdict is against serving it."""
        self._trained("candidate")
        return self._found.candidate
