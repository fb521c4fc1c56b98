"""The configuration file of a whole run: a table per command, and what they share above."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index_embeddings_adapted.errors import OptionError, shorten
from llama_index_embeddings_adapted.files import read_bytes

_MOST_BYTES, _MOST_DEPTH = 1 << 16, 8  # of an honest file; YAML takes its time with others


def read_run_config(
    path: Path, command: str, options: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what a TOML or YAML file says about one command.

    Keys are the names of options, with ``_`` or ``-``. Above the tables stands what several
    commands share: each takes what it knows.

    Args:
        path: Of the file; ``.toml``, ``.yaml`` or ``.yml``.
        command: Such as ``"finetune"``.
        options: Command → names of its options.

    Raises:
        OptionError: No such file, not TOML or YAML, or a key that no command has; the message
            names the nearest one.
    """
    data = {str(key).replace("-", "_"): value for key, value in _read(path).items()}
    shared = {key: value for key, value in data.items() if key not in options}
    everywhere = sorted({name for names in options.values() for name in names})
    _check(shared, [*everywhere, *options], where=str(path))
    found = {key: value for key, value in shared.items() if key in options[command]}
    for name in options:
        table = data.get(name, {})
        if not isinstance(table, dict):
            raise OptionError(
                f"{path}: {name}: expected a table of options, got {shorten(repr(table))}."
            )
        own = {str(key).replace("-", "_"): value for key, value in table.items()}
        _check(own, options[name], where=f"{path}, {name}")
        if name == command:
            found.update(own)
    return found


def _check(given: Mapping[str, Any], known: Sequence[str], *, where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."
            raise OptionError(f'{where}: unknown key "{shorten(key)}".{hint}')


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".toml", ".yaml", ".yml"):
        raise OptionError(f"{path}: expected .toml, .yaml or .yml.")
    data = read_bytes(path, error=OptionError, most=_MOST_BYTES)
    try:
        text = data.decode("utf-8")
        found = _toml(text) if path.suffix == ".toml" else _yaml(text)
    except (ValueError, RecursionError) as cause:
        reason = shorten(" ".join(str(cause).split()), 500)
        raise OptionError(f"{path}: cannot be read ({reason}).") from cause
    if not isinstance(found, dict):
        raise OptionError(f"{path}: expected options, got {type(found).__name__}.")
    return found


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)  # its error is a ValueError


def _yaml(text: str) -> Any:
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):  # a few of these make an object of any size
                raise ValueError("references (*) are not supported")
            if depth > _MOST_DEPTH:
                raise ValueError(f"lists and tables more than {_MOST_DEPTH} deep")
        return yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise ValueError(str(cause)) from cause
