"""The training loop of the method's authors, rebuilt from its description, to be timed beside ours.

Pairs in batches of 20, each document encoded for each of its questions, frozen vectors of the
black box looked up; after every epoch the small model is written, loaded anew through LlamaIndex,
and asked for all texts of the validation set again, queries one by one.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.composed.small_model import compose
from llama_index_embeddings_adapted.core.arrays import Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import EncodedDataset
from llama_index_embeddings_adapted.evaluation.retrieval import search

SCALE, BATCH, RATE = 20.0, 20, 2e-5


@dataclass(frozen=True)
class Trained:
    """Scores and seconds of every epoch, and the folder of the best one."""

    scores: list[float]
    seconds: list[float]
    best: Path


def train(
    dataset: EmbeddingQAFinetuneDataset,
    dev: EmbeddingQAFinetuneDataset,
    frozen: EncodedDataset,
    frozen_dev: EncodedDataset,
    small: str,
    folder: Path,
    epochs: int,
    *,
    weight: float = 0.5,
    label_smoothing: float = 0.2,
) -> Trained:
    """Train on each query's first relevant document; keep the model of every epoch."""
    recipe = weight, label_smoothing
    model = SentenceTransformer(small, device="cpu")
    boxes = l2_normalize(frozen.queries), l2_normalize(frozen.documents)
    pairs = [
        (row, int(frozen.relevance.relevant_to(row)[0])) for row in range(len(frozen.relevance))
    ]
    texts = list(dataset.queries.values()), list(dataset.corpus.values())
    steps = epochs * -(-len(pairs) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    scores, seconds, places = [], [], []
    draw = random.Random(0)
    for epoch in range(epochs):
        began = time.perf_counter()
        model.train()
        draw.shuffle(pairs)
        for start in range(0, len(pairs), BATCH):
            _step(model, optimizer, pairs[start : start + BATCH], texts, boxes, recipe)
            schedule.step()
        places.append(folder / f"original-{epoch}")
        model.save_pretrained(str(places[-1]), create_model_card=False)
        scores.append(_evaluate(places[-1], dev, frozen_dev, weight))
        seconds.append(time.perf_counter() - began)
    return Trained(scores, seconds, places[int(np.argmax(scores))])


def _rate(step: int, steps: int) -> float:
    warm = 0.1 * steps
    return min((step + 1) / max(warm, 1), max(0.0, (steps - step) / max(steps - warm, 1)))


def _step(
    model: SentenceTransformer,
    optimizer: torch.optim.Optimizer,
    batch: list[tuple[int, int]],
    texts: tuple[list[str], list[str]],
    boxes: tuple[Vectors, Vectors],
    recipe: tuple[float, float],
) -> None:
    weight, smoothing = recipe
    rows = [list(column) for column in zip(*batch, strict=True)]
    queries, documents = (
        torch.cat([torch.from_numpy(box[row]), weight * _embed(model, [text[r] for r in row])], 1)
        for box, row, text in zip(boxes, rows, texts, strict=True)
    )
    cosines = nn.functional.normalize(queries, dim=1) @ nn.functional.normalize(documents, dim=1).T
    loss = nn.functional.cross_entropy(
        SCALE * cosines, torch.arange(len(batch)), label_smoothing=smoothing
    )
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _embed(model: SentenceTransformer, texts: list[str]) -> Tensor:
    return nn.functional.normalize(model(model.preprocess(texts))["sentence_embedding"], dim=1)


def _evaluate(
    folder: Path, dev: EmbeddingQAFinetuneDataset, frozen: EncodedDataset, weight: float
) -> float:
    model = HuggingFaceEmbedding(str(folder), device="cpu")
    queries = np.float32([model.get_query_embedding(text) for text in dev.queries.values()])
    documents = np.float32(model.get_text_embedding_batch(list(dev.corpus.values())))
    found = search(
        frozen,
        compose(frozen.queries, queries, weight),
        compose(frozen.documents, documents, weight),
    )
    return found["hit_rate@5"]
