"""Gradient training of an adapter on cached vectors."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter
from ..core.arrays import Rows, l2_normalize
from ..core.encoded import EncodedDataset, Qrels
from ..errors import OptionError, TrainingError
from ..evaluation.held_out import Gain, Validation
from ..evaluation.reports import Epoch
from .modules import (
    Targets,
    TrainableAdapter,
    TrainingDocuments,
    as_tensor,
    ranking_nll,
    score_drift,
    trainable,
)
from .options import TrainingOptions

_WORTH_TWO_THREADS = 100_000_000  # multiplications per step


@contextmanager
def limit_threads(multiplications: int) -> Iterator[None]:
    """Keep small steps on one thread: waiting for a second one costs more than it saves."""
    before = torch.get_num_threads()
    if multiplications < _WORTH_TWO_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_in_threads(works: Sequence[Iterator[Any]], most: int | None = None) -> None:
    """Exhaust iterators, several at once, with torch's threads divided among them.

    Two trainings on a thread each are done sooner than one after the other on two threads. An error
    or an interrupt ends all of them, each after what it does at that moment.

    Args:
        works: Independent of each other; what they yield is of no interest.
        most: How many at once; by default as many as torch has threads.

    Raises:
        BaseException: The first error of any of them.
    """
    threads = torch.get_num_threads()
    workers = min(len(works), most or threads)
    if workers < 2:
        deque(chain.from_iterable(works), maxlen=0)
        return
    ended, share = threading.Event(), max(1, threads // workers)

    def exhaust(work: Iterator[Any]) -> None:
        while not ended.is_set() and next(work, ended) is not ended:
            pass

    try:
        with ThreadPoolExecutor(workers, "training", torch.set_num_threads, (share,)) as pool:
            tasks = [pool.submit(exhaust, work) for work in works]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                ended.set()
                raise
    finally:
        torch.set_num_threads(threads)  # as some libraries below keep one number for all threads


OnStep = Callable[[int, Callable[[], Adapter]], None]

_TEMPERATURE_RANGE = (0.005, 1.0)
_PEAK = 8.0  # times the constant rate, where a rate that falls to zero starts


@dataclass(frozen=True, eq=False)
class Fit:
    """What training found.

    Args:
        adapter: The best one; an identity where nothing beat the base model.
        best_epoch: When it was found; 0 is the base model.
        history: One entry per epoch, epoch 0 included.
        interrupted: Whether it was stopped from the keyboard.
    """

    adapter: Adapter
    best_epoch: int
    history: tuple[Epoch, ...]
    interrupted: bool = False


def fit(
    train: EncodedDataset,
    validation: Validation,
    start: Adapter,
    options: TrainingOptions,
    *,
    show_progress: bool = True,
    on_step: OnStep | None = None,
) -> Fit:
    """Train an adapter, stopping early, and keep the best state, the base model included.

    An epoch is better when its :class:`Gain` is higher and harmless. Interrupting from the keyboard
    keeps the best so far.

    Args:
        train: Queries to learn from.
        validation: Held-out queries.
        start: Where to start: an identity, a label-free map, or an adapter trained before.
        options: How to train.
        show_progress: Show a bar.
        on_step: Called after each step with its number and a function that exports the adapter.

    Raises:
        TrainingError: The loss is not finite, or far above where it started.
    """
    began = time.perf_counter()
    run = _Run(train, start, options, on_step)
    best: Adapter = LinearAdapter.identity(start.input_dim)
    best_epoch, best_gain = 0, Gain.of(validation, validation.base)
    history = [Epoch(0, run.loss_now(), best_gain.parts, time.perf_counter() - began)]
    interrupted, began = False, time.perf_counter()
    try:
        for number, loss in run.epochs(show_progress=show_progress):
            _check_progress(loss, history, options)
            adapter = run.module.export()
            gain = Gain.of(validation, validation.score(adapter))
            if gain.harmless and gain.overall > best_gain.overall:
                best, best_epoch, best_gain = adapter, number, gain
            history.append(Epoch(number, loss, gain.parts, time.perf_counter() - began))
            if options.patience is not None and number - best_epoch >= options.patience:
                break
            began = time.perf_counter()
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"Training was interrupted; the adapter of epoch {best_epoch} is kept.", stacklevel=2
        )
    return Fit(best, best_epoch, tuple(history), interrupted)


def refit(
    train: EncodedDataset,
    start: Adapter,
    options: TrainingOptions,
    *,
    epochs: int,
    show_progress: bool = True,
) -> Adapter | None:
    """Train for a known number of epochs, on everything; None when interrupted."""
    run = _Run(train, start, replace(options, epochs=epochs))
    try:
        deque(run.epochs(show_progress=show_progress), maxlen=0)
    except KeyboardInterrupt:
        warnings.warn("Training on all queries was interrupted.", stacklevel=2)
        return None
    return run.module.export()


def states(
    train: EncodedDataset,
    start: Adapter | TrainableAdapter,
    options: TrainingOptions,
    *,
    show_progress: bool = False,
) -> Iterator[tuple[int, Callable[[], Adapter]]]:
    """Train, and yield after each epoch its number and a function that exports the adapter.

    Args:
        train: Queries to learn from.
        start: As above.
        options: How to train; ``patience`` has no effect, as nothing is validated.
        show_progress: Show a bar.
    """
    run = _Run(train, start, options)
    for number, _ in run.epochs(show_progress=show_progress):
        yield number, run.module.export


class _Competition:
    """Which documents compete in a step, and which of them each query should rank first.

    Args:
        train: Queries to learn from.
        options: Loss and bounds.
        device: Where tensors go.
        random: Of what is drawn.
    """

    def __init__(
        self,
        train: EncodedDataset,
        options: TrainingOptions,
        device: torch.device,
        random: np.random.Generator,
    ) -> None:
        self._options, self._device, self._random = options, device, random
        self.documents = TrainingDocuments(train.documents, device)
        first = train.canonical_rows
        self.relevance = replace(train.relevance, documents=first[train.relevance.documents])
        # Hard negatives compete like the documents that queries ask for.
        nothing = Qrels.from_lists([[]] * len(train.relevance))
        mined, self._hidden = train.negatives or nothing, train.hidden or nothing
        self._negatives = replace(mined, documents=first[mined.documents])
        asked = np.concatenate([self.relevance.documents, self._negatives.documents])
        self._candidates = np.unique(first if options.loss == "corpus" else asked)
        # Gathered once where every step scores the same documents.
        self._vectors: Tensor | None = None
        if options.loss != "mnr" and len(self._candidates) <= options.max_candidates:
            self._vectors = self.documents.take(self._candidates)
        self.scored = min(len(self._candidates), options.max_candidates)

    def candidates(self, batch: Rows) -> tuple[Rows, Tensor]:
        """Return the documents that compete in this step, sorted, and their vectors."""
        if self._vectors is not None:
            return self._candidates, self._vectors
        relevant, hard = self.relevance.take(batch), self._negatives.take(batch).documents
        if self._options.loss == "mnr":
            # One relevant document per query, as each (query, document) pair is one example; the
            # others are drawn in other epochs. Those of the batch's other queries compete.
            place = relevant.offsets[:-1] + self._random.integers(relevant.counts)
            chosen = _union(relevant.documents[place], hard)
        else:
            own = _union(relevant.documents, hard)
            more = max(0, self._options.max_candidates - len(own))
            others = self._random.choice(self._candidates, size=more, replace=False)
            chosen = _union(own, others)
        return chosen, self.documents.take(chosen)

    def stands_for(self, candidates: Rows) -> float:
        """Return how many documents a candidate stands for."""
        return 1.0 if self._options.loss == "mnr" else len(self._candidates) / len(candidates)

    def targets(self, batch: Rows, candidates: Rows) -> Targets:
        """Return the relevant documents of each query of a batch among the candidates."""
        relevant, hidden = (own.take(batch) for own in (self.relevance, self._hidden))
        return Targets.of(relevant, hidden, candidates, self._device)

    def anchors(self) -> Tensor:
        """Draw the documents whose scores should stay."""
        count = self._options.anchor_documents
        return self.documents.take(self._random.integers(len(self.documents), size=count))


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        train: EncodedDataset,
        start: Adapter | TrainableAdapter,
        options: TrainingOptions,
        on_step: OnStep | None = None,
    ) -> None:
        self._options, self._on_step, self._steps = options, on_step, 0
        device = device_for(options)
        self._random = np.random.default_rng(options.seed)
        module = start if isinstance(start, TrainableAdapter) else trainable(start)
        self.module: TrainableAdapter = module.to(device)
        self._log_temperature = nn.Parameter(
            torch.tensor(math.log(options.temperature), device=device),
            requires_grad=options.learn_temperature,
        )
        self._queries = as_tensor(train.queries, device)
        self._unit_queries = as_tensor(l2_normalize(train.queries), device)
        self._competition = _Competition(train, options, device, self._random)
        documents = self._competition.documents
        exact = documents.dim <= options.anchor_documents  # and cheaper than a sample
        self._moment = documents.moment() if options.anchor and exact else None
        scored = self._competition.scored + options.anchor_documents
        self._multiplications = options.batch_size * scored * documents.dim
        self._optimizer = self._make_optimizer()
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)

    def epochs(self, *, show_progress: bool) -> Iterator[tuple[int, float]]:
        """Train; yield number and mean loss of each epoch."""
        numbers = range(1, self._options.epochs + 1)
        bar = tqdm(numbers, desc="Training", unit="epoch", disable=not show_progress)
        with bar:
            for number in bar:
                with limit_threads(self._multiplications):
                    loss = float(np.mean([self.step(batch) for batch in self.batches()]))
                bar.set_postfix(loss=f"{loss:.3f}")
                yield number, loss

    def batches(self) -> list[Rows]:
        """Return the rows of each step of one epoch, shuffled."""
        order = self._random.permutation(len(self._queries))
        size = self._options.batch_size
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        return steps[: self._steps_per_epoch]

    def step(self, batch: Rows) -> float:
        """Take one step; return its loss."""
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(_diverged(self._options, f"the loss is {value}"))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.module.parameters(), self._options.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            self._log_temperature.clamp_(*map(math.log, _TEMPERATURE_RANGE))
        self._steps += 1
        if self._on_step is not None:
            self._on_step(self._steps, self.module.export)
        return value

    def loss_now(self) -> float:
        """Return the loss of one batch, without learning from it."""
        state = self._random.bit_generator.state
        with torch.no_grad():
            value = float(self._loss(self.batches()[0]))
        self._random.bit_generator.state = state
        return value

    def _rate(self, step: int) -> float:
        """Return what the learning rate is multiplied by."""
        options = self._options
        warm = min(1.0, (step + 1) / (options.warmup_steps + 1))
        if not options.decay:
            return warm
        total = options.epochs * self._steps_per_epoch
        return warm * _PEAK * (1.0 - min(step, total) / total)

    @property
    def _steps_per_epoch(self) -> int:
        steps = math.ceil(len(self._queries) / self._options.batch_size)
        return min(steps, self._options.steps_per_epoch or steps)

    def _loss(self, batch: Rows) -> Tensor:
        options = self._options
        rows = as_tensor(batch, self._queries.device)
        adapted = nn.functional.normalize(self.module(self._queries[rows]), dim=1)
        candidates, documents = self._competition.candidates(batch)
        loss = ranking_nll(
            adapted,
            documents,
            self._competition.targets(batch, candidates),
            temperature=self._log_temperature.exp(),
            stands_for=self._competition.stands_for(candidates),
        )
        if options.shrinkage:
            loss = loss + options.shrinkage * self.module.shrinkage()
        if options.anchor:
            loss = loss + options.anchor * self._drift(adapted, self._unit_queries[rows])
        return loss

    def _drift(self, adapted: Tensor, base: Tensor) -> Tensor:
        """Return how far the scores of documents have moved, of all of them or of a sample."""
        if self._moment is not None:
            return score_drift(adapted - base, self._moment)
        anchors = self._competition.anchors()
        return ((adapted - base) @ anchors.T).square().mean()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        options = self._options
        make: Callable[..., torch.optim.Optimizer] = options.optimizer_class or torch.optim.Adam
        params: dict[str, Any] = dict(options.optimizer_params)
        if make in (torch.optim.Adam, torch.optim.AdamW):
            params.setdefault("lr", options.learning_rate)
        parameters = [*self.module.parameters(), self._log_temperature]
        try:
            return make([p for p in parameters if p.requires_grad], **params)
        except (TypeError, ValueError) as cause:
            name = getattr(make, "__name__", make)
            raise OptionError(
                f"optimizer_class={name}, optimizer_params={params}: {cause}"
            ) from cause


def _union(*rows: Rows) -> Rows:
    """Return the different ones, sorted; for thousands faster than ``np.unique``, which hashes."""
    ordered = np.sort(np.concatenate(rows))
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _check_progress(loss: float, history: list[Epoch], options: TrainingOptions) -> None:
    start = history[0].loss
    if loss > 10 * max(start, 1.0):
        what = f"the loss went from {start:.3g} to {loss:.3g} in {len(history)} epochs"
        raise TrainingError(_diverged(options, what))


def _diverged(options: TrainingOptions, what: str) -> str:
    rate = options.optimizer_params.get("lr", options.learning_rate)
    return f"Training diverged: {what}. Lower the learning rate (now {rate:g})."


def device_for(options: TrainingOptions) -> torch.device:
    """Return where to train: as the options say, or the best there is."""
    if options.device is not None:
        return torch.device(options.device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
