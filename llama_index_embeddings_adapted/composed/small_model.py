"""The small model, loaded without running code; ``[b ; λ·a]`` and its best λ; held-out queries."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.arrays import Floats, Mask, Role, Rows, Vectors, l2_normalize, top_k
from ..core.encoded import EncodedDataset, Qrels
from ..core.files import read_json, read_json_object, to_bytes
from ..data.dataset import EmbeddingQAFinetuneDataset as Dataset
from ..encoding.encoder import Encoder
from ..errors import EncodeError, FolderError, OptionError, ShapeError, check_number, require_extra
from ..evaluation import held_out, retrieval
from ..evaluation.comparison import Comparison
from ..evaluation.page import Texts
from ..evaluation.retrieval import search
from ..lexical import embedding as lexical
from ..lexical.embedding import LexicalEmbedding
from ..training.options import ComposedOptions

_CONFIGS = ("config.json", "tokenizer_config.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

#: What λ is tuned among; at 4 the small model has 16 times the say of the black box.
WEIGHTS = tuple(step / 10 for step in range(41))
_DEPTH = 10
_ALWAYS = ("hit_rate@5", "mrr@10", "ndcg@10")


class SmallModel:
    """Embeds by a sentence-transformers model, loaded when needed, or a LexicalEmbedding."""

    def __init__(self, model: Any, *, device: str | None = None) -> None:
        self.source = model if isinstance(model, (str, Path)) else None
        self._model = None if self.source is not None else model
        self.device = device
        self._lock = threading.Lock()  # tokenizers and modules are not safe in threads

    @classmethod
    def of(cls, model: Any, *, device: str | None = None) -> SmallModel:
        """Return a small model as it is; make one of a loaded model, a name or a folder."""
        if isinstance(model, SmallModel):
            return model
        if isinstance(model, LexicalEmbedding):
            return cls(model)
        return cls(model if isinstance(model, (str, Path)) else check_pooled(model), device=device)

    @property
    def model(self) -> Any:
        """The ``SentenceTransformer``, or raise an OptionError or FolderError."""
        with self._lock:
            if self._model is None:
                self._model = _loaded(self.source, self.device)
            return self._model

    @property
    def digest(self) -> str:
        """A hash of its weights, which tells a training from that of another small model."""
        digest = hashlib.sha256()
        if isinstance(self.model, LexicalEmbedding):
            config, arrays = self.model.parts()
            digest.update(repr(config).encode() + to_bytes(arrays))
            return digest.hexdigest()[:16]
        for name, value in sorted(self.model.state_dict().items()):
            array = value.detach().cpu().float().numpy()
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def identity(self) -> str | None:
        """A hash of its files, or else of its weights, made once; None of what has only a name."""
        if self.source is None:
            return self.digest
        found = digests(Path(self.source))
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else None

    def encode(self, texts: Sequence[str], role: Role, *, batch_size: int = 32) -> Vectors:
        """Embed texts as their role asks, ``(n, dim)``; of NaN or infinity, an EncodeError."""
        model = self.model
        if isinstance(model, LexicalEmbedding):
            return model.vectors(texts, role)
        encode = model.encode_query if role == "query" else model.encode_document
        with self._lock:
            found = encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        vectors: Vectors = np.asarray(found, dtype=np.float32).reshape(len(texts), -1)
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            text, what = texts[int(bad.argmax())], "a vector with NaN or infinity"
            raise EncodeError(f"The small model gave {what}.", text=text)
        return vectors


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of each file below a folder, by its path there."""
    found = {}
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def _loaded(source: Any, device: str | None) -> Any:
    """Load a model by name or folder, without executing anything that a folder holds."""
    path = Path(source)
    if (path / lexical.CONFIG).is_file():
        return LexicalEmbedding.from_pretrained(source)
    library = require_extra("sentence_transformers", extra="composed")
    if path.is_dir():
        refuse_code(path)
    given = {"device": device, "trust_remote_code": False, "local_files_only": path.is_dir()}
    try:
        with no_bars():
            model = library.SentenceTransformer(str(source), **given)
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
    """Return a model that gives one vector per text; another one is an :class:`OptionError`."""
    cause: Exception | None = None
    try:
        found = np.asarray(model.encode(["one text"], show_progress_bar=False), dtype=np.float32)
        if found.ndim == 2 and len(found) == 1:
            return model
        what = f"shape {found.shape}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        cause, what = error, f"none ({type(error).__name__}: {error})"
    raise OptionError(
        "augment_model: expected a sentence-transformers model that gives one vector per text, got "
        f"{type(model).__name__} that gives {what}. Has it a pooling layer?"
    ) from cause


