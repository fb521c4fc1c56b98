"""What all commands share: where output goes, how errors look, and what exit codes mean."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import typer

from llama_index_embeddings_adapted.errors import AdaptedError, OptionError

DONE, ERROR, USAGE, AGAINST, UNPROVEN, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = """Exit codes: 0 done, and where there is a verdict it is to ship (finetune), better
(compare, of the last model) or to keep the adapter (inspect --queries); 1 an error; 2 wrong usage;
3 done, and the verdict is against it; 4 done, and nothing is proven either way; 130 interrupted.
With --exit-zero, 3 and 4 become 0."""
_FOR = ("ship", "better", "keep: ", "keep, ")
_OPEN = ("no harm seen", "judge on real questions", "not proven", "the same")


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Args:
        text: For people.
        data: For ``--json``.
        verdict: That decides the exit code; empty where there is none.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    @property
    def code(self) -> int:
        """The exit code."""
        if not self.verdict or self.verdict.startswith(_FOR):
            return DONE
        return UNPROVEN if self.verdict.startswith(_OPEN) else AGAINST


def conclude(
    work: Callable[[], Outcome], *, as_json: bool, debug: bool, exit_zero: bool = False
) -> NoReturn:
    """Do the work of a command, print what it found and exit.

    Only the result is printed to standard output; progress, warnings and errors go to standard
    error. An error is one line, unless ``debug`` asks for where it happened.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), _warnings_as_lines():
            found = work()
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept; run the same command again.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # whatever the libraries below raise, a user gets one line
        _tell(error, as_json=as_json, debug=debug)
        raise typer.Exit(USAGE if isinstance(error, OptionError) else ERROR) from None
    code = DONE if exit_zero and found.code in (AGAINST, UNPROVEN) else found.code
    print(json.dumps({**found.data, "exit_code": code}, indent=2) if as_json else found.text)
    raise typer.Exit(code)


def _tell(error: Exception, *, as_json: bool, debug: bool) -> None:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    name = type(error).__name__
    message = " ".join(str(error).split("\n")) or name
    if not isinstance(error, AdaptedError):
        message = f"{name}: {message} (--debug shows where)"
    print(f"Error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": name, "message": str(error)}}, indent=2))


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def line(message: object, *_: object, **__: object) -> None:
        print(f"Warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = line
        # It misses readers of PDF at every start; which files that concerns is for us to say.
        logging.getLogger("llama_index.core.readers.file.base").setLevel(logging.ERROR)
        yield
