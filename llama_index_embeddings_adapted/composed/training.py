"""Training a small model beside a black box with the trainer of sentence-transformers.

A row of the training set is a document with queries that it answers, as row numbers. A collator of
ours turns a batch of rows into the tokens of the distinct queries and documents, and hands cosines
of the black box and judgements over as "labels"; the loss adds the small model's cosines and masks.
Batching, gradient caching, optimizer, schedule, precision and checkpoints are the library's. Which
epoch is best is ours to say: to the library, the model before training is none.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses.gradcache import CachedLossMixin
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from ..core.arrays import Rows, l2_normalize
from ..core.encoded import EncodedDataset
from ..core.files import write_json
from ..errors import TrainingError
from ..evaluation.page import Texts
from ..evaluation.reports import Epoch, best_epoch
from ..evaluation.retrieval import hard_negatives
from ..training.options import ComposedOptions
from .small_model import precision_on, prepare_model

_MOST_OF_POSITIVE = 0.95
Score = Callable[[], dict[str, float]]
_STATE = "trainer_state.json"  # the trainer writes it last: a checkpoint that has it is whole
_HISTORY, _WEIGHTS, _BEST = "history.json", "weights.safetensors", "best.safetensors"


def composed_nll(
    queries: Tensor, documents: Tensor, judged: dict[str, Tensor], options: ComposedOptions
) -> Tensor:
    """Return the mean loss in nats of pairs, ``()``, by the cosine of the composed vectors.

    ``(n, dim)`` queries and ``(m, dim)`` documents are the small model's, of any length. Of what is
    ``judged``, ``"frozen"`` are the black box's cosines, ``(n, m)``, absent where there is none;
    ``"pairs"``, ``(pairs, 2)``, rows of queries and documents that answer them; ``"relevant"``,
    ``(n, m)``, is True where a document answers a query and so does not compete. Label smoothing is
    spread evenly over the candidates of a pair. Source: Zhang et al. 2024, arXiv:2402.12177, eq. 4;
    the mask is ours.
    """
    unit = partial(nn.functional.normalize, dim=1)
    small = unit(queries.float()) @ unit(documents.float()).T
    frozen = judged.get("frozen")
    share, smoothing = options.weight**2, options.label_smoothing
    cosines = small if frozen is None else (frozen + share * small) / (1 + share)
    rows, targets = judged["pairs"].unbind(1)
    allowed = ~judged["relevant"][rows]
    allowed[torch.arange(len(rows), device=allowed.device), targets] = True
    logits = (cosines[rows] / options.temperature).masked_fill(~allowed, -torch.inf)
    log_shares = logits - logits.logsumexp(dim=1, keepdim=True)
    right = log_shares.gather(1, targets[:, None]).squeeze(1)
    spread = log_shares.masked_fill(~allowed, 0.0).sum(dim=1) / allowed.sum(dim=1)
    return -((1 - smoothing) * right + smoothing * spread).mean()


class ComposedLoss(CachedLossMixin, nn.Module):
    """What the sentence-transformers trainer minimises: :func:`composed_nll` of a batch.

    The trainer hands over the batch's judgements as "labels". More tokens than ``mini_batch_size``
    of the longest texts go through the library's cached gradients.
    """

    def __init__(self, model: Any, options: ComposedOptions) -> None:
        super().__init__()
        self.model = model
        self.mini_batch_size = options.mini_batch_size
        self._options = options
        self._seen: list[Tensor] = []

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Any) -> Tensor:
        """Return the loss of a batch, ``()``."""
        features = list(sentence_features)
        tokens = [column["input_ids"] for column in features]
        longest = max(column.shape[1] for column in tokens)
        if sum(column.numel() for column in tokens) > self.mini_batch_size * longest:
            loss: Tensor = self.forward_cached(features, labels)
        else:
            embedded = [[self.model(column)["sentence_embedding"]] for column in features]
            loss = self.calculate_loss(embedded, labels)
        self._seen.append(loss.detach())
        return loss

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of embedded mini-batches, queries first; back-propagate if asked."""
        queries, documents = (torch.cat(parts) for parts in reps)
        loss = composed_nll(queries, documents, labels, self._options)
        if with_backward:
            torch.autograd.backward(loss)
            return loss.detach()
        return loss

    def take_mean(self) -> float:
        """Return the mean loss of the steps since the last call; NaN where there were none."""
        seen, self._seen = self._seen, []
        return float(torch.stack(seen).mean()) if seen else float("nan")