def refuse_code(folder: Path) -> None:
    """Refuse, by a FolderError, a folder that names code, paths outside itself, or pickles."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not _inside(path, folder):
            raise FolderError(f"{path}: points outside its folder, or nowhere.")
        if path.name == "modules.json":
            _check_modules(path)
        elif path.name in _CONFIGS and "auto_map" in read_json_object(path, error=FolderError):
            raise FolderError(f"{path}: asks for code of its own (auto_map), which is not loaded.")
        safe = path.name == "training_args.bin" or (path.parent / "model.safetensors").is_file()
        if path.suffix in _PICKLES and not safe:
            advice = "Save the model as safetensors."
            raise FolderError(f"{path}: weights that may run code when loaded. {advice}")


def _inside(link: Path, folder: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def _check_modules(path: Path) -> None:
    modules = read_json(path, error=FolderError)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise FolderError(f"{path}: expected a list of modules.")
    for module in modules:
        kind, place = str(module.get("type")), Path(str(module.get("path", "")))
        if not kind.startswith("sentence_transformers."):
            raise FolderError(f"{path}: asks for the code of {kind}, which is not loaded.")
        if place.is_absolute() or ".." in place.parts:
            raise FolderError(f"{path}: points outside its folder ({place}).")


def precision_on(device: str, options: ComposedOptions) -> str:
    """Return in which numbers a kind of device trains, or raise an :class:`OptionError`."""
    wanted = options.precision
    if wanted == "float16" and device == "cpu":
        raise OptionError('precision: "float16" does not train on a CPU; use "bfloat16".')
    if wanted != "auto" or device != "cuda":
        return "float32" if wanted == "auto" else wanted
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def prepare_model(model: Any, options: ComposedOptions) -> Callable[[], None]:
    """Set a small model up for training; return what ends it, which merges LoRA's additions."""
    if options.gradient_checkpointing:
        # Asked of the body itself: the trainer's setting warns. Renamed in transformers 5.
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            enable = getattr(model[0].model, f"{name}_enable", None)
            if enable is not None:
                enable(**{f"{name}_kwargs": {"use_reentrant": False}})
                break
    if not options.lora_rank:
        return lambda: None
    peft = require_extra("peft", extra="lora")
    rank = options.lora_rank
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model[0].model = peft.get_peft_model(model[0].model, config)

    def merge() -> None:
        model[0].model = model[0].model.merge_and_unload()
        model.requires_grad_(True)

    return merge


def compose(black_box: Vectors, small: Vectors, weight: float) -> Vectors:
    """Join the vectors of two models, ``normalise([b ; λ·a])``.

    ``(n, dim_b)`` and ``(n, dim_a)``, or one of each, of any length, become ``(n, dim_b + dim_a)``,
    unit rows. Both parts are unit rows first, so that λ means the same for every pair of models:
    the cosine becomes ``(cos_b + λ²·cos_a) / (1 + λ²)``. At λ = 0 the small model has no
    dimensions, below it is an OptionError; other numbers of rows are a ShapeError. Source: Zhang et
    al. 2024, arXiv:2402.12177, eq. 2, with λ = 1/2.
    """
    check_number("weight", weight, least=0.0)
    if weight == 0:
        return l2_normalize(black_box)
    if black_box.shape[:-1] != small.shape[:-1]:
        raise ShapeError("Vectors to compose", expected=black_box.shape[:-1], actual=small.shape)
    parts = [l2_normalize(black_box), np.float32(weight) * l2_normalize(small)]
    return l2_normalize(np.concatenate(parts, axis=-1))


def tune_weight(
    queries: tuple[Vectors, Vectors],
    documents: tuple[Vectors, Vectors],
    relevance: Qrels,
    trained: float,
    *,
    hidden: Qrels | None = None,
) -> float:
    """Find the λ of :data:`WEIGHTS` with the highest mean NDCG@10, the smallest of equals.

    The λ of the training stays unless another is better by more than the standard error of the
    difference, and is never kept where it is worse than λ = 0. Vectors are those of black box and
    small model, ``(n, dim_b)`` and ``(n, dim_a)``, of any length, and likewise of ``m`` documents;
    ``hidden`` are documents that do not compete, by query.
    """
    frozen, small = map(l2_normalize, queries)
    joined = np.concatenate([l2_normalize(part) for part in documents], axis=1)

    def ndcg(weight: float) -> Floats:
        parts = [frozen, weight**2 * small]  # documents carry no λ: queries carry that of both
        asked = np.asarray(np.concatenate(parts, axis=1) / (1 + weight**2), dtype=np.float32)
        return relevance.ndcg(asked, joined, _DEPTH, hidden)

    scores = {weight: ndcg(weight) for weight in (*WEIGHTS, trained)}
    best = max(WEIGHTS, key=lambda weight: scores[weight].mean())
    gain = scores[best] - scores[trained]
    noise = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else np.inf
    if gain.mean() <= noise and scores[trained].mean() > scores[0.0].mean():
        return trained
    return best


