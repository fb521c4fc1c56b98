"""Many adapters over one index, such as one per tenant or language, loaded when asked for."""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from ..adapters import saving
from ..adapters.maps import LinearAdapter
from ..core.arrays import Keys, Role, Vectors
from ..core.files import CONFIG, atomic_folder
from ..encoding.base_model import Embedding, check_base
from ..errors import OptionError, check_number, quote_some
from .embedding import AdaptedEmbedding
from .wrapped import Steps, WrappedEmbedding

DEFAULT_BYTES = 200_000_000
_PREVIOUS = ".previous"  # below the root: the version before, by name


class AdapterPool:
    """Adapters of one base model, by name, each a folder below ``root``.

    A folder is read when its adapter is first asked for; of those in memory the longest unused go
    first once their weights exceed ``max_bytes``. Only adapters that leave documents alone belong
    here: all of them share one index. Safe in threads and coroutines.

    Args:
        root: Its folders are named as the adapters are.
        base_embed_model: The model they were all trained on; each is checked when loaded.
        default: Adapter for calls outside :meth:`using`; None serves the base model as it is.
        max_bytes: Most weights to keep in memory, ``> 0``.
        verify: Refuse adapters that were trained on another base model.
    """

    def __init__(
        self,
        root: str | Path,
        base_embed_model: BaseEmbedding | str,
        *,
        default: str | None = None,
        max_bytes: int = DEFAULT_BYTES,
        verify: bool = True,
    ) -> None:
        check_number("max_bytes", max_bytes, above=0)
        self._root, self._base = Path(root), check_base(base_embed_model, "base_embed_model")
        self._max_bytes, self._verify = max_bytes, verify
        nothing = LinearAdapter.identity(1)  # never applied: the base model is served as it is
        self._plain = AdaptedEmbedding(self._base, nothing, transform_query=False)
        self._models: OrderedDict[str, AdaptedEmbedding] = OrderedDict()
        self._bytes = self._forgotten = 0
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._chosen: ContextVar[str | None] = ContextVar("adapter", default=default)
        if default is not None:
            self._folder(default)

    @property
    def base_embed_model(self) -> BaseEmbedding:
        """The model that is adapted."""
        return self._base

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        return self._bytes

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in memory, the longest unused first."""
        with self._lock:
            return tuple(self._models)

    def names(self) -> list[str]:
        """Return the names of all adapters there are, in memory or not.

        What ``finetune()`` leaves as ``….candidate``, its verdict against it, is none of them.
        """
        found = (path.parent.name for path in self._root.glob(f"*/{CONFIG}"))
        return sorted(filter(_is_name, found))

    def __getitem__(self, name: str) -> AdaptedEmbedding:
        """Return the base model with the adapter of this name.

        Raises:
            OptionError: There is none of this name, or it moves documents.
            FolderError: Its folder is damaged.
            BaseModelMismatchError: It was trained on another base model.
        """
        with self._lock:
            if name in self._models:
                self._models.move_to_end(name)
                return self._models[name]
            seen = self._forgotten
        model = self._read(self._folder(name))  # without the lock: a slow disk holds nobody else up
        with self._lock:
            if name not in self._models and seen == self._forgotten:  # else it may be outdated
                self._models[name] = model
                self._bytes += _nbytes(model)
                while self._bytes > self._max_bytes and len(self._models) > 1:
                    self._bytes -= _nbytes(self._models.popitem(last=False)[1])
            return self._models.get(name, model)

    def forget(self, name: str) -> None:
        """Drop an adapter from memory, so that the next call reads its folder anew."""
        with self._lock:
            model = self._models.pop(name, None)
            self._bytes -= 0 if model is None else _nbytes(model)
            self._forgotten += 1

    def replace(self, name: str, folder: str | Path) -> None:
        """Put a version of an adapter in place, on disk and from the next call on; or a new one.

        Calls under way end with the version they began with. The version before is kept, for
        :meth:`roll_back`. Other processes serve it once they :meth:`forget` theirs. ``folder``, a
        saved adapter, is copied; after an error nothing has changed.

        Raises:
            OptionError: The name is no name of a folder, or the adapter moves documents.
            FolderError: ``folder`` is damaged.
            BaseModelMismatchError: It was trained on another base model.
            DiskError: It could not be written.
        """
        if not _is_name(name):
            raise OptionError(f"name: expected a plain name of a folder, got {name!r}.")
        self._read(Path(folder))
        target = self._root / name
        with self._writing, atomic_folder(target) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
            if target.is_dir():
                with atomic_folder(self._root / _PREVIOUS / name) as before:
                    shutil.copytree(target, before, dirs_exist_ok=True)
        self.forget(name)

    def roll_back(self, name: str) -> None:
        """Undo the last :meth:`replace` of an adapter, or raise an OptionError; twice is a redo."""
        before = self._root / _PREVIOUS / self._folder(name).name
        if not before.is_dir():
            raise OptionError(f"There is no earlier version of adapter {name!r} to roll back to.")
        self.replace(name, before)

    @contextmanager
    def using(self, name: str | None) -> Iterator[AdaptedEmbedding]:
        """Serve this adapter, or None, in the block, to :meth:`embed_model` and whatever holds it.

        The choice is that of the current thread or coroutine, and of tasks started in the block.
        """
        model = self._model(name)  # refuse a wrong name before the block runs
        token = self._chosen.set(name)
        try:
            yield model
        finally:
            self._chosen.reset(token)

    def embed_model(self) -> PooledEmbedding:
        """Return a model for ``Settings`` or an index, which serves what :meth:`using` chose."""
        return PooledEmbedding(self)

    def current(self) -> AdaptedEmbedding:
        """Return the model that this thread or coroutine chose."""
        return self._model(self._chosen.get())

    def _model(self, name: str | None) -> AdaptedEmbedding:
        return self._plain if name is None else self[name]

    def _folder(self, name: str) -> Path:
        folder = self._root / name
        # Names come from requests: one with a separator in it would leave the root, and one that is
        # too long for a file is an error to Path.is_file.
        if not _is_name(name) or not os.path.isfile(folder / CONFIG):
            known = self.names()
            raise OptionError(
                f"There is no adapter {name!r} in {self._root}, which has {len(known)}"
                f" (first: {quote_some(known)})."
            )
        return folder

    def _read(self, folder: Path) -> AdaptedEmbedding:
        saved = saving.load(folder)
        if saved.adapter.adapts_documents:
            raise OptionError(
                f"{folder}: moves documents, and the adapters of a pool share one index. Serve it "
                "alone, over an index of its own."
            )
        if self._verify:
            saving.verify(saved.fingerprint, self._base, where=folder)
        names = ("transform_query", "training", "sketch")
        known: Any = {name: getattr(saved, name) for name in names}
        return AdaptedEmbedding(self._base, saved.adapter, **known)


class PooledEmbedding(WrappedEmbedding):
    """The model of an :class:`AdapterPool`: which adapter answers is chosen per call."""

    _NAME: ClassVar[str] = "PooledEmbedding"
    _pool: AdapterPool = PrivateAttr()

    def __init__(self, pool: AdapterPool) -> None:
        super().__init__(pool.base_embed_model, "pool:")
        self._pool = pool

    @property
    def base_embed_model(self) -> BaseEmbedding:
        """The model that is adapted."""
        return self._pool.base_embed_model

    def adapt(self, vectors: Vectors, role: Role = "query", keys: Keys | None = None) -> Vectors:
        """Map queries of the base model as the adapter that is chosen now would; documents stay."""
        return vectors if role == "document" else self._pool.current().adapt(vectors)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Raise an OptionError: which adapter answers is known call by call only."""
        raise OptionError(
            "A pool has no dict: it would not say which adapter answers. For an IngestionPipeline "
            "use pool.current().for_documents()."
        )

    def __getstate__(self) -> dict[str, Any]:
        raise OptionError(
            "A pool cannot be sent to another process: what using() chose would be lost. Make an "
            "AdapterPool there, or send pool.current()."
        )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> PooledEmbedding:
        """Return another model of the same pool."""
        return type(self)(self._pool)

    def _steps(self, texts: list[str], role: Role) -> Steps[list[Embedding]]:
        return (yield from self._pool.current()._steps(texts, role))


def _is_name(name: str) -> bool:
    hidden = name.startswith(".") or name.endswith(".candidate")
    return bool(name) and not hidden and Path(name).name == name


def _nbytes(model: AdaptedEmbedding) -> int:
    return sum(array.nbytes for array in model.adapter.arrays().values())
