"""How many questions are enough: asked for until more would hardly gain more."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode
from tqdm import tqdm

from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.base_model import check_base
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder
from ..errors import OptionError, check_whole
from ..questions.generate import generate_qa_embedding_pairs
from .auto.tune import tune
from .options import TrainingOptions


def generate_until_enough(
    nodes: Iterable[BaseNode],
    llm: Any,
    base: BaseEmbedding | str,
    *,
    first: int = 100,
    max_chunks: int = 800,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
    **writing: Any,
) -> EmbeddingQAFinetuneDataset:
    """Have questions written about more and more passages, until more would hardly gain more.

    Passages double. After each step, what the questions gain so far is cross-fitted as
    ``method="auto"`` does it. Where all of them do not gain more than half of them, by more than a
    standard error and a tenth of the gain, that is enough; where nothing gains yet, it goes on. No
    answer is paid for twice.

    Args:
        nodes: What to ask about.
        llm: Writes.
        base: The model to be adapted.
        first: Passages asked about to begin with.
        max_chunks: Passages asked about at most.
        cache_dir: Where answers and vectors are kept; with ``False`` every step asks anew.
        show_progress: Show bars, and what each step gains.
        writing: Passed to :func:`generate_qa_embedding_pairs`.

    Raises:
        OptionError: An argument out of range, or ``first`` above ``max_chunks``.
        GenerationError: See :func:`generate_qa_embedding_pairs`.
    """
    check_whole("first", first)
    check_whole("max_chunks", max_chunks)
    if first > max_chunks:
        raise OptionError(f"first: expected at most max_chunks, {max_chunks}, got {first}.")
    nodes, base = list(nodes), check_base(base, "base")
    quiet: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    asked = first
    while True:
        written = generate_qa_embedding_pairs(
            nodes, llm, max_chunks=asked, embed_model=base, **quiet, **writing
        )
        with Encoder(base, **quiet) as encoder:
            data = encoder.dataset(written)
        found = tune(data, TrainingOptions(), curve=True, show_progress=False).choice
        if show_progress:
            tqdm.write(f"{asked} passages: {found.curve or found.verdict}", file=sys.stderr)
        if asked >= min(max_chunks, len(nodes)) or (found.curve and not found.curve.grows):
            return written
        asked = min(2 * asked, max_chunks)
