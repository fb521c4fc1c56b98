"""Ways to damage a folder of files: bytes, values in JSON, headers, files, links."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

#: Relative path → content; None is a folder, a :class:`pathlib.Path` a link to it.
Content = bytes | Path | None
Tree = dict[str, Content]
Change = Callable[[bytes, str], Content]  # of a file and its name

_ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 2**31, 2**63, 10**12, 1e308, float("nan"), float("inf"), "", "0",
     "..", "../../outside", "/etc/passwd", "a\x00b", "\ud800", "x" * 3000, [], {}, [[]], [None],
     {"": None}, "__class__", "os.system", "stranger.Model", "http://stranger.example/v1"]
)  # fmt: skip
VALUES = _ODD | st.recursive(
    _ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_LINKS = st.sampled_from(
    [Path(to) for to in ("/etc/passwd", "/dev/zero", "/proc/self/mem", "nowhere", ".", "..")]
)
_KEYWORDS = [b"\x00", b"\xff", b'"', b"{", b"[", b"}" * 9, b"[" * 5000, b"9" * 5000, b"\n", b"\t",
             b"-", b"1e999", b"NaN", b"\xed\xa0\x80", b"\xef\xbb\xbf",
             b"&a *a", b"<<: *a\n"]  # fmt: skip
_PIECES = st.sampled_from(_KEYWORDS) | st.binary(min_size=1, max_size=8)
_PLACES = st.floats(0, 1)


def damaged(seeds: list[Tree]) -> st.SearchStrategy[Tree]:
    """Return trees that start from a valid one and have one to three things changed."""
    return st.sampled_from(seeds).flatmap(
        lambda seed: st.lists(
            st.tuples(st.sampled_from(sorted(seed)), _CHANGES), min_size=1, max_size=3
        ).map(lambda changes: _applied(seed, changes))
    )


def damaged_text(seeds: list[str]) -> st.SearchStrategy[str]:
    """Return texts that start from a valid one, and a few that start from nothing."""
    edits = st.lists(st.tuples(_PLACES, st.text(max_size=9) | st.integers(0, 30)), max_size=4)

    def edited(seed: str, changes: list[tuple[float, str | int]]) -> str:
        for where, what in changes:
            at = int(where * len(seed))
            seed = seed[:at] + (what if isinstance(what, str) else "") + seed[
                at + (what if isinstance(what, int) else 0) :]  # fmt: skip
        return seed

    return st.builds(edited, st.sampled_from(seeds), edits) | st.text()


def _applied(seed: Tree, changes: list[tuple[str, Change]]) -> Tree:
    """Change one file after another; what has become a folder or a link stays one."""
    tree = dict(seed)
    for name, change in changes:
        data = tree[name]
        if isinstance(data, bytes):
            tree[name] = change(data, name)
    return tree


def _bytes_changed(edits: list[tuple[float, str, bytes]]) -> Change:
    def change(data: bytes, name: str) -> bytes:
        for where, kind, piece in edits:
            at = int(where * len(data))
            after = at + (0 if kind == "insert" else len(piece))
            data = data[:at] + (b"" if kind == "delete" else piece) + data[after:]
        return data

    return change


def _cut(where: float) -> Change:
    return lambda data, name: data[: int(where * len(data))]


def _replaced(by: Content) -> Change:
    return lambda data, name: by


def _claimed(length: int) -> Change:
    """A safetensors header of another length than it has."""
    head = struct.pack("<Q", length)
    return lambda data, name: head + data[8:] if name.endswith(".safetensors") else data


def _value_changed(path: list[float], value: Any) -> Change:
    """A value in a JSON file, in a line of JSON, or in the header of a safetensors file."""

    def change(data: bytes, name: str) -> bytes:
        if name.endswith(".safetensors"):
            size = int.from_bytes(data[:8], "little")
            header = _with_value(data[8 : 8 + size], path, value)
            return struct.pack("<Q", len(header)) + header + data[8 + size :]
        if name.endswith(".jsonl"):
            lines = data.splitlines() or [b""]
            at = int(path[0] * (len(lines) - 1))
            lines[at] = _with_value(lines[at], path[1:], value)
            return b"\n".join(lines)
        return _with_value(data, path, value)

    return change


_EDITS = st.tuples(_PLACES, st.sampled_from(["insert", "delete", "overwrite"]), _PIECES)
_VALUE = st.builds(_value_changed, st.lists(_PLACES, min_size=4, max_size=4), VALUES)
_CHANGES = st.one_of(
    st.builds(_bytes_changed, st.lists(_EDITS, max_size=5)),
    _VALUE, _VALUE,  # twice as often
    st.builds(_claimed, st.integers(0, 2**64 - 1) | st.integers(0, 4096)),
    st.builds(_cut, _PLACES),
    st.builds(_replaced, st.none() | st.just(b"") | _LINKS),
)  # fmt: skip


def _with_value(text: bytes, path: list[float], value: Any) -> bytes:
    """Replace what lies at the end of a path, whose steps are shares of each container."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(_put(value, whole, path)).encode()


def _put(value: Any, place: Any, path: list[float]) -> Any:
    if not path or not place or not isinstance(place, (dict, list)):
        return value
    keys = list(place) if isinstance(place, dict) else range(len(place))
    key = keys[min(int(path[0] * len(keys)), len(keys) - 1)]
    place[key] = _put(value, place[key], path[1:])
    return place


def write(tree: Tree, folder: Path) -> None:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, Path):
            os.symlink(content, path)
        else:
            path.write_bytes(content)


def read(folder: Path) -> Tree:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
