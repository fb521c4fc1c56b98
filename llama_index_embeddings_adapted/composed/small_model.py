"""The small model beside a black box; loading it runs no code of its folder.

Two vectors of one text made one, ``[b ; λ·a]``, and the best λ for cosines at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama_index_embeddings_adapted.core.arrays import Role, Vectors, l2_normalize
from llama_index_embeddings_adapted.core.encoded import Qrels
from llama_index_embeddings_adapted.core.files import read_json, read_json_object
from llama_index_embeddings_adapted.errors import (
    EncodeError,
    FolderError,
    OptionError,
    ShapeError,
    require_extra,
)
from llama_index_embeddings_adapted.evaluation.metrics import ideal_gain

_MODULES = "modules.json"
_CONFIGS = ("config.json", "tokenizer_config.json")
_OURS = "sentence_transformers."
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class SmallModel:
    """Embeds texts with a sentence-transformers model, loaded when first needed.

    Args:
        model: A loaded model, or the name or folder of one.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best there is.
    """

    def __init__(self, model: Any, *, device: str | None = None) -> None:
        self.source = model if isinstance(model, (str, Path)) else None
        self._model = None if self.source is not None else model
        self.device = device
        self._lock = threading.Lock()  # tokenizers and modules are not safe in threads

    @classmethod
    def of(cls, model: Any, *, device: str | None = None) -> SmallModel:
        """Return a small model as it is; make one of a loaded model, a name or a folder.

        Raises:
            OptionError: A loaded model that gives no vector per text.
        """
        if isinstance(model, SmallModel):
            return model
        return cls(model if isinstance(model, (str, Path)) else check_pooled(model), device=device)

    @property
    def model(self) -> Any:
        """The ``SentenceTransformer``.

        Raises:
            OptionError: It gives no vector per text.
            FolderError: Its folder asks for code or pickles to be loaded.
        """
        with self._lock:
            if self._model is None:
                self._model = load_sentence_transformer(self.source, device=self.device)
            return self._model

    @property
    def dim(self) -> int:
        """The dimension of its vectors."""
        return int(self.model.get_embedding_dimension())

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int = 32) -> Vectors:
        """Embed texts with the prompt of their role, ``(len(texts), dim)``, of any length.

        Raises:
            EncodeError: A vector with NaN or infinity.
        """
        model = self.model
        encode = model.encode_query if role == "query" else model.encode_document
        with self._lock:
            found = encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        vectors: Vectors = np.asarray(found, dtype=np.float32).reshape(len(texts), -1)
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            raise EncodeError(
                "The small model gave a vector with NaN or infinity.",
                text=texts[int(bad.argmax())],
            )
        return vectors


def load_sentence_transformer(source: Any, *, device: str | None = None) -> Any:
    """Load a model by name or folder, without executing anything that a folder holds.

    Raises:
        OptionError: It cannot be loaded, or gives no vector per text.
        FolderError: Its folder asks for code or pickles to be loaded.
    """
    library = require_extra("sentence_transformers", extra="composed")
    path = Path(source)
    local = path.is_dir()
    if local:
        refuse_code(path)
    try:
        with no_bars():
            model = library.SentenceTransformer(
                str(source), device=device, trust_remote_code=False, local_files_only=local
            )
    except Exception as cause:  # the library and the hub raise what they like
        raise OptionError(
            f"augment_model: no sentence-transformers model could be loaded from {source!s} "
            f"({type(cause).__name__}: {cause})."
        ) from cause
    return check_pooled(model)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for the files of a small model, which take no time."""
    logging = require_extra("transformers", extra="composed").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_pooled(model: Any) -> Any:
    """Return a model that gives one vector per text.

    Raises:
        OptionError: It has no pooling layer, or is no sentence-transformers model.
    """
    try:
        found = np.asarray(model.encode(["one text"], show_progress_bar=False), dtype=np.float32)
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise OptionError(
            "augment_model: expected a sentence-transformers model that gives one vector per text, "
            f"got {type(model).__name__} that gives none ({type(cause).__name__}: {cause}). Has it "
            "a pooling layer?"
        ) from cause
    if found.ndim != 2 or found.shape[0] != 1:
        raise OptionError(
            f"augment_model: expected one vector per text, got shape {found.shape}. Has it a "
            "pooling layer?"
        )
    return model


