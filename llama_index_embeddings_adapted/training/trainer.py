"""Gradient training of an adapter on cached vectors."""

from __future__ import annotations

import functools
import inspect
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from llama_index.core.utils import infer_torch_device
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from tqdm import tqdm

from ..adapters.base import Adapter
from ..adapters.maps import LinearAdapter
from ..core.arrays import Rows, l2_normalize
from ..core.encoded import EncodedDataset
from ..errors import OptionError, TrainingError
from ..evaluation.held_out import Gain, Validation
from ..evaluation.reports import Epoch
from .modules import Competition, TrainableAdapter, TrainingDocuments, as_tensor, ranking_nll
from .options import TrainingOptions

_WORTH_TWO_THREADS = 100_000_000  # multiplications per step
OnStep = Callable[[int, Callable[[], Adapter]], None]
Made = TypeVar("Made")
_TEMPERATURE_RANGE = (0.005, 1.0)
_PEAK = 8.0  # times the constant rate, where a rate that falls to zero starts
_libraries = functools.cache(ThreadpoolController)  # to look for them takes 15 ms


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
    """Exhaust iterators, several at once in turns, with torch's threads divided among them.

    Two trainings on a thread each are sooner done than in turn on two, if numpy's products keep to
    these threads too. The first error or interrupt ends all, each after what it does then, and is
    raised. ``most``: by default torch's threads.
    """
    threads = torch.get_num_threads()
    workers = min(len(works), most or threads)
    if workers < 2:
        deque(chain.from_iterable(works), maxlen=0)
        return
    ended, share = object(), max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, "training", torch.set_num_threads, (share,))
    try:
        with _libraries().limit(limits=share, user_api="blas"):
            turns = {pool.submit(next, work, ended): work for work in works}
            try:
                while turns:
                    for turn in wait(turns, return_when=FIRST_COMPLETED).done:
                        work = turns.pop(turn)
                        if turn.result() is not ended:
                            turns[pool.submit(next, work, ended)] = work
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(threads)  # as some libraries below keep one number for all threads


def each_in_threads(work: Callable[[int], Made], count: int, most: int | None = None) -> list[Made]:
    """Return what some work makes of each number, several at once; see :func:`run_in_threads`."""
    made: dict[int, Made] = {}

    def run(at: int) -> Iterator[Made]:
        yield made.setdefault(at, work(at))

    run_in_threads([run(at) for at in range(count)], most)
    return [made[at] for at in range(count)]


