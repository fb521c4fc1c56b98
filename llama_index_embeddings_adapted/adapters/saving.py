"""Saving an adapter with what it belongs to, and finding out on loading whether it still does.

What training queries looked like is saved along, in a few kilobytes and without their texts.
Folders of ``llama-index-finetuning``, ``LinearLayer`` and ``TwoLayerNN``, are read too.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from numpy.typing import NDArray

from ..core import files as folders
from ..core.arrays import Vectors, as_vectors, l2_normalize
from ..core.files import WEIGHTS, Arrays, read_config
from ..encoding.base_model import PROBE_TEXTS, Fingerprint, fingerprint_of, tolerance
from ..encoding.serialize import base_name, describe_base, unrecorded
from ..errors import BaseModelMismatchError, FolderError, OptionError, ShapeError, quote_some
from . import composites, prior  # noqa: F401  a folder may hold their classes: they are known now
from .base import Adapter, describe, restore
from .maps import LinearAdapter, TwoLayerAdapter

OLD_WEIGHTS = "pytorch_model.bin"
#: The first key of a folder: the old package's loader names the first that it does not know.
OPENED_BY = "open this folder by llama_index_embeddings_adapted.AdaptedEmbedding(base, folder)"

#: A sketch holds at most so many queries, in so many directions, one byte each: 32 KB.
MOST_QUERIES, MOST_DIRECTIONS = 256, 128
_LEVELS = 127
_MOST_NUMBER = 2**31  # dimensions, queries
_FEWEST_SEEN, _SEEN = 3, 0.2  # queries, and their share, that users do not just ask again
_FEW = 64  # sketches smaller than this take several queries of a group
_OLD_CONFIG = {"in_features", "out_features", "hidden_features", "bias", "activation_fn_str",
               "add_residual"}  # fmt: skip
_METRICS = ("hit_rate@1", "hit_rate@5", "mrr@10", "ndcg@10", "recall@10")


@dataclass(frozen=True, eq=False)
class QuerySketch:
    """A sample of training queries as points that live queries can be compared with.

    Vectors of the base model are scaled to length 1 and, beyond 128 dimensions, projected on 128
    fixed random directions, which keeps distances within a few percent (Johnson and Lindenstrauss
    1984; signs as in Achlioptas 2003). Texts and whole vectors are not kept.
    """

    points: NDArray[np.int8]  #: ``(n, directions)``, in units of ``step``.
    step: float  #: Size of one level.
    dim: int  #: Dimension of the base model's vectors.
    queries: int  #: How many queries the sample was drawn from.

    @classmethod
    def of(
        cls, queries: Vectors, groups: Sequence[Hashable] | None = None, *, seed: int = 0
    ) -> QuerySketch:
        """Sample queries, ``(n, dim)``, vectors of the base model, ``n >= 1``.

        Of one of the ``groups``, ``(n,)``, such as the document each asks for, one query is drawn
        as long as that leaves enough: two questions about one passage lie closer together than a
        stranger's question would, and would make strangers look strange.
        """
        count = len(queries)
        order = np.random.default_rng(seed).permutation(count)
        if groups is not None:
            first = list({groups[row]: row for row in order[::-1]}.values())[::-1]
            rest = np.setdiff1d(order, first, assume_unique=True)
            order = np.concatenate([first, rest[: max(0, _FEW - len(first))]]).astype(np.int64)
        points = projected(queries[np.sort(order[:MOST_QUERIES])])
        step = max(float(np.abs(points).max()), 1e-12) / _LEVELS
        return cls(np.round(points / step).astype(np.int8), step, queries.shape[1], count)

    @functools.cached_property
    def reference(self) -> Vectors:
        """The points as numbers, ``(n, directions)``."""
        return self.points.astype(np.float32) * np.float32(self.step)

    def project(self, queries: Vectors) -> Vectors:
        """Return where live queries, ``(n, dim)``, lie among the points, or raise a ShapeError."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            expected = f"{self.dim} dimensions, as the training queries"
            raise ShapeError("Live queries", expected=expected, actual=f"shape {queries.shape}")
        return projected(queries)

    def overlap(self, queries: Vectors) -> str:
        """Say how many test queries, ``(n, dim)``, were trained on, where a fifth or more were."""
        places, kept = self.project(queries), len(self.points)
        same = [np.abs(places - point).max(axis=1) <= self.step for point in self.reference]
        found, count = int(np.any(same, axis=0).sum()), len(queries)
        if found < _FEWEST_SEEN or found * self.queries < _SEEN * count * kept:
            return ""
        trained = f"{kept:,} kept of {self.queries:,}" if kept < self.queries else f"{kept:,}"
        return f"{found:,} of the {count:,} test queries are among the {trained} it was trained on"

    def arrays(self) -> Arrays:
        """Return what is saved, as safetensors know it."""
        numbers = np.array([self.step, self.dim, self.queries], dtype=np.float64)
        return {"points": self.points, "numbers": numbers}

    @classmethod
    def restore(cls, arrays: Arrays, *, where: str) -> QuerySketch:
        """Rebuild what :meth:`arrays` gave; anything else is a FolderError."""
        points = arrays.get("points", np.empty(0))
        numbers = arrays.get("numbers", np.empty(0))
        kinds: tuple[Any, ...] = (points.dtype, points.ndim, numbers.dtype, numbers.shape)
        whole = (
            kinds == (np.int8, 2, np.float64, (3,))
            and bool(((numbers > 0) & (numbers <= _MOST_NUMBER)).all() and len(points))
            and points.shape[1] == min(int(numbers[1]), MOST_DIRECTIONS)
        )
        if not whole:
            raise FolderError(f"{where}: the sketch of training queries is damaged.")
        return cls(points, float(numbers[0]), int(numbers[1]), int(numbers[2]))


