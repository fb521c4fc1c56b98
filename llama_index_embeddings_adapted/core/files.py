"""Files that are either old or new, never half; JSON whose faults are located.

The saved folder: ``config.json`` and ``adapter.safetensors``; no code, no pickle. Beside them is
``queries.safetensors``, where known: a sketch of training queries, which serving does not need.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from ..errors import (
    AdaptedError,
    CacheError,
    DiskError,
    FolderError,
    OptionError,
    quote_some,
    truncate,
)

T = TypeVar("T")
_OF_THE_DISK = frozenset(
    (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG,
     errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS)
)  # fmt: skip
_ENOUGH = 1000  # duplicates: a file of nothing else is not read to its end
FORMAT_VERSION = 1

#: More is no adapter: a file that claims to be larger is not read into memory.
MOST_BYTES, MOST_CONFIG_BYTES = 4 << 30, 256 << 20
CONFIG, WEIGHTS, CARD = "config.json", "adapter.safetensors", "README.md"
QUERIES = "queries.safetensors"

#: The array beside the adapter's own: vectors that identify its base model.
PROBES = "fingerprint.probes"

# Files of llama-index-finetuning are ours to replace: its default output path is ours too.
_OURS = frozenset((CONFIG, WEIGHTS, QUERIES, CARD, "pytorch_model.bin"))
Array = NDArray[Any]
Arrays = dict[str, Array]


def llama_cache() -> Path:
    """Return LlamaIndex's cache folder, or raise a :class:`CacheError` where it cannot be made."""
    from llama_index.core.utils import get_cache_dir

    try:
        return Path(get_cache_dir())
    except OSError as cause:
        raise CacheError(
            f"LlamaIndex's cache folder cannot be made ({cause}). Set LLAMA_INDEX_CACHE_DIR to a "
            "folder that can be written; for vectors alone pass cache_dir=…, or False for memory."
        ) from cause


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` that takes its place on success, or raise a DiskError."""
    with _beside(path) as temporary:
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; its files replace those of ``path`` on success.

    A kill leaves the old folder or the new one. Where the system cannot swap folders (it can on
    Linux), a kill in the instant between two renames leaves the old one under a hidden name. A
    DiskError as of :func:`atomic_file`.
    """
    with _beside(path) as temporary:
        try:
            temporary.mkdir()
            yield temporary
            _take_the_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_the_place(temporary: Path, path: Path) -> None:
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if not path.exists():
        os.replace(temporary, path)
    elif not _swap(temporary, path):
        os.replace(path, aside := temporary.with_name(f"{temporary.name}.old"))
        os.replace(temporary, path)
        shutil.rmtree(aside, ignore_errors=True)


def named(path: Path) -> Path:
    """Return a path that ends in a name, which ``.`` and ``..`` do not."""
    return path.resolve() if path.name in ("", "..") else path


def _check_named(path: Path, error: type[AdaptedError]) -> None:
    """Refuse ``.`` and ``..``: a shell, or this process, is left in the folder that is replaced."""
    if named(path) is not path:
        whole = f"such as {named(path)}: what it names is replaced as a whole"
        raise error(f"{path}: expected a path that ends in a name, {whole}.")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path``; what goes wrong on the disk is a DiskError."""
    _check_named(path, FolderError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    except OSError as cause:
        missing = cause.errno == errno.ENOENT and Path(str(cause.filename)).parent == path.parent
        if isinstance(cause, AdaptedError) or not (missing or cause.errno in _OF_THE_DISK):
            raise  # what is missing below the target is the writer's affair
        raise DiskError(path, cause) from cause


def check_target(path: Path, *, error: type[AdaptedError]) -> None:
    """Refuse to begin work whose result, a file, could not be written."""
    try:
        _write_in(path.parent)
    except OSError as cause:
        raise error(f"{path}: cannot be written ({cause.strerror}).") from cause
    if path.is_dir():
        raise error(f"{path}: expected the path of a file, this is a folder.")


def database(where: str | Path, synchronous: str) -> sqlite3.Connection:
    """Open a database that processes share, or raise what SQLite says.

    Of two that make the file at once, SQLite refuses one without waiting: so it asks again.
    """
    import tenacity as again  # not at import

    opened = sqlite3.connect(where, timeout=60, isolation_level=None, check_same_thread=False)
    asked: Any = {"retry": again.retry_if_exception_message(match=".*locked"), "reraise": True}
    asked |= {"wait": again.wait_fixed(0.05), "stop": again.stop_after_delay(60)}
    for attempt in again.Retrying(**asked):
        with attempt:
            opened.execute("PRAGMA journal_mode=WAL")
    opened.execute(f"PRAGMA synchronous={synchronous}")
    return opened


def check_outside(name: str, path: Path | None, folder: Path) -> None:
    """Refuse to write something, if anything, into a folder that saving replaces as a whole."""
    if path is not None and folder.resolve() in (path.resolve(), *path.resolve().parents):
        raise OptionError(f"{name}: expected a path outside {folder}, as saving replaces that.")


def _write_in(folder: Path) -> None:
    """Write a nameless file: permissions alone do not tell what ``/proc`` refuses."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def write_json(path: Path, data: object) -> None:
    """Write ``data`` as JSON, atomically."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=4)


def read_bytes(path: Path, *, error: type[AdaptedError], most: int | None = None) -> bytes:
    """Read a file, no device or pipe, whole; the error is raised where it cannot be read."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{path}: expected a file.")
        if most is not None and about.st_size > most:
            raise error(f"{path}: expected at most {most:,} bytes, found {about.st_size:,}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    except (OSError, MemoryError) as cause:
        why = cause or "it does not fit into memory"
        raise error(f"{path}: cannot be read ({why}).") from cause


def read_json(
    path: Path,
    *,
    error: type[AdaptedError],
    most: int | None = None,
    decode: Callable[[bytes], str] = bytes.decode,
) -> Any:
    """Read JSON; errors as of :func:`read_bytes`, or if it is none or a key is given twice."""
    try:
        text = decode(read_bytes(path, error=error, most=most))
        once = partial(unique, what="key", error=error, where=path)
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError, MemoryError) as cause:
        if isinstance(cause, AdaptedError):
            raise
        raise error(f"{path}: expected JSON ({cause}).") from cause


def read_json_object(path: Path, *, error: type[AdaptedError], **options: Any) -> dict[str, Any]:
    """Read a JSON object; options and errors as of :func:`read_json`."""
    data = read_json(path, error=error, **options)
    if not isinstance(data, dict):
        raise error(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data


def read_format(path: Path, version: int) -> dict[str, Any]:
    """Read the JSON object of a saved folder, or raise a FolderError if of another format."""
    config = read_json_object(path, error=FolderError, most=MOST_CONFIG_BYTES)
    found = config.pop("format_version", None)
    if found != version:
        raise FolderError(f"{path}: expected format {version}, found {found!r}.")
    return config


@contextmanager
def legible(what: str) -> Iterator[None]:
    """Turn what parts of a damaged folder raise into a FolderError, which begins with ``what``."""
    try:
        yield
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as cause:
        raise FolderError(f"{what}, or damaged ({truncate(str(cause), 300)}).") from cause


def unique(
    pairs: Iterable[tuple[str, T]], *, what: str, error: type[AdaptedError], where: object = ""
) -> dict[str, T]:
    """Return the pairs as a dict, or raise the error for a key that stands twice."""
    found: dict[str, T] = {}
    twice: list[str] = []
    for key, value in pairs:
        if key in found:
            twice.append(key)
            if len(twice) == _ENOUGH:
                break
        found[key] = value
    if twice:
        prefix = f"{where}: " if where else ""
        count = f"{len(twice)}{' or more' if len(twice) == _ENOUGH else ''}"
        raise error(f"{prefix}{count} duplicate {what} ids (first: {quote_some(twice)}).")
    return found


def _swap(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def library_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("llama-index-embeddings-adapted")
    except PackageNotFoundError:  # run from a bare checkout
        return "unknown"


def write(
    folder: Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, Array],
    *,
    queries: Mapping[str, Array] | None = None,
    card: str = "",
) -> None:
    """Write a folder, whole or not at all, in place of none but a saved adapter's."""
    check_target_folder(folder)
    with atomic_folder(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(to_bytes(arrays))
        if queries is not None:
            (temporary / QUERIES).write_bytes(to_bytes(queries))
        version = {"format_version": config.get("format_version", FORMAT_VERSION)}
        text = json.dumps({**config, **version}, indent=2)
        (temporary / CONFIG).write_text(text + "\n", encoding="utf-8")
        if card:
            (temporary / CARD).write_text(card, encoding="utf-8")


def read(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Read config and weights, or raise a :class:`FolderError`."""
    config = read_config(folder)
    check_version(config, folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise FolderError(
            f"{folder}: no {WEIGHTS}."
            + (" It holds a ComposedEmbedding: load it with that." if "composed" in config else "")
        )
    return config, read_arrays(path)


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file, or raise a FolderError; its values are finite."""
    return from_bytes(read_bytes(path, error=FolderError, most=MOST_BYTES), where=str(path))


def check_version(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse, by a :class:`FolderError`, a config that is not ours, or of a format to come."""
    version = config.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FolderError(f"{folder / CONFIG}: no format_version. Is this a saved adapter?")
    if version > FORMAT_VERSION:
        raise FolderError(
            f"{folder}: saved in format {version}; this version reads up to {FORMAT_VERSION}. "
            'pip install --upgrade "llama-index-embeddings-adapted"'
        )


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Read ``config.json``, of any version, or raise a :class:`FolderError`."""
    if not (file := folder / name).exists():
        missing = f"{file}: no such file" if folder.is_dir() else f"{folder}: no such folder"
        raise FolderError(f"{missing}. Expected a folder that this library saved.")
    return read_json_object(file, error=FolderError, most=MOST_CONFIG_BYTES)


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """Return arrays in the safetensors format."""
    return dump_safetensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def from_bytes(data: bytes, *, where: str) -> Arrays:
    """Parse the safetensors format, or raise a FolderError; values are finite."""
    try:
        arrays: Arrays = parse_safetensors(data)
    # Of types that numpy lacks the library says so with errors of several kinds.
    except (SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as cause:
        reason = truncate(str(cause), 300)
        raise FolderError(f"{where}: damaged or not safetensors ({reason}).") from cause
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FolderError(f'{where}: "{truncate(name)}" has NaN or infinity.')
    return arrays


def check_target_folder(
    folder: Path, ours: frozenset[str] = _OURS, *, error: type[AdaptedError] = FolderError
) -> None:
    """Raise the error where a folder cannot be written, or holds other files than ours."""
    _check_named(folder, error)
    try:
        _write_in(folder.parent)
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as cause:
        raise error(f"{folder}: cannot be written ({cause.strerror}).") from cause
    strangers = sorted(found - ours)
    if strangers:
        raise error(
            f"{folder}: holds other files ({', '.join(strangers[:3])}), and saving would replace "
            "them. Choose an empty or new folder."
        )
