"""The errors of this package. Every one says what was expected, what arrived and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sized
from math import inf
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504, 529))
_FATAL = frozenset((401, 403, 404, 429))  # whatever the text is


class AdaptedError(Exception):
    """Root of every error this package raises on purpose."""


class DatasetError(AdaptedError, ValueError):
    """Queries, corpus or relevance that cannot be trained on or judged."""


class ShapeError(AdaptedError, ValueError):
    """Vectors, named as a user would name them, whose shape is not the expected one."""

    def __init__(self, what: str, *, expected: object, actual: object, hint: str = "") -> None:
        self.what, self.expected, self.actual = what, expected, actual
        super().__init__(f"{what}: expected {expected}, got {actual}.{' ' + hint if hint else ''}")


class OptionError(AdaptedError, ValueError):
    """An argument outside its range, or a keyword that does not exist."""


class EncodeError(AdaptedError, RuntimeError):
    """The base model gave no usable vector for ``text``, the first of ``texts`` if known."""

    def __init__(self, message: str, *, text: str, texts: tuple[str, ...] = ()) -> None:
        self.text, self.texts = text, texts
        self.ids: tuple[str, ...] = ()  # of those texts, where a dataset was embedded
        super().__init__(f"{message} Text: {truncate(text)!r}.")


class CacheError(AdaptedError, RuntimeError):
    """The vector cache on disk is damaged or was written by another version."""


class DiskError(AdaptedError, OSError):
    """A result could not be written: no space, no permission, no such place."""

    def __init__(self, path: Path, cause: OSError) -> None:
        reason = cause.strerror or str(cause)
        super().__init__(
            f"{path} could not be written ({reason}); what was there before still is. Free some "
            "space or choose another place, and run again: what is cached is not paid for twice."
        )
        self.path, self.errno = path, cause.errno


class GenerationError(AdaptedError, RuntimeError):
    """The LLM cannot be asked, or nothing it wrote was usable."""


class TrainingError(AdaptedError, RuntimeError):
    """Training diverged or cannot start."""


class NotTrainedError(AdaptedError, RuntimeError):
    """A result was asked for before ``finetune()`` produced it."""


class StoreError(AdaptedError, RuntimeError):
    """A vector store that an index cannot be rebuilt from or into."""


class FolderError(AdaptedError, ValueError):
    """A saved adapter that is damaged, foreign, or newer than this library."""


class BaseModelMismatchError(AdaptedError, ValueError):
    """The base model at hand is not the one the adapter was trained on."""


class MetricError(AdaptedError, KeyError):
    """A metric that does not exist, or a cut-off deeper than was retrieved."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtraError(AdaptedError, ImportError):
    """An optional dependency that is not installed."""


def truncate(text: str, limit: int = 80) -> str:
    """Return ``text`` cut to ``limit`` characters, for messages."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def quote_some(items: Iterable[object], limit: int = 3) -> str:
    """Return the first few of ``items`` quoted, for messages that count and name."""
    shown = list(items)
    quoted = ", ".join(f'"{truncate(str(item))}"' for item in shown[:limit])
    return quoted + (", …" if len(shown) > limit else "")


def require_extra(module: str, *, extra: str) -> ModuleType:
    """Import an optional module, or raise a MissingExtraError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        how = f'pip install "llama-index-embeddings-adapted[{extra}]"'
        raise MissingExtraError(f"{module} is not installed. {how}") from error


def integration(module: str, name: str) -> Any:
    """Import a class of LlamaIndex, such as of ``llms.ollama``, or raise a MissingExtraError."""
    try:
        return getattr(importlib.import_module(f"llama_index.{module}"), name)
    except ModuleNotFoundError as error:
        package = "llama-index-" + module.replace(".", "-").replace("_", "-")
        raise MissingExtraError(f"{name} is not installed. pip install {package}") from error


def check_kind(name: str, value: object, kind: Any, expected: str, hint: str = "") -> None:
    """Refuse, by an :class:`OptionError`, what is not of a class, or of one of several."""
    if not isinstance(value, kind):
        got = type(value).__name__
        raise OptionError(f"{name}: expected {expected}, got {got}.{hint and f' {hint}'}")


def check_whole(name: str, value: object, *, least: int = 1, most: float = inf) -> None:
    """Refuse, by an :class:`OptionError`, what is not a whole number in a range."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) <= most:  # type: ignore[call-overload]
        range_ = f">= {least}" if most == inf else f"from {least} to {most}"
        raise OptionError(f"{name}: expected a whole number {range_}, got {value!r}.")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse, by an :class:`OptionError`, what is not one of a few values."""
    if value not in (known := list(choices)):
        expected, hint = ", ".join(map(str, known)), nearest(str(value), map(str, known))
        raise OptionError(f"{name}: expected one of {expected}, got {value!r}.{hint}")


def check_number(
    name: str, value: object, *, least: float = -inf, above: float = -inf, below: float = inf,
    most: float = inf,
) -> None:  # fmt: skip
    """Refuse, by an :class:`OptionError`, what is not a number in a range; NaN is in none."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    fits = number and least <= value <= most and above < value < below  # type: ignore[operator]
    if not fits:
        start = f"> {above:g}" if above > -inf else f">= {least:g}"
        end = f" and < {below:g}" if below < inf else f" and <= {most:g}" if most < inf else ""
        raise OptionError(f"{name}: expected a number {start}{end}, got {value!r}.")


def check_texts(name: str, value: Any, expected: str = "a list of texts") -> list[str]:
    """Return texts as a list, of a dict of id → text those; or raise an :class:`OptionError`."""
    value = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise OptionError(f"{name}: expected {expected}, got {value!r}.")
    texts = list(value)
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise OptionError(f"{name}: expected {expected}, got {odd[0]!r} among them.")
    return texts


def check_length(what: str, given: Sized, others: Sized) -> None:
    """Refuse, by a :class:`ShapeError`, what is not as many as others that it belongs to."""
    if len(given) != len(others):
        raise ShapeError(what, expected=f"{len(others)} of them", actual=len(given))


def check_known(names: Iterable[str], known: Iterable[str], *, what: str = "Training") -> None:
    """Refuse, by an :class:`OptionError`, keyword arguments that a training does not take."""
    taken = sorted(known)
    for name in names:
        if name not in taken:
            hint = nearest("learning_rate" if name == "lr" else name, taken)
            raise OptionError(f'Unknown argument "{name}".{hint} {what} takes {", ".join(taken)}.')


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for what was perhaps meant, with a space before it; empty if unknown."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of a client carries, if any."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def is_unreachable(error: BaseException) -> bool:
    """Return whether no answer came: a connection that broke, or time that ran out."""
    names = (cls.__name__ for cls in type(error).__mro__)
    return any("Connect" in name or "Timeout" in name for name in names)


def is_passing(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    return is_unreachable(error) or status_of(error) in _PASSING


def is_fatal(error: BaseException) -> bool:
    """Return whether other texts would fail alike: no access, no such model, no connection."""
    return is_unreachable(error) or status_of(error) in _FATAL