def projected(vectors: Vectors) -> Vectors:
    """Return unit rows on at most 128 directions, ``(n, min(dim, 128))``."""
    rows = l2_normalize(vectors)
    dim = rows.shape[1]
    return rows if dim <= MOST_DIRECTIONS else rows @ _directions(dim)


@functools.lru_cache(maxsize=8)
def _directions(dim: int) -> Vectors:
    # From a hash, not from a random generator, whose stream may change between versions of numpy:
    # saved sketches depend on these signs.
    size = dim * MOST_DIRECTIONS
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"sketch").digest(size // 8), np.uint8))
    signs = bits.astype(np.float32).reshape(dim, MOST_DIRECTIONS) * 2 - 1
    return np.asarray(signs / MOST_DIRECTIONS**0.5, dtype=np.float32)


def read_old_folder(folder: Path) -> Adapter:
    """Read an adapter of the old package; nothing but tensors is unpickled."""
    import torch

    config, path = read_config(folder), folder / OLD_WEIGHTS
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # of damaged files torch raises what it likes
        raise FolderError(f"{path}: not a plain file of tensors ({cause}).") from cause
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise FolderError(f"{path}: expected named tensors.")
    return from_state(config, state, where=str(folder))


def from_module(module: Any) -> Adapter:
    """Convert what computes what a ``LinearLayer`` or ``TwoLayerNN`` does; else an OptionError."""
    refused = (
        "adapter_model: expected a LinearAdapter, a TwoLayerAdapter, or a LinearLayer or "
        f"TwoLayerNN of llama-index-embeddings-adapter, got {type(module).__name__} ({{}}). "
        "Networks of your own: subclass Adapter."
    )
    try:
        found = from_state(module.get_config_dict(), module.state_dict(), where="adapter_model")
        import torch

        vectors = np.random.default_rng(0).standard_normal((8, found.input_dim), dtype=np.float32)
        with torch.no_grad():
            theirs = module(torch.from_numpy(vectors)).cpu().numpy()
    except (AttributeError, FolderError, TypeError, RuntimeError) as cause:
        raise OptionError(refused.format(cause)) from cause
    same = np.sum(l2_normalize(theirs) * l2_normalize(found.apply(vectors)), axis=1)
    if theirs.shape != (8, found.output_dim) or same.min() < 1 - 1e-3:
        raise OptionError(refused.format("its forward computes something else"))
    return found


def from_state(config: dict[str, Any], state: dict[str, Any], *, where: str) -> Adapter:
    """Build an adapter from config and tensors of an old one, or raise a :class:`FolderError`."""
    strange = sorted(set(config) - _OLD_CONFIG)
    if strange:  # a class of somebody's own, whose forward nobody knows
        raise FolderError(f"{where}: no LinearLayer and no TwoLayerNN has {quote_some(strange)}.")
    arrays = {name: tensor.detach().cpu().float().numpy() for name, tensor in state.items()}
    try:
        if set(arrays) <= {"linear.weight", "linear.bias"} and arrays:
            return LinearAdapter(arrays["linear.weight"], arrays.get("linear.bias"))
        residual = bool(config.get("add_residual", False))
        # The old class scales its output by a learned weight before it adds the query.
        scale = arrays["residual_weight"] if residual else 1.0
        hidden = arrays["linear1.weight"], arrays["linear1.bias"]
        output = arrays["linear2.weight"] * scale, arrays["linear2.bias"] * scale
        activation = config.get("activation_fn_str", "relu")
        return TwoLayerAdapter(*hidden, *output, activation=activation, residual=residual)
    except (KeyError, ValueError, TypeError) as cause:
        expected = "expected the tensors of a LinearLayer or a TwoLayerNN"
        raise FolderError(f"{where}: {expected}, found {sorted(arrays)} ({cause}).") from cause


def model_card(adapter: Adapter, base: str, training: Mapping[str, Any], folder: str) -> str:
    """Return ``README.md``: what the adapter belongs to, how it scored, how to load it."""
    applied = "queries; documents keep the vectors of the base model, so an existing index keeps "
    applied = "queries and documents." if adapter.adapts_documents else f"{applied}working."
    about = f"# Adapter for {base}\n\n`{adapter!r}`, applied to {applied}"
    return card(about, training, "AdaptedEmbedding", folder)


def card(about: str, training: Mapping[str, Any], kind: str, folder: str) -> str:
    """Return a card: what a folder holds, how it scored, how its class loads it."""
    report = training.get("report")
    use = (
        f"## Use\n\n```python\nfrom llama_index_embeddings_adapted import {kind}\n\n"
        f'embed_model = {kind}.from_pretrained("{folder}", base_embed_model)\n```\n\n'
        "Loading checks that `base_embed_model` is the base model of the training."
    )
    return "\n\n".join([about, *(_scores(report) if report else ()), use]) + "\n"


def _scores(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"## Scores on held-out queries\n\nVerdict: {report['verdict']}."
    if report.get("holds"):
        yield f"This folder holds {report['holds']}."
    metrics = [metric for metric in _METRICS if metric in report["overall"]["base"]]
    head = f"| queries | model | {' | '.join(metrics)} |\n{'|---' * (len(metrics) + 2)}|"
    labels = {"overall": "all", "known": "known documents", "new": "new documents"}
    labels |= {"people": "of people alone"}
    rows = [
        f"| {label} ({report[name]['queries']}) | {model} | "
        f"{' | '.join(f'{report[name][model][metric]:.4f}' for metric in metrics)} |"
        for name, label in labels.items()
        if report.get(name)
        for model in ("base", "adapted")
    ]
    yield "\n".join([head, *rows])
    choice, stopped = report.get("choice"), "The held-out queries also chose when training stopped."
    yield f"Chosen by cross-fitting: {choice['recipe']}." if choice else stopped


@dataclass(frozen=True, eq=False)
class Saved:
    """What a folder holds; None is where it is silent."""

    adapter: Adapter
    base: dict[str, Any] | None = None  #: How to build its base model, see :mod:`serialize`.
    fingerprint: Fingerprint | None = None  #: Of that model.
    transform_query: bool = True  #: Whether the adapter is applied to queries.
    #: Data, scores and settings of the training, as far as known.
    training: dict[str, Any] = field(default_factory=dict)
    sketch: QuerySketch | None = None  #: What its training queries looked like.


def verify(expected: Fingerprint | None, model: BaseEmbedding, *, where: object) -> None:
    """Ask a model for probe vectors; a :class:`BaseModelMismatchError` if it is another one."""
    if expected is None or (actual := fingerprint_of(model)).agrees_with(expected):
        return
    found = f"gives {actual.dim} dimensions, expected {expected.dim}"
    if actual.dim == expected.dim:
        found = (
            f"gives other vectors for the probe texts (least cosine "
            f"{actual.cosine(expected):.4f}, expected at least {1 - tolerance():g}; "
            "LLAMA_INDEX_ADAPTED_TOLERANCE sets what a model that is not bit-stable may be off)"
        )
    raise BaseModelMismatchError(
        f"{where} was trained on {expected.name}; the model at hand, "
        f"{base_name(model)}, {found}. Load the original model, train again, or pass "
        "verify=False if you know better."
    )


def save(folder: Path, new: Saved, base: BaseEmbedding) -> None:
    """Write a folder, atomically, with what is known of the base model; see :func:`load`."""
    fingerprint, adapter = fingerprint_of(base), new.adapter
    config = {
        OPENED_BY: True,
        **provenance(base, fingerprint),
        "adapter": describe(adapter),
        "roles": ["query", "document"] if adapter.adapts_documents else ["query"],
        "transform_query": new.transform_query,
        "training": new.training,
    }
    arrays = {**adapter.arrays(), folders.PROBES: fingerprint.probes}
    queries = None if new.sketch is None else new.sketch.arrays()
    about = model_card(adapter, base_name(base), new.training, folder.name)
    folders.write(folder, config, arrays, queries=queries, card=about)


def provenance(base: BaseEmbedding, fingerprint: Fingerprint) -> dict[str, Any]:
    """Return by what and when a folder is saved, and beside which base model, as JSON knows it."""
    described = describe_base(base)
    lost = unrecorded(base, [*described["settings"], *described["omitted"]])
    if lost:
        warnings.warn(
            f"{fingerprint.name} was built with arguments that LlamaIndex keeps in no field: "
            f"{', '.join(lost)}. The folder cannot build it again: pass base_embed_model=….",
            stacklevel=4,
        )
    known = {"name": fingerprint.name, "dim": fingerprint.dim, "fingerprint": fingerprint.digest}
    return {
        "format_version": folders.FORMAT_VERSION,
        "library": "llama-index-embeddings-adapted",
        "library_version": folders.library_version(),
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base_model": {**described, **known},
    }


def load(folder: Path) -> Saved:
    """Read a folder of ours, or one of ``llama-index-finetuning``, or raise a FolderError."""
    if (folder / OLD_WEIGHTS).is_file() and not (folder / WEIGHTS).exists():
        return Saved(read_old_folder(folder))
    config, arrays = folders.read(folder)
    probes = arrays.pop(folders.PROBES, None)
    base = config.get("base_model")
    if base is not None and not isinstance(base, dict):
        raise FolderError(f"{folder}: base_model is not an object.")
    training, path, where = config.get("training"), folder / folders.QUERIES, str(folder)
    queries = folders.read_arrays(path) if path.is_file() else None
    return Saved(
        restore(config.get("adapter"), arrays, where=where),
        base,
        None if base is None else read_fingerprint(base, probes, where=folder),
        bool(config.get("transform_query", True)),
        training if isinstance(training, dict) else {},
        None if queries is None else QuerySketch.restore(queries, where=where),
    )


def read_fingerprint(base: dict[str, Any], probes: Any, *, where: Path) -> Fingerprint:
    """Return the fingerprint of a base model in a folder, or raise a :class:`FolderError`."""
    what, count = "probe vectors", 2 * len(PROBE_TEXTS)
    try:
        found = as_vectors(probes, what=what, dim=base.get("dim"))
        if len(found) != count:
            raise ShapeError(what, expected=count, actual=len(found))
    except (TypeError, ValueError) as cause:
        what = "the vectors that identify its base model are damaged"
        raise FolderError(f"{where}: {what} ({cause}).") from cause
    return Fingerprint(str(base.get("name", "unknown")), found)
