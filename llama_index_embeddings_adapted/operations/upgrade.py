"""Moving to a new base model without embedding the documents again: new queries, old index.

Maps from one model's vectors to another's, fitted on vectors of the same texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding

from ..adapters.base import Adapter
from ..adapters.composites import StackedAdapter
from ..adapters.maps import LinearAdapter
from ..core.arrays import Floats, Rows, Vectors, l2_normalize, top_k
from ..data.dataset import EmbeddingQAFinetuneDataset
from ..encoding.cache import CacheDir
from ..encoding.encoder import Encoder, encode
from ..errors import DatasetError, OptionError, check_choice, check_texts
from ..evaluation.retrieval import RetrievalScores, search
from ..serving.embedding import AdaptedEmbedding


def procrustes(new: Vectors, old: Vectors) -> LinearAdapter:
    """Return the rotation that takes new vectors to old ones best: ``q' = R q``.

    Both are unit rows, ``(n, new_dim)`` and ``(n, old_dim)``, of the same texts. Where the
    dimensions differ, ``R`` has orthonormal rows or columns. Source: Schönemann 1966.
    """
    rotation = _rotation(new.astype(np.float64), old.astype(np.float64))
    return LinearAdapter(rotation.astype(np.float32), shared=True)


def ridge_map(new: Vectors, old: Vectors, strength: float) -> LinearAdapter:
    """Return the linear map that takes new vectors to old ones, shrunk to the best rotation.

    ``W = argmin Σ ‖W x_i - y_i‖² + λ ‖W - s R‖²``, with ``R`` of :func:`procrustes` scaled to the
    length of the old ones. Shrunk to zero, a map loses the rare directions first, in which passages
    differ. λ is ``strength`` times the mean eigenvalue of ``XᵀX``. Source: Hoerl and Kennard 1970.
    """
    x, y = new.astype(np.float64), old.astype(np.float64)
    rotation = _rotation(x, y)
    rotated = x @ rotation.T
    scale = float(np.sum(y**2) / max(np.sum(rotated**2), 1e-12)) ** 0.5
    gram = x.T @ x
    gram[np.diag_indices(len(gram))] += strength * max(np.trace(gram) / len(gram), 1e-12)
    step = np.linalg.solve(gram, x.T @ (y - scale * rotated)).T
    return LinearAdapter((scale * rotation + step).astype(np.float32), shared=True)


def _rotation(x: Floats, y: Floats) -> Floats:
    left, _, right = np.linalg.svd(y.T @ x, full_matrices=False)
    return np.asarray(left @ right)


#: Every way to fit a map, by name.
FITS: dict[str, Callable[[Vectors, Vectors], LinearAdapter]] = {
    "procrustes": procrustes,
    **{f"ridge {each:g}": partial(ridge_map, strength=each) for each in (1.0, 3.0, 10.0, 30.0)},
}
METHODS = ("auto", "procrustes", "ridge")
FEWEST_TEXTS = 20
_NEIGHBOURS = 10
_LENGTH_OFF = 0.01  # of a mean length from 1


@dataclass(frozen=True, eq=False)
class Upgrade:
    """A way from the vectors of a new model to an index of the old one.

    Args:
        adapter: For the new model: ``AdaptedEmbedding(new_model, upgrade.adapter)`` asks the old
            index. Documents that come later are embedded by the new model and mapped likewise.
        method: What was chosen, such as ``"ridge 0.3"``.
        texts: How many texts it was fitted on.
        agreement: Share of the old model's 10 nearest texts that the new model finds through the
            adapter, in [0, 1], on texts that took no part in the fit, nor in its choice.
        cosine: Mean cosine of mapped to old vectors, on those texts.
        tried: Agreement of every method tried, on the texts that the choice was made on.
        chance: Share of them that the vectors of other texts find.
    """

    adapter: Adapter
    method: str
    texts: int
    agreement: float
    cosine: float
    tried: dict[str, float]
    chance: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.method}, fitted on {self.texts} texts: finds {self.agreement:.0%} of the old "
            f"model's {_NEIGHBOURS} nearest (chance: {self.chance:.1%}), mean cosine "
            f"{self.cosine:.3f}, on texts that took no part in it"
        )


def upgrade_adapter(
    old_model: BaseEmbedding,
    new_model: BaseEmbedding,
    texts: Sequence[str],
    *,
    method: str = "auto",
    holdout: float = 0.2,
    cache_dir: CacheDir = None,
    seed: int = 0,
    show_progress: bool = True,
) -> Upgrade:
    """Fit a map from a new model's vectors to the old model's; needs texts, and no labels.

    Both models embed the same texts; the map takes one's vectors to the other's. A sample of the
    indexed texts does, a few times as many as the new model has dimensions if there are so many.
    Give documents, not queries: fitted on queries, the new model learns to ask as the old one did,
    its mistakes included. Warns where the agreement is no better than chance, among so few texts,
    and where the old model's vectors are not of length 1, as mapped ones are.

    Args:
        old_model: The model whose documents are indexed, or an :class:`AdaptedEmbedding` of it
            that leaves documents alone: its adapter is then applied after the map.
        new_model: The model that is to take over.
        texts: Documents, at least 20 distinct ones.
        method: ``"procrustes"``: a rotation. ``"ridge"``: any linear map, shrunk towards that
            rotation as held-out texts want it. ``"auto"``: what agrees better on held-out texts.
        holdout: Share of the texts held out, in (0, 1): half of them choose the method, half
            score it. The map returned is then fitted on all texts.
        cache_dir, show_progress: See :class:`Encoder`.
        seed: Of the hold-out.

    Raises:
        OptionError: An argument out of range, or an old adapter that moves documents.
        DatasetError: Fewer than 20 distinct texts.

    Source: Schönemann 1966 (orthogonal Procrustes); Hoerl and Kennard 1970 (ridge); for old
    indexes, Vejendla 2025, arXiv:2509.23471.
    """
    check_choice("method", method, METHODS)
    if not 0 < holdout < 1:
        raise OptionError(f"holdout: expected a share in (0, 1), got {holdout!r}.")
    distinct = list(dict.fromkeys(check_texts("texts", texts)))
    if len(distinct) < FEWEST_TEXTS:
        raise DatasetError(
            f"texts: expected at least {FEWEST_TEXTS} distinct ones, got {len(distinct)}. Take a "
            "sample of what the index holds."
        )
    old_base, after = _old(old_model)
    settings: Any = {"cache_dir": cache_dir, "show_progress": show_progress}
    models = (new_model, old_base)
    theirs, ours = (encode(each, distinct, "document", **settings) for each in models)
    _warn_of_length(ours)
    theirs, ours = l2_normalize(theirs), l2_normalize(ours)
    names = [name for name in FITS if method == "auto" or name.startswith(method)]
    best, scores = _judged(names, theirs, ours, holdout, seed)
    found = FITS[best](theirs, ours)
    adapter = found if after is None else StackedAdapter(found, after)
    return Upgrade(adapter, best, len(theirs), **scores)


def _warn_of_length(old: Vectors) -> None:
    length = float(np.linalg.norm(old, axis=1).mean())
    if abs(length - 1.0) > _LENGTH_OFF:
        warnings.warn(
            f"The old model's vectors have a mean length of {length:.3g}, mapped ones of 1. In a "
            "store that ranks by inner product or distance, documents that come later rank "
            "otherwise than old ones: take one of cosines, or embed the documents again.",
            stacklevel=3,
        )


def _judged(
    names: list[str], theirs: Vectors, ours: Vectors, holdout: float, seed: int
) -> tuple[str, dict[str, Any]]:
    """Return the best fit, and how well it does on texts that took no part in that choice."""
    order = np.random.default_rng(seed).permutation(len(ours))
    held = max(2, round(holdout * len(ours)))
    choosing, scoring, fitting = np.split(order, [held // 2, held])
    fits = {name: FITS[name](theirs[fitting], ours[fitting]) for name in names}
    mapped = {name: fit.apply(theirs[choosing]) for name, fit in fits.items()}
    tried = {name: _agreement(found, ours, choosing)[0] for name, found in mapped.items()}
    best = max(tried, key=lambda name: tried[name])
    chosen = fits[best].apply(theirs[scoring])
    agreement, chance = _agreement(chosen, ours, scoring)
    others = len(ours) - 1  # of one text's agreement by chance, the variance (hypergeometric)
    share, picked = _NEIGHBOURS / others, 1 - (_NEIGHBOURS - 1) / (others - 1)
    variance = share * (1 - share) * picked / _NEIGHBOURS
    if agreement <= chance + 2 * (variance / len(scoring)) ** 0.5:
        warnings.warn(
            f"The upgrade finds {agreement:.0%} of the old model's nearest texts, no better "
            f"than chance ({chance:.0%}) among {len(ours)} texts. Give more, a few times the "
            f"{theirs.shape[1]} dimensions of the new model, or embed the documents again.",
            stacklevel=3,
        )
    cosine = float(np.sum(chosen * ours[scoring], axis=1).mean())
    return best, {"agreement": agreement, "cosine": cosine, "tried": tried, "chance": chance}


def _old(model: BaseEmbedding) -> tuple[BaseEmbedding, Adapter | None]:
    """Return the model that embedded the documents, and what its queries pass through."""
    if not isinstance(model, AdaptedEmbedding):
        return model, None
    if model.adapter.adapts_documents:
        raise OptionError(
            "old_model: expected documents as its base model gives them, but its adapter moves "
            "them. Pass its base model, and the index of that."
        )
    return model.base_embed_model, model.adapter if model.transform_query else None


def _agreement(mapped: Vectors, ours: Vectors, own: Rows) -> tuple[float, float]:
    """Return the share of the 10 nearest old texts that are found, and the share by chance."""
    k = min(_NEIGHBOURS, len(ours) - 1)

    def others(queries: Vectors) -> list[Rows]:
        rows, _ = top_k(queries, ours, k + 1)
        return [row[row != itself][:k] for row, itself in zip(rows, own, strict=True)]

    wanted, found = others(ours[own]), others(mapped)
    both = sum(len(np.intersect1d(a, b)) for a, b in zip(wanted, found, strict=True))
    counts = (np.bincount(np.concatenate(rows), minlength=len(ours)) for rows in (wanted, found))
    all_pairs = int(np.multiply(*counts).sum())
    pairs = max(1, len(own) * (len(own) - 1))
    return both / (k * len(own)), (all_pairs - both) / (k * pairs)


@dataclass(frozen=True, eq=False)
class UpgradeScores:
    """What an upgrade keeps of a real re-embedding, on judged queries.

    Args:
        old: The old model over its own index.
        upgraded: The new model's queries, through the adapter, over the old index.
        reembedded: The new model over an index of its own.
    """

    old: RetrievalScores
    upgraded: RetrievalScores
    reembedded: RetrievalScores

    def kept(self, metric: str = "ndcg@10") -> float:
        """Return the metric over the old index, as a share of that after re-embedding."""
        return self.upgraded[metric] / max(self.reembedded[metric], 1e-12)

    def to_dict(
        self, metrics: Sequence[str] = ("ndcg@10", "recall@10", "mrr@10")
    ) -> dict[str, Any]:
        """Return the means, as JSON knows them."""
        means = {name: {m: scores[m] for m in metrics} for name, scores in self._named().items()}
        return {**means, "kept": {metric: self.kept(metric) for metric in metrics}}

    def __str__(self) -> str:
        lines = [f"{name}: NDCG@10 {found['ndcg@10']:.4f}" for name, found in self._named().items()]
        return "\n".join([*lines, f"kept of a re-embedding: {self.kept():.1%}"])

    def _named(self) -> dict[str, RetrievalScores]:
        return {
            "old model, old index": self.old,
            "new model through the adapter, old index": self.upgraded,
            "new model, everything re-embedded": self.reembedded,
        }


def evaluate_upgrade(
    upgrade: Upgrade,
    old_model: BaseEmbedding,
    new_model: BaseEmbedding,
    dataset: EmbeddingQAFinetuneDataset,
    *,
    cache_dir: CacheDir = None,
    show_progress: bool = True,
) -> UpgradeScores:
    """Compare an upgrade with what it replaces and with a real re-embedding, by exact search.

    The models are those given to :func:`upgrade_adapter`; both embed the queries and the corpus of
    ``dataset``, which are judged. For ``cache_dir`` and ``show_progress`` see :class:`Encoder`.
    """
    old_base, after = _old(old_model)
    encoded = []
    for model in (old_base, new_model):
        with Encoder(model, cache_dir=cache_dir, show_progress=show_progress) as encoder:
            encoded.append(encoder.dataset(dataset))
    old, new = encoded
    queries = old.queries if after is None else after.apply(old.queries)
    mapped = upgrade.adapter.apply(new.queries)
    before, upgraded = (search(old, each, old.documents) for each in (queries, mapped))
    return UpgradeScores(before, upgraded, search(new, new.queries, new.documents))
