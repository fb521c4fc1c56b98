"""What is learned works along the main directions of the data; the rest of wide vectors stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...adapters.base import Adapter, CompositeAdapter
from ...adapters.maps import LinearAdapter, LowRankAdapter, NudgeAdapter
from ...core.arrays import Vectors, l2_normalize, normalized_blocks
from ...core.encoded import EncodedDataset
from ...errors import OptionError
from .pipelines import IDENTITY, PipelineFitter, PipelineSpec

MOST_DIMENSIONS = 1_024
_ROWS = 6_000  # of queries and of documents that the span is found from
_MORE = 64  # directions that are tried beyond those kept


def span(data: EncodedDataset, most: int = MOST_DIMENSIONS, *, seed: int = 0) -> Vectors:
    """Return the main directions of queries and documents, ``(dim, k)``, orthonormal.

    All of them, ``k = dim``, up to ``most``: a map is better trained along them too, as Adam gives
    every coordinate a rate of its own.

    Args:
        data: Of which 6,000 queries and as many documents are looked at.
        most: How many directions.
        seed: Of the sample.

    Source:
        Halko et al. 2011, Finding structure with randomness, algorithms 4.3 and 5.1, where vectors
        are wider than ``most``.
    """
    random, dim = np.random.default_rng(seed), data.queries.shape[1]
    rows = [
        l2_normalize(vectors[np.sort(random.permutation(len(vectors))[:_ROWS])])
        for vectors in (data.queries, data.documents)
    ]
    # Both sides weigh the same, however many there are.
    seen = np.concatenate([part / np.float32(len(part) ** 0.5) for part in rows])
    found = np.eye(dim, dtype=np.float32)
    if dim > most:
        drawn = random.standard_normal((dim, min(dim, most + _MORE))).astype(np.float32)
        found, _ = np.linalg.qr(seen.T @ (seen @ drawn))
    along = (seen @ found).astype(np.float64)
    _, vectors = np.linalg.eigh(along.T @ along)
    return np.ascontiguousarray(found @ vectors[:, ::-1][:, :most], dtype=np.float32)


def narrowed(data: EncodedDataset, directions: Vectors) -> EncodedDataset:
    """Return a dataset as its coordinates along some directions."""
    documents = [block @ directions for block in normalized_blocks(data.documents)]
    queries = l2_normalize(data.queries) @ directions
    return replace(data, queries=queries, documents=np.concatenate(documents))


def fitted(spec: PipelineSpec, fitter: PipelineFitter, directions: Vectors) -> Adapter:
    """Return the adapter of a spec that was fitted along some directions, for whole vectors."""
    if spec == IDENTITY:
        return LinearAdapter.identity(len(directions))
    return widened(spec.fit(fitter), directions)


def widened(adapter: Adapter, directions: Vectors) -> Adapter:
    """Return the adapter that does along some directions what the given one does to coordinates.

    What lies aside of them stays as it is. A linear map becomes one of low rank
    where that is smaller; keys, offsets and
    what a gate remembers become vectors again.

    Args:
        adapter: Over coordinates.
        directions: ``(dim, k)``, orthonormal.

    Raises:
        OptionError: An adapter of a class that is not known here.
    """
    if isinstance(adapter, LinearAdapter):
        dim, kept = directions.shape
        change = adapter.weight - np.eye(kept, dtype=np.float32)
        bias = None if adapter.bias is None else directions @ adapter.bias
        if 2 * kept < dim:
            none = np.zeros(dim, dtype=np.float32)
            up = directions @ change
            return LowRankAdapter(directions.T, up, none if bias is None else bias)
        whole = np.asarray(directions @ change @ directions.T, dtype=np.float32)
        whole[np.diag_indices(dim)] += 1.0
        return LinearAdapter(whole, bias)
    if isinstance(adapter, NudgeAdapter):
        return NudgeAdapter(adapter.keys, adapter.offsets @ directions.T)
    if not isinstance(adapter, CompositeAdapter):
        raise OptionError(f"{type(adapter).__name__} cannot be widened.")
    arrays = {
        name: array @ directions.T if array.ndim == 2 and array.size else array
        for name, array in adapter.own_arrays().items()
    }
    parts = {name: widened(part, directions) for name, part in adapter.parts().items()}
    return adapter.assemble(parts, {**arrays, **adapter.own_config()})
