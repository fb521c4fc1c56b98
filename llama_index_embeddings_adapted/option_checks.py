"""What settings of any training are checked for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from llama_index_embeddings_adapted.errors import OptionError


def check_whole(name: str, value: object) -> None:
    """Refuse what is not a whole number ``>= 1``.

    Raises:
        OptionError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}: expected a whole number >= 1, got {value!r}.")


def check_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Refuse what is not a number in a range; NaN is in none.

    Args:
        name: Of the setting.
        value: Of any kind.
        least: The number has to be this or more.
        above: It has to be more than this.
        below: It has to be less than this.

    Raises:
        OptionError: It is not.
    """
    fits = isinstance(value, (int, float)) and least <= value < below and value > above
    if isinstance(value, bool) or not fits:
        start = f"> {above:g}" if above > -math.inf else f">= {least:g}"
        end = "" if below == math.inf else f" and < {below:g}"
        raise OptionError(f"{name}: expected a number {start}{end}, got {value!r}.")


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keyword arguments that a training does not take.

    Raises:
        OptionError: An unknown one; the message has what was perhaps meant.
    """
    taken = sorted(known)
    for name in names:
        if name not in taken:
            close = difflib.get_close_matches(name, taken, n=1, cutoff=0.5)
            close = ["learning_rate"] if name == "lr" else close
            hint = f' Did you mean "{close[0]}"?' if close else ""
            raise OptionError(
                f'Unknown argument "{name}".{hint} Training takes {", ".join(taken)}.'
            )
