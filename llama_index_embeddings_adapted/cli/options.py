"""What all commands share: options, the configuration file, output, errors and exit codes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from inspect import Parameter, Signature, get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer

from ..errors import AdaptedError, OptionError, nearest, truncate
from ..questions.prompts import STYLES

if TYPE_CHECKING:
    from ..evaluation.verdict import Stance, Verdict

LLMS = (
    '"smollm2", "gguf:<file>", "ollama:<model>[@<url>]", "openai:<model>" or '
    '"openai-like:<model>@<url>"'
)
EMBEDDINGS = (
    '"minilm" (the packaged all-MiniLM-L6-v2), "local:<name or folder>", "openai:<model>", '
    '"ollama:<model>[@<url>]", "adapted:<folder>", or the folder of a saved adapter'
)

_MOST_BYTES = 1 << 16  # of an honest file


def read_run_config(
    path: Path, command: str, options: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what a TOML file says about one command, or raise an OptionError.

    Keys are the names of options, with ``_`` or ``-``. Above the tables stands what several
    commands share: each takes what it knows.
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
                f"{path}: {name}: expected a table of options, got {truncate(repr(table))}."
            )
        own = {str(key).replace("-", "_"): value for key, value in table.items()}
        _check(own, options[name], where=f"{path}, {name}")
        if name == command:
            found.update(own)
    return found


def _check(given: Mapping[str, Any], known: Sequence[str], *, where: str) -> None:
    for key in given:
        if key not in known:
            hint = nearest(key, known) or f" Known: {', '.join(known)}."
            raise OptionError(f'{where}: unknown key "{truncate(key)}".{hint}')


def _read(path: Path) -> dict[str, Any]:
    from ..core.files import read_bytes

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.suffix in (".yaml", ".yml", ".json"):
        raise OptionError(
            f"{path}: expected TOML. Convert it to {path.with_suffix('.toml').name}: a line "
            "'epochs = 3' per option, below a line '[finetune]' what belongs to one command."
        )
    data = read_bytes(path, error=OptionError, most=_MOST_BYTES)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as cause:  # TOML's own error is a ValueError
        reason = truncate(" ".join(str(cause).split()), 500)
        raise OptionError(f"{path}: cannot be read as TOML ({reason}).") from cause


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a configuration file; options of the command line win."""
    if path is None:
        return None
    group = context.parent.command if context.parent is not None else context.command
    commands = getattr(group, "commands", {})
    options = {
        name: [str(option.name) for option in command.params if option.name not in _NOT_IN_FILES]
        for name, command in commands.items()
    }
    try:
        context.default_map = read_run_config(path, str(context.info_name), options)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None
    return path


_NOT_IN_FILES = ("config", "help", "as_json", "debug")


def _quiet(quiet: bool) -> bool:
    """Silence the bars of libraries below, too, which read this when they are imported."""
    if quiet:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return quiet


def _show_version(wanted: bool) -> None:
    if wanted:
        from ..core.files import library_version

        print(library_version())
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show it and exit.")
]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_from_file,
        help="A TOML file with options of a whole run: a table per command, shared ones "
        "above. Keys are the names of options; the command line wins.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", callback=_quiet, help="Show no progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error happened.")]