def refuse_code(folder: Path) -> None:
    """Refuse a model folder that names code of its own, paths outside itself, or pickles.

    Raises:
        FolderError: The first such thing found.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not _inside(path, folder):
            raise FolderError(f"{path}: points outside its folder, or nowhere.")
        if path.suffix == ".json":
            _refuse_code_in(path)
        if path.suffix in _PICKLES and not _safe_weights_beside(path):
            raise FolderError(
                f"{path}: weights that may run code when loaded. Save the model as safetensors."
            )


def _inside(link: Path, folder: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def _refuse_code_in(path: Path) -> None:
    if path.name == _MODULES:
        for module in _modules(path):
            kind, place = str(module.get("type")), Path(str(module.get("path", "")))
            if not kind.startswith(_OURS):
                raise FolderError(f"{path}: asks for the code of {kind}, which is not loaded.")
            if place.is_absolute() or ".." in place.parts:
                raise FolderError(f"{path}: points outside its folder ({place}).")
    elif path.name in _CONFIGS and "auto_map" in read_json_object(path, error=FolderError):
        raise FolderError(f"{path}: asks for code of its own (auto_map), which is not loaded.")


def _modules(path: Path) -> list[dict[str, Any]]:
    found = read_json(path, error=FolderError)
    if not isinstance(found, list) or not all(isinstance(module, dict) for module in found):
        raise FolderError(f"{path}: expected a list of modules.")
    return found


def _safe_weights_beside(path: Path) -> bool:
    return path.name == "training_args.bin" or (path.parent / "model.safetensors").is_file()


#: λ beyond which nothing is searched: the small model then has 16 times the say of the black box.
WEIGHT_MAX = 4.0
_DEPTH = 10


def compose(black_box: Vectors, small: Vectors, weight: float) -> Vectors:
    """Join the vectors of two models, ``normalise([b ; λ·a])``.

    Both parts are unit rows first, so that λ means the same for every pair of models. The cosine
    of two composed vectors is ``(cos_b + λ²·cos_a) / (1 + λ²)``.

    Args:
        black_box: ``(n, dim_b)`` or ``(dim_b,)``, any length.
        small: ``(n, dim_a)`` or ``(dim_a,)``, any length.
        weight: λ, ``>= 0``. At 0 the small model has no say and no dimensions.

    Returns:
        ``(n, dim_b + dim_a)``, unit rows; ``(n, dim_b)`` where λ is 0.

    Raises:
        OptionError: ``weight`` is negative or not finite.
        ShapeError: Different numbers of rows.

    Source:
        Zhang et al. 2024, arXiv:2402.12177, eq. 2, with λ = 1/2.
    """
    check_weight(weight)
    if weight == 0:
        return l2_normalize(black_box)
    if black_box.shape[:-1] != small.shape[:-1]:
        raise ShapeError("Vectors to compose", expected=black_box.shape[:-1], actual=small.shape)
    parts = [l2_normalize(black_box), np.float32(weight) * l2_normalize(small)]
    return l2_normalize(np.concatenate(parts, axis=-1))


def check_weight(weight: object) -> None:
    """Refuse a λ that is no number ``>= 0``.

    Raises:
        OptionError: It is not.
    """
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < np.inf:
        raise OptionError(f"weight: expected a number >= 0, got {weight!r}.")


@dataclass(frozen=True, eq=False)
class Cosines:
    """Cosines of the same queries and documents under two models.

    Args:
        black_box: ``(n, m)``.
        small: ``(n, m)``.
        relevance: Of the ``n`` queries over the ``m`` documents.
    """

    black_box: Vectors
    small: Vectors
    relevance: Qrels

    def ndcg(self, weight: float) -> NDArray[np.float64]:
        """Return NDCG@10 of each query at λ, ``(n,)``; ties count against the relevant document."""
        scores = self.black_box.astype(np.float64) + weight**2 * self.small.astype(np.float64)
        found = np.empty(len(self.relevance.documents), dtype=np.int64)
        for entry, (query, document) in enumerate(
            zip(self.relevance.queries, self.relevance.documents, strict=True)
        ):
            found[entry] = np.count_nonzero(scores[query] >= scores[query, document]) - 1
        return self.relevance.discounted_gain(found, _DEPTH) / ideal_gain(self.relevance, _DEPTH)


def best_weight(cosines: Cosines, trained: float) -> float:
    """Find the λ in [0, 4] with the highest mean NDCG@10, exactly.

    A score is ``cos_b + λ²·cos_a`` but for a factor that all documents share: linear in λ². The
    rank of a relevant document therefore changes only where its line crosses that of another
    document. All crossings sorted, the mean NDCG is known for every λ at once.

    The λ of the training stays unless another is better by more than the standard error of the
    difference, and is never kept where it is worse than λ = 0.

    Args:
        cosines: Of held-out queries.
        trained: The λ trained with.
    """
    best = sweep(cosines)
    at_best, at_trained, at_zero = (cosines.ndcg(weight) for weight in (best, trained, 0.0))
    gain = at_best - at_trained
    noise = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else np.inf
    if gain.mean() <= noise and at_trained.mean() > at_zero.mean():
        return trained
    return best if at_best.mean() > at_zero.mean() else 0.0


def sweep(cosines: Cosines) -> float:
    """Return the λ with the highest mean NDCG@10 in [0, 4], exactly.

    It is the middle of the best interval between two crossings, the first of equals; 0 where that
    is the interval that begins at 0.
    """
    relevance = cosines.relevance
    share = relevance.grades / ideal_gain(relevance, _DEPTH)[relevance.queries] / len(relevance)
    places: list[NDArray[np.float64]] = []
    changes: list[NDArray[np.float64]] = []
    for entry, (query, document) in enumerate(
        zip(relevance.queries, relevance.documents, strict=True)
    ):
        where, change = _changes(cosines.black_box[query], cosines.small[query], int(document))
        places.append(where)
        changes.append(change * share[entry])
    where = np.concatenate(places)
    order = np.argsort(where, kind="stable")
    where = where[order]
    height = np.concatenate([[0.0], np.cumsum(np.concatenate(changes)[order])])
    edges = np.concatenate([[0.0], where, [WEIGHT_MAX**2]])
    wide = edges[1:] > edges[:-1]
    best = int(np.argmax(np.where(wide, np.round(height, 12), -np.inf)))
    return float(np.sqrt((edges[best] + edges[best + 1]) / 2)) if best else 0.0


def _changes(
    black_box: Vectors, small: Vectors, document: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the λ² at which a document's discount changes, ascending, and by how much."""
    lead = black_box[document].astype(np.float64) - np.delete(black_box, document)
    slope = small[document].astype(np.float64) - np.delete(small, document)
    behind = np.count_nonzero((lead < 0) | ((lead == 0) & (slope <= 0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -lead / slope
    crosses = (crossing > 0) & (crossing < WEIGHT_MAX**2)
    crossing, gains = crossing[crosses], np.where(slope[crosses] > 0, -1, 1)
    order = np.argsort(crossing, kind="stable")
    rank = behind + np.concatenate([[0], np.cumsum(gains[order])])
    discount = np.where(rank < _DEPTH, 1.0 / np.log2(rank + 2.0), 0.0)
    change = np.diff(discount)
    return crossing[order][change != 0], change[change != 0]