@dataclass(frozen=True, eq=False)
class Fit:
    """What training found; epoch 0, the history's first, is the base model: an identity."""

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
    keeps the best so far. ``on_step`` is called after each step with its number and a function that
    exports the adapter. A loss that is not finite, or far above the first, is a TrainingError.
    """
    began = time.perf_counter()
    run = _Run(train, start, options, on_step)
    best: Adapter = LinearAdapter.identity(start.input_dim)
    best_epoch, best_gain = 0, Gain.of(validation, validation.base)
    history = [Epoch(0, run.loss_now(), best_gain.parts, time.perf_counter() - began)]
    interrupted, began = False, time.perf_counter()
    try:
        for number, loss in run.epochs(show_progress=show_progress):
            if loss > 10 * max(history[0].loss, 1.0):
                what = f"from {history[0].loss:.3g} to {loss:.3g} in {len(history)} epochs"
                raise _diverged(options, f"the loss went {what}")
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
        kept = f"the adapter of epoch {best_epoch} is kept"
        warnings.warn(f"Training was interrupted; {kept}.", stacklevel=2)
    return Fit(best, best_epoch, tuple(history), interrupted)


def states(
    train: EncodedDataset, start: Adapter, options: TrainingOptions, *, show_progress: bool = False
) -> Iterator[tuple[int, Callable[[], Adapter]]]:
    """Train as :func:`fit` does, unvalidated; yield number and export of each epoch."""
    run = _Run(train, start, options)
    for number, _ in run.epochs(show_progress=show_progress):
        yield number, run.module.export


def refit(
    train: EncodedDataset,
    start: Adapter,
    options: TrainingOptions,
    *,
    epochs: int,
    show_progress: bool = True,
) -> Adapter | None:
    """Train for a known number of epochs, on everything; None when interrupted."""
    options = replace(options, epochs=epochs)
    try:
        *_, (_, export) = states(train, start, options, show_progress=show_progress)
    except KeyboardInterrupt:
        warnings.warn("Training on all queries was interrupted.", stacklevel=2)
        return None
    return export()


class _Run:
    """The moving parts of one training run."""

    def __init__(
        self,
        train: EncodedDataset,
        start: Adapter,
        options: TrainingOptions,
        on_step: OnStep | None = None,
    ) -> None:
        self._options, self._on_step, self._steps = options, on_step, 0
        device = device_for(options)
        self._random = np.random.default_rng(options.seed)
        self.module = TrainableAdapter(start, device)
        self._log_temperature = nn.Parameter(
            torch.tensor(math.log(options.temperature), device=device),
            requires_grad=options.learn_temperature,
        )
        self._queries = as_tensor(train.queries, device)
        self._unit_queries = as_tensor(l2_normalize(train.queries), device)
        self._documents = TrainingDocuments(train.documents, device)
        self._competition = Competition(train, options, self._random)
        fixed = self._competition.fixed  # gathered once where every step scores the same documents
        self._fixed = None if fixed is None else self._documents.take(fixed)
        self._count, dim = train.documents.shape
        exact = dim <= options.anchor_documents  # and cheaper than a sample
        self._moment = self._documents.moment() if options.anchor and exact else None
        scored = self._competition.most_scored + options.anchor_documents
        self._multiplications = options.batch_size * scored * dim
        self._optimizer = self._make_optimizer()
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)

    def epochs(self, *, show_progress: bool) -> Iterator[tuple[int, float]]:
        """Train; yield number and mean loss of each epoch."""
        numbers = range(1, self._options.epochs + 1)
        with tqdm(numbers, desc="Training", unit="epoch", disable=not show_progress) as bar:
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
        return steps[: self._options.steps_per_epoch]

    def step(self, batch: Rows) -> float:
        """Take one step; return its loss."""
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(self._options, f"the loss is {value}")
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
        options = self._options
        warm = min(1.0, (step + 1) / (options.warmup_steps + 1))
        if not options.decay:
            return warm
        steps = math.ceil(len(self._queries) / options.batch_size)
        total = options.epochs * min(steps, options.steps_per_epoch or steps)
        return warm * _PEAK * (1.0 - min(step, total) / total)

    def _loss(self, batch: Rows) -> Tensor:
        options, rows = self._options, as_tensor(batch, self._queries.device)
        adapted = nn.functional.normalize(self.module(self._queries[rows]), dim=1)
        candidates = self._competition.candidates(batch)
        relevant, hidden = self._competition.among(batch, candidates)
        documents = self._documents.take(candidates) if self._fixed is None else self._fixed
        temperature, count = self._log_temperature.exp(), self._competition.stands_for(candidates)
        settings: Any = {"temperature": temperature, "stands_for": count, "hidden": hidden}
        loss = ranking_nll(adapted, documents, relevant, **settings)
        if options.shrinkage:
            loss = loss + options.shrinkage * self.module.shrinkage()
        if options.anchor:
            loss = loss + options.anchor * self._drift(adapted - self._unit_queries[rows])
        return loss

    def _drift(self, moved: Tensor) -> Tensor:
        """Return the mean squared change in the scores of documents, of all or of a sample."""
        if self._moment is not None:
            return ((moved @ self._moment) * moved).sum(dim=1).mean()
        drawn = self._random.integers(self._count, size=self._options.anchor_documents)
        return (moved @ self._documents.take(drawn).T).square().mean()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        options = self._options
        make: Callable[..., torch.optim.Optimizer] = options.optimizer_class or torch.optim.Adam
        ours = make in (torch.optim.Adam, torch.optim.AdamW)
        params = {**({"lr": options.learning_rate} if ours else {}), **options.optimizer_params}
        parameters = [*self.module.parameters(), self._log_temperature]
        given = f"optimizer_class={getattr(make, '__name__', make)}, optimizer_params={params}"
        try:
            made = make([p for p in parameters if p.requires_grad], **params)
            inspect.signature(made.step).bind()  # that of LBFGS wants the loss as a function
        except (TypeError, ValueError, AttributeError) as cause:
            raise OptionError(f"{given}: {cause}") from cause
        return made


def _diverged(options: TrainingOptions, what: str) -> TrainingError:
    rate = options.optimizer_params.get("lr", options.learning_rate)
    return TrainingError(f"Training diverged: {what}. Lower the learning rate (now {rate:g}).")


def device_for(options: TrainingOptions) -> torch.device:
    """Return where to train: as the options say, or the best there is."""
    return torch.device(infer_torch_device() if options.device is None else options.device)
