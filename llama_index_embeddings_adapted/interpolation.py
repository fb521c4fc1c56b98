"""Adapters part of the way from where training started to where it ended."""

from __future__ import annotations

from functools import singledispatch
from typing import NoReturn

import numpy as np

from llama_index_embeddings_adapted.adapters import Adapter
from llama_index_embeddings_adapted.errors import OptionError
from llama_index_embeddings_adapted.maps import LinearAdapter, LowRankAdapter, TwoLayerAdapter
from llama_index_embeddings_adapted.two_sided import TwoSidedAdapter
from llama_index_embeddings_adapted.vectors import Vectors


@singledispatch
def interpolated(end: Adapter, start: Adapter, share: float) -> Adapter:
    """Return the adapter that lies between two, in their weights.

    Training goes far in directions that a few hundred queries seem to ask for. Part of the way
    back, most of the gain on documents it knew is there, and most harm to others is not.

    Args:
        end: A linear map, one of low rank, a residual of two layers, or a map for each side.
        start: Of the same kind; what training started from, or any other linear map. One of low
            rank or of two layers has to be one that changes nothing.
        share: 0 is the start, 1 the end.

    Raises:
        OptionError: Adapters that cannot be mixed.

    Source:
        Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903, eq. 1.
    """
    _other(end, start)


@interpolated.register
def _linear(end: LinearAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, LinearAdapter) or (start.shared, start.normalize) != (
        end.shared,
        end.normalize,
    ):
        _other(end, start)
    bias = None
    if start.bias is not None or end.bias is not None:
        bias = _mix(_bias(start), _bias(end), share)
    weight = _mix(start.weight, end.weight, share)
    return LinearAdapter(weight, bias, normalize=end.normalize, shared=end.shared)


@interpolated.register
def _low_rank(end: LowRankAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, LowRankAdapter) or start.up.any():
        _other(end, start)
    return LowRankAdapter(end.down, share * end.up, _mix(start.bias, end.bias, share))


@interpolated.register
def _two_layer(end: TwoLayerAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, TwoLayerAdapter) or start.output_weight.any():
        _other(end, start)
    if start.config() != end.config() or not end.residual:
        _other(end, start)
    return TwoLayerAdapter(
        end.hidden_weight,
        end.hidden_bias,
        share * end.output_weight,
        _mix(start.output_bias, end.output_bias, share),
        **end.config(),
    )


@interpolated.register
def _two_sided(end: TwoSidedAdapter, start: Adapter, share: float) -> Adapter:
    if not isinstance(start, TwoSidedAdapter):
        _other(end, start)
    return TwoSidedAdapter(
        interpolated(end.query, start.query, share),
        interpolated(end.document, start.document, share),
    )


def _other(end: Adapter, start: Adapter) -> NoReturn:
    raise OptionError(f"Expected two adapters of one kind to mix, got {start!r} and {end!r}.")


def _bias(of: LinearAdapter) -> Vectors:
    return np.zeros(of.output_dim, dtype=np.float32) if of.bias is None else of.bias


def _mix(start: Vectors, end: Vectors, share: float) -> Vectors:
    return np.asarray((1 - share) * start + share * end, dtype=np.float32)