class ComposedValidation:
    """Scores a small model on held-out queries, alone or ``composed`` with the black box.

    ``data`` is as the base model embeds it: the black box, or else the small model before training.
    ``known``, ``(n,)``: whether training has queries for one of a query's documents.
    """

    def __init__(
        self,
        data: EncodedDataset,
        texts: Texts,
        known: Mask,
        options: ComposedOptions,
        *,
        composed: bool,
    ) -> None:
        self.data, self._texts, self._known, self._composed = data, texts, known, composed
        self._options, self._pool = options, np.arange(len(data.documents))
        self._queries, self._documents = l2_normalize(data.queries), l2_normalize(data.documents)
        if options.val_depth is not None:
            ranked, _ = top_k(self._queries, self._documents, options.val_depth)
            self._pool = np.union1d(ranked, data.scored.documents)

    def scores(self, small: SmallModel | None) -> dict[str, float]:
        """Return a history's scores, by a pool: at the training's λ, or of the base model alone."""
        weight, pool = self._options.weight, self._pool
        queries, documents = self._queries, self._documents[pool]
        if small is not None:
            joined = self._joined((queries, documents), self._embedded(small, pool), weight)
            queries, documents = map(l2_normalize, joined)
        relevance = self.data.scored
        within = replace(relevance, documents=np.searchsorted(pool, relevance.documents))
        names = dict.fromkeys((self._options.metric, *_ALWAYS))
        hidden, depth = self.data.hidden, max(retrieval.parse(name)[1] for name in names)
        ranked, _ = top_k(queries, documents, depth + (hidden is not None))
        ranked = ranked if hidden is None else hidden.among(pool).last(ranked)[:, :depth]
        size = len(pool)
        found = {name: retrieval.compute(name, ranked, within, corpus_size=size) for name in names}
        return {name: float(values.mean()) for name, values in found.items()}

    def judge(self, small: SmallModel) -> tuple[float, held_out.Parts, Comparison]:
        """Tune λ, where there is a black box, and compare with the base model, part by part."""
        own, weight = (self._queries, self._documents), self._options.weight
        theirs = self._embedded(small, np.arange(len(self._documents)))
        if self._composed:
            queries, documents = zip(own, theirs, strict=True)
            relevance, hidden = self.data.scored, self.data.hidden
            weight = tune_weight(queries, documents, relevance, weight, hidden=hidden)
        base = search(self.data, *own)
        adapted = search(self.data, *self._joined(own, theirs, weight))
        parts = held_out.compare_by_part(base, adapted, self._known)
        return weight, parts, Comparison({"base": base, "adapted": adapted}, self._texts)

    def _joined(
        self, own: tuple[Vectors, Vectors], small: tuple[Vectors, Vectors], weight: float
    ) -> Iterator[Vectors]:
        for ours, theirs in zip(own, small, strict=True):
            yield compose(ours, theirs, weight) if self._composed else theirs

    def _embedded(self, small: SmallModel, pool: Rows) -> tuple[Vectors, Vectors]:
        documents = [self._texts.documents[row] for row in pool]
        return (small.encode(self._texts.queries, "query"), small.encode(documents, "document"))


def held_out_split(
    encoder: Encoder, dataset: Dataset, given: Dataset | None, *, seed: int
) -> tuple[EncodedDataset, EncodedDataset]:
    """Encode what to train on, and what decides, ``given`` or held out; or a DatasetError."""
    data = encoder.dataset(dataset)
    held_out.check_queries_differ(data)
    if given is not None:
        judged = encoder.dataset(given)
        train = held_out.drop_leaked_queries(data, judged)
    else:
        share = held_out.HELD_OUT
        rows, held = held_out.hold_out(data, queries=share, documents=share, seed=seed)
        train, judged = data.take(rows), data.take(held)
    held_out.check_split(data, len(train.relevance), len(judged.relevance))
    return train, judged
