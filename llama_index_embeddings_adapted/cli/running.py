"""What all commands share: where output goes, how errors look, and what exit codes mean."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from inspect import Parameter, Signature, get_annotations
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

import typer

from ..errors import AdaptedError, OptionError
from . import options as o

if TYPE_CHECKING:
    from ..evaluation.verdict import Stance, Verdict

DONE, ERROR, USAGE, AGAINST, UNPROVEN, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = """Exit codes: 0 done, and where there is a verdict it is to ship (finetune), better
(compare, of the last model) or to keep the adapter (inspect --queries); 1 an error; 2 wrong usage;
3 done, and the verdict is against it; 4 done, and nothing is proven either way; 130 interrupted.
With --exit-zero, 3 and 4 become 0."""
_CODES: dict[Stance, int] = {"for": DONE, "against": AGAINST, "open": UNPROVEN}


@dataclass(frozen=True)
class CommandResult:
    """What a command found.

    Args:
        text: For people.
        data: For ``--json``.
        verdict: That decides the exit code; None where there is none.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def code(self) -> int:
        """The exit code."""
        return DONE if self.verdict is None else _CODES[self.verdict.decision.stance]


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """The options of every command."""

    as_json: o.Json = False
    debug: o.Debug = False
    config: o.Config = None

    @abstractmethod
    def run(self) -> CommandResult:
        """Do the work."""


def run_command(job: Job) -> NoReturn:
    """Do the work of a command, print what it found and exit.

    Only the result is printed to standard output; progress, warnings and errors go to standard
    error. An error is one line, unless ``debug`` asks for where it happened.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), _warnings_as_lines():
            found = job.run()
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept; run the same command again.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # whatever the libraries below raise, a user gets one line
        print_error(error, as_json=job.as_json, debug=job.debug)
        raise typer.Exit(USAGE if isinstance(error, OptionError) else ERROR) from None
    code = found.code
    if getattr(job, "exit_zero", False) and code in (AGAINST, UNPROVEN):
        code = DONE
    print(json.dumps({**found.data, "exit_code": code}, indent=2) if job.as_json else found.text)
    raise typer.Exit(code)


def print_error(error: Exception, *, as_json: bool, debug: bool) -> None:
    """Print an error as one line to standard error, with ``as_json`` to standard output as well."""
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


_Kind = TypeVar("_Kind", bound=type[Job])


def command(app: typer.Typer, summary: str) -> Callable[[_Kind], _Kind]:
    """Make a command of a job: its fields are the options, its docstring is the help.

    Args:
        app: The program.
        summary: For the list of commands.
    """

    def register(kind: _Kind) -> _Kind:
        hints = get_type_hints(kind, include_extras=True)
        defaults = {each.name: each.default for each in fields(kind) if each.default is not MISSING}
        owners = map(get_annotations, kind.__mro__)
        names = [name for own in owners for name in own]  # a command's own options come first

        def call(**given: Any) -> None:
            run_command(kind(**given))

        call.__signature__ = Signature(  # type: ignore[attr-defined]
            [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=defaults.get(name, Parameter.empty),
                    annotation=hints[name],
                )
                for name in names
            ]
        )
        call.__annotations__ = {name: hints[name] for name in names}
        call.__doc__ = kind.__doc__
        app.command(kind.__name__.lower(), epilog=EXIT_CODES, short_help=summary)(call)
        return kind

    return register