ExitZero = Annotated[
    bool, typer.Option("--exit-zero", help="Exit with 0 whatever the verdict; see below.")
]
CacheDir = Annotated[
    str | None,
    typer.Option(help="Folder of vectors and answers that are kept; LlamaIndex's cache if none."),
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Split = Annotated[str, typer.Option(help="Of a BEIR folder: qrels/<split>.tsv.")]

Base = Annotated[str, typer.Option("--base", help=f"The embedding model: {EMBEDDINGS}.")]
Llm = Annotated[
    str | None,
    typer.Option("--llm", help=f"Who writes questions about documents: {LLMS}. Keys of providers "
                 "are read from the environment."),
]  # fmt: skip
Source = Annotated[
    Path,
    typer.Argument(
        help="Documents (a file or a folder), or a dataset: a file of rows (JSON, JSON lines, CSV, "
        "parquet), or a BEIR folder."
    ),
]
Documents = Annotated[Path, typer.Argument(help="A file or a folder of documents.")]
Folder = Annotated[Path, typer.Argument(help="A saved adapter.")]
Pairs = Annotated[
    Path,
    typer.Argument(
        help="A dataset: a file of rows (JSON, JSON lines, CSV, parquet), or a BEIR folder."
    ),
]

ChunkSize = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a passage, at most; what the base model reads if none."),
]
ChunkOverlap = Annotated[
    int | None,
    typer.Option(min=0, help="Tokens that neighbouring passages share; a tenth if not given."),
]
Estimate = Annotated[
    bool, typer.Option("--estimate", help="Only say what it would cost, from a few calls.")
]
PerChunk = Annotated[
    int | None, typer.Option(min=1, help="Questions per passage, at most; 2, of smollm2 1, if not "
                             "given.")
]  # fmt: skip
MaxChunks = Annotated[
    int | None,
    typer.Option(min=1, help="Ask about so many passages only, drawn evenly; all if not given, of "
                 "smollm2 120, and 240 with --examples: a few minutes."),
]  # fmt: skip
Styles = Annotated[
    list[str] | None,
    typer.Option("--style", help=f"Kind of questions, repeatable: {', '.join(STYLES)}."),
]
PerCall = Annotated[
    int | None, typer.Option(min=1, help="Questions to ask for at once; small models need 1.")
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Calls to the LLM at once.")]
RoundTrip = Annotated[
    int | None,
    typer.Option(min=1, help="Drop questions whose passage is not among the base model's first so "
                 "many; 20 if not given."),
]  # fmt: skip
Structure = Annotated[
    bool,
    typer.Option("--structure", help="Take questions from titles, headings and FAQs of the "
                 "documents; free, alone or beside those of an LLM."),
]  # fmt: skip

Examples = Annotated[
    Path | None,
    typer.Option(help="Queries as users ask them, for --llm to imitate: 3 to 30 and the passages "
                 "that answer them, as rows in a file, or a .txt file of queries. From 100 on, "
                 "those that are not shown judge."),
]  # fmt: skip

Ks = Annotated[
    list[int] | None, typer.Option("--k", min=1, help="Cut-off, repeatable; 1, 5 and 10 if none.")
]
Report = Annotated[
    str | None, typer.Option("--report", help='Where to write the HTML page; "none" for nowhere.')
]

Val = Annotated[
    Path | None, typer.Option(help="A dataset to hold out, instead of a part of the source.")
]
Method = Annotated[
    str | None,
    typer.Option(
        help='"auto": candidates compete, the gain is proven or the base model kept; "linear": one '
        "map, the default with --epochs, --batch-size or --learning-rate; or others, with commas."
    ),
]
Adapts = Annotated[
    str, typer.Option(help='"query", or "both": documents may move, the index is rebuilt.')
]
Ship = Annotated[
    str,
    typer.Option(
        help='"proven": save the base model otherwise; or "always". '
        "Method linear saves its adapter whatever the verdict."
    ),
]
Expect = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of live queries about documents with training questions, if known.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the queries, at most; 40 if not given.")
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Queries per step; 64 if not given.")]
LearningRate = Annotated[float | None, typer.Option(help="Of Adam; the library's if not given.")]


# --- running ----------------------------------------------------------------------------------

DONE, ERROR, USAGE, AGAINST, UNPROVEN, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = """Exit codes: 0 done, and where there is a verdict it is to ship (finetune), better
(compare, of the last model) or to keep the adapter (inspect --queries); 1 an error; 2 wrong usage;
3 done, and the verdict is against it; 4 done, and nothing is proven either way; 130 interrupted.
With --exit-zero, 3 and 4 become 0."""
_CODES: dict[Stance, int] = {"for": DONE, "against": AGAINST, "open": UNPROVEN}


@dataclass(frozen=True)
class CommandResult:
    """What a command found."""

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

    as_json: Json = False
    debug: Debug = False
    config: Config = None

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
    """Make a command of a job: its fields are the options, its docstring is the help."""

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