def training_groups(
    data: EncodedDataset, *, per_group: int, negatives: int
) -> list[dict[str, list[int]]]:
    """Return groups: a distinct document, up to ``per_group`` queries, and hard negatives."""
    asked: dict[int, list[int]] = {}
    documents = data.canonical_rows[data.relevance.documents]
    for query, document in zip(data.relevance.queries, documents, strict=True):
        if int(query) not in asked.setdefault(int(document), []):
            asked[int(document)].append(int(query))
    mined = _mined(data, negatives)
    found = []
    for document, queries in asked.items():
        for start in range(0, len(queries), per_group):
            own = queries[start : start + per_group]
            hard = dict.fromkeys(int(row) for query in own for row in mined[query])
            found.append({"document": [document], "queries": own, "hard": [*hard][:negatives]})
    return found


def _mined(data: EncodedDataset, count: int) -> Sequence[Rows]:
    if not count:
        return [np.empty(0, dtype=np.int64)] * len(data.relevance)
    if data.negatives is None:
        return hard_negatives(data, k=count, most_of_positive=_MOST_OF_POSITIVE)
    given = data.negatives
    return [data.canonical_rows[given.relevant_to(query)][:count] for query in range(len(given))]


class Collator:
    """Makes a batch of groups: tokens of both roles, judgements, cosines of what is ``frozen``."""

    #: The trainer asks for it: no column of the dataset holds labels.
    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, model: Any, data: EncodedDataset, texts: Texts, *, frozen: bool) -> None:
        self._model, self._texts = model, texts
        self._vectors = [*map(l2_normalize, (data.queries, data.documents))] if frozen else None
        first, truth = data.canonical_rows, data.relevance
        self._relevant = [set(first[truth.relevant_to(row)].tolist()) for row in range(len(truth))]

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return ``query_…`` and ``document_…`` tokens, and the judgements as ``label``."""
        queries = list(dict.fromkeys(q for group in features for q in group["queries"]))
        answers = [document for group in features for document in group["document"]]
        hard = [document for group in features for document in group["hard"]]
        documents = list(dict.fromkeys([*answers, *hard]))
        relevant = np.array([[d in self._relevant[q] for d in documents] for q in queries])
        drawn = {(q, d) for group in features for d in group["document"] for q in group["queries"]}
        row = {query: number for number, query in enumerate(queries)}
        column = {document: number for number, document in enumerate(documents)}
        pairs = torch.tensor(sorted((row[q], column[d]) for q, d in drawn))
        label = {"relevant": torch.from_numpy(relevant), "pairs": pairs}
        if self._vectors is not None:
            own, theirs = self._vectors
            label["frozen"] = torch.from_numpy(own[queries] @ theirs[documents].T)
        return {
            **self._tokens("query", [self._texts.queries[query] for query in queries]),
            **self._tokens("document", [self._texts.documents[one] for one in documents]),
            "label": label,
        }

    def _tokens(self, role: str, texts: list[str]) -> dict[str, Any]:
        found = self._model.preprocess(texts, prompt=self._model.prompts.get(role) or None)
        return {f"{role}_{name}": value for name, value in found.items()}


class Progress(TrainerCallback):
    """Scores every epoch, keeps the best one, and stops where there is no better one."""

    def __init__(self, model: Any, loss: ComposedLoss, score: Score, options: ComposedOptions,
                 *, show_progress: bool) -> None:  # fmt: skip
        self.model, self.loss, self.score, self.options = model, loss, score, options
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.interrupted, self.resumed_from = False, 0
        self.bar = tqdm(total=0, desc="Training", unit="step", disable=not show_progress)
        self._began = time.perf_counter()

    def save(self, checkpoint: Path) -> None:
        """Write weights, best weights and history, in the course of writing a checkpoint."""
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(trained(self.model), checkpoint / _WEIGHTS)
        save_file(self.best, checkpoint / _BEST)
        write_json(checkpoint / _HISTORY, [line.to_dict() for line in self.history])

    def restore(self, checkpoint: Path) -> None:
        """Take up best weights and history of a run."""
        lines = json.loads((checkpoint / _HISTORY).read_text(encoding="utf-8"))
        self.history = [Epoch.from_dict(line) for line in lines]
        self.best, self.resumed_from = load_file(checkpoint / _BEST), self.history[-1].number

    @property
    def best_epoch(self) -> int:
        """The first of the best so far."""
        return best_epoch(self.history, self.options.metric)

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        patience = self.options.patience
        if not self.history or patience is None:
            return False
        return self.history[-1].number - self.best_epoch >= patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the small model before training, unless a run is continued."""
        self.bar.total, self.bar.n = state.max_steps, state.global_step
        if not self.history:
            self._record(0)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the epoch; stop when patience is at its end."""
        self._record(round(state.epoch))
        control.should_training_stop |= self.exhausted

    def _record(self, number: int) -> None:
        loss = self.loss.take_mean()
        if number and not math.isfinite(loss):
            raise TrainingError(
                f"Training diverged: the loss of epoch {number} is {loss}. Lower the learning rate "
                f"(now {self.options.learning_rate:g})."
            )
        training = self.model.training
        self.model.eval()
        scores = self.score()
        self.model.train(training)
        self.history.append(Epoch(number, loss, scores, time.perf_counter() - self._began))
        self._began = time.perf_counter()
        shown = f"{scores[self.options.metric]:.4f}"
        self.bar.set_postfix({"epoch": number, self.options.metric: shown})
        if self.best_epoch == number:
            self.best = trained(self.model)


def checkpoint_folder(output: Path, identity: dict[str, Any]) -> Path:
    """Return the folder of one training; what another one left there is deleted."""
    folder = output.with_name(f"{output.name}.checkpoints")
    run = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    (folder / run).mkdir(parents=True, exist_ok=True)
    for other in folder.iterdir():
        if other.name != run:
            shutil.rmtree(other)
    return folder / run


def trained(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the weights that train, by name."""
    return {
        name: parameter.detach().cpu().clone().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Give the caller's random numbers back: the trainer seeds all of them."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@_own_randomness()
def train(
    model: Any,
    groups: list[dict[str, list[int]]],
    collate: Any,
    score: Score,
    options: ComposedOptions,
    *,
    folder: Path,
    show_progress: bool = True,
) -> Progress:
    """Train until validation stops gaining; leave the best weights in ``model``.

    Every finished epoch is kept in ``folder`` with the state of optimizer and schedule, from where
    the same call goes on after a kill; the library reads that state with ``weights_only``. A loss
    that is not finite is a TrainingError.
    """
    finish = prepare_model(model, options)
    loss = ComposedLoss(model, options)
    progress = Progress(model, loss, score, options, show_progress=show_progress)
    found = folder.glob("checkpoint-*")
    whole = [path for path in found if (path / _STATE).is_file() and (path / _BEST).is_file()]
    checkpoint = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    if checkpoint is not None:
        progress.restore(checkpoint)
    arguments, rows = _arguments(model, options, folder), Dataset.from_list(groups)
    parts: dict[str, Any] = {"loss": loss, "data_collator": collate, "callbacks": [progress]}
    trainer = _Trainer(model=model, args=arguments, train_dataset=rows, **parts)
    trainer.progress = progress
    trainer.remove_callback(PrinterCallback)
    try:
        if not progress.exhausted:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except KeyboardInterrupt:
        if not progress.history:
            raise
        progress.interrupted = True
        warnings.warn("Training was interrupted; the best epoch so far is kept.", stacklevel=2)
    finally:
        progress.bar.close()
    model.load_state_dict(progress.best, strict=False)
    finish()
    model.eval()
    return progress


class _Trainer(SentenceTransformerTrainer):
    """The library's trainer, but for what a checkpoint holds of the model: weights that train."""

    progress: Progress

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.progress.save(Path(str(output_dir or self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / _WEIGHTS), strict=False)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card: ours says more."""


def _arguments(model: Any, options: ComposedOptions, folder: Path) -> Any:
    device = model.device.type
    precision = precision_on(device, options)
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_share,
        max_grad_norm=options.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        use_cpu=device == "cpu",
        seed=options.seed,
        eval_strategy="no",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
