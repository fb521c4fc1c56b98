"""What all commands share: options, the configuration file, output, errors and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import Parameter, Signature, get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer
from typing_extensions import dataclass_transform

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
_DATASET = "dataset: a file of rows (JSON, JSON lines, CSV, parquet), or a BEIR folder."

#: By name; "command name" where a command means something else by it.
_HELP = {
    "source": f"Documents (a file or a folder), or a {_DATASET}",
    "generate source": "A file or a folder of documents.",
    "data": f"A {_DATASET}",
    "folder": "A saved adapter.",
    "model": "A model, as in compare.",
    "models": "Models, as in --base of finetune, or name=model; bm25 for words, model+bm25 for "
    "both. The first is what others are compared with; a lone adapter has its base, as has a lone "
    "model+bm25.",
    "old": "The model in service, as in --base of finetune.",
    "new": "The model that is to take over.",
    "texts": f"Documents (a file or a folder), or a {_DATASET}",
    "base": f"The embedding model: {EMBEDDINGS}.",
    "generate base": "The embedding model, for filters that need one; none if not given.",
    "out": "Folder of the adapter.",
    "generate out": "Where to write the dataset.",
    "upgrade out": "Folder of the map.",
    "export out": "The file, or for sentence-transformers the folder.",
    "as_json": "Print the result as JSON to standard output.",
    "debug": "Show where an error happened.",
    "config": "A TOML file with options of a whole run: a table per command, shared ones above. "
    "Keys are the names of options; the command line wins.",
    "quiet": "Show no progress bars.",
    "cache_dir": "Folder of vectors and answers that are kept, LlamaIndex's cache if not given; "
    '"none" keeps none.',
    "seed": "Same seed, same result.",
    "split": "Of a BEIR folder: qrels/<split>.tsv.",
    "columns": "Of rows with names of their own, repeatable: query=NAME, document=NAME, and as "
    "needed negative, grade, query_id or document_id.",
    "exit_zero": "Exit with 0 whatever the verdict; see below.",
    "report": 'Where to write the HTML page; "none" for nowhere.',
    "ks": "Cut-off, repeatable; 1, 5 and 10 if none.",
    "llm": f"Who writes questions about documents: {LLMS}. Keys of providers are read from the "
    "environment.",
    "structure": "Take questions from titles, headings and FAQs of the documents; free, alone or "
    "beside those of an LLM.",
    "examples": "Queries as users ask them, for --llm to imitate: 3 to 30 and the passages that "
    "answer them, as rows in a file, or queries alone, as rows or lines of a .txt file. From 100 "
    "with passages on, those that are not shown judge.",
    "questions_per_chunk": "Questions per passage, at most; 2, of smollm2 1, if not given.",
    "max_chunks": "Ask about so many passages only, drawn evenly; all if not given, of smollm2 "
    "120, and 240 with --examples: a few minutes.",
    "chunk_size": "Tokens of a passage, at most; what the base model reads if none.",
    "chunk_overlap": "Tokens that neighbouring passages share; a tenth if not given.",
    "styles": f"Kind of questions, repeatable: {', '.join(STYLES)}.",
    "questions_per_call": "Questions to ask for at once; small models need 1.",
    "concurrency": "Calls to the LLM at once.",
    "round_trip_k": "Drop questions whose passage is not among the base model's first so many; 20 "
    "if not given.",
    "estimate": "Only say what it would cost, from a few calls.",
    "val": "More queries to judge by. Linear never trains on them; other methods hold out each in "
    "turn and train on all of them in the end: test on others.",
    "method": '"auto": candidates compete, the gain is proven or the base model kept; "linear": '
    "one map, the default with --epochs, --batch-size or --learning-rate; or others, with commas.",
    "adapts": '"query", or "both": documents may move, the index is rebuilt.',
    "ship": '"proven": save the base model otherwise; or "always". Method linear saves its adapter '
    "whatever the verdict.",
    "expect": "Share of live queries about documents with training questions, if known.",
    "epochs": "Passes over the queries, at most; 40 if not given.",
    "batch_size": "Queries per step; 64 if not given.",
    "learning_rate": "Of Adam; the library's if not given.",
    "title": "Of the page; names of models and data if none.",
    "number": "How many queries.",
    "train": "Where to write the larger part.",
    "test": "Where to write the smaller part.",
    "share": "Of the queries, for the test: above 0, below 1.",
    "by": '"document", or "query".',
    "judged": "A dataset: compare with a real re-embedding, too.",
    "verify": "Build its base model and check that it is the same.",
    "queries": "Live queries, one per line or as rows: have they moved away from training?",
    "format": "onnx, json, numpy, sql (pgvector) or sentence-transformers; if not given what --out "
    "ends in, else onnx.",
    "role": "Whose vectors: query, or document.",
}


_MOST_BYTES = 1 << 16  # of an honest file


def read_run_config(
    path: Path, command: str, options: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what a TOML file says about a command, shared keys too; or raise an OptionError."""
    data = _read(path)
    everywhere = sorted({name for names in options.values() for name in names})
    shared = _checked(data, [*everywhere, *options], where=str(path))
    found = {k: v for k, v in shared.items() if k in options[command] and k not in options}
    for name, known in options.items():
        table = shared.get(name, {})
        if not isinstance(table, dict):
            what = f"expected a table of options, got {truncate(repr(table))}"
            raise OptionError(f"{path}: {name}: {what}.")
        own = _checked(table, known, where=f"{path}, {name}")
        found |= own if name == command else {}
    return found


def _checked(given: Mapping[str, Any], known: Sequence[str], *, where: str) -> dict[str, Any]:
    found = {key.replace("-", "_"): value for key, value in given.items()}
    for key in found:
        if key not in known:
            hint = nearest(key, known) or f" Known: {', '.join(known)}."
            raise OptionError(f'{where}: unknown key "{truncate(key)}".{hint}')
    return found


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
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as cause:  # TOML's own error is a ValueError
        reason = truncate(" ".join(str(cause).split()), 500)
        raise OptionError(f"{path}: cannot be read as TOML ({reason}).") from cause


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take defaults from a configuration file; options of the command line win."""
    if path is None:
        return None
    path = _at_home(path)
    group: Any = context.parent and context.parent.command
    options = {
        name: [str(option.name) for option in command.params if option.name not in _NOT_IN_FILES]
        for name, command in group.commands.items()
    }
    try:
        context.default_map = read_run_config(path, str(context.info_name), options)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None
    return path


def _at_home(value: Any, name: str = "") -> Any:
    """Return a path, with a folder of the user in place of ~, and what is none as it is."""
    named = isinstance(value, Path) or (isinstance(value, str) and name in ("cache_dir", "report"))
    return type(value)(os.path.expanduser(value)) if named else value


_NOT_IN_FILES = ("config", "help", "as_json", "debug")


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
    """A command: its fields are the options, those without a default its arguments."""

    as_json: bool = False
    debug: bool = False
    config: Path | None = None

    @abstractmethod
    def run(self) -> CommandResult:
        """Do the work."""

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of some options that are not left to the library."""
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value not in (None, [])}

    def paths(self, *names: str) -> list[Path]:
        """Return where some options point, of those that the command has."""
        given = self.given(*(name for name in names if hasattr(self, name)))
        return [Path(path).resolve() for path in given.values()]

    def unheeded(self, why: str, *names: str) -> None:
        """Warn of some options, if they are given, that they do nothing here."""
        if flags := [_flag(name) for name in self.given(*names)]:
            warnings.warn(f"{', '.join(flags)}: without effect, as {why}.", stacklevel=2)


@dataclass(frozen=True, kw_only=True)
class EmbeddingJob(Job):
    """The options of commands that embed texts."""

    cache_dir: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.quiet:  # libraries below read this when they are imported
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    @property
    def _encoding(self) -> dict[str, Any]:
        kept = False if self.cache_dir == "none" else self.cache_dir
        return {"cache_dir": kept, "show_progress": not self.quiet}


def run_command(job: Job) -> NoReturn:
    """Do a command's work; print its result alone to standard output, errors as a line; exit."""
    for stream in (sys.stdout, sys.stderr):  # a Windows pipe has no arrow
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with contextlib.redirect_stdout(sys.stderr), _warnings_as_lines():
            found = job.run()
    except KeyboardInterrupt:
        print("Interrupted. What is finished is kept; run the same command again.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # whatever the libraries below raise, a user gets one line
        _print_error(error, job)
        raise typer.Exit(USAGE if isinstance(error, OptionError) else ERROR) from None
    code = DONE if getattr(job, "exit_zero", False) else found.code
    print(json.dumps({**found.data, "exit_code": code}, indent=2) if job.as_json else found.text)
    raise typer.Exit(code)


def _print_error(error: Exception, job: Job) -> None:
    if job.debug:
        traceback.print_exception(error, file=sys.stderr)
    name = type(error).__name__
    message = " ".join(str(error).split("\n")) or name
    message = message.replace("cache_dir=False", "--cache-dir none")  # as it is said here
    if not isinstance(error, AdaptedError):
        message = f"{name}: {message} (--debug shows where)"
    print(f"Error: {message}", file=sys.stderr)
    if job.as_json:
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


#: Options that name what a command reads, or writes.
READ = ("source", "data", "texts", "judged", "val", "examples", "queries", "config", "cache_dir")
WRITTEN = ("out", "report", "train", "test")
#: How questions are written by an LLM.
WRITING = (
    "questions_per_chunk", "max_chunks", "chunk_size", "chunk_overlap", "styles",
    "questions_per_call", "concurrency",
)  # fmt: skip
_FLAGS = {"as_json": "--json", "styles": "--style", "ks": "--k", "columns": "--column"}
_LEAST = {"chunk_overlap": 0, "number": 0, "expect": 0}
_COUNTS = (int | None, list[int] | None)  # of others these, from 1
_SETTINGS: dict[str, dict[str, Any]] = {
    "config": {"is_eager": True, "callback": _from_file},
    "expect": {"max": 1},
}


app = typer.Typer(
    name="llama-index-adapted",
    help="Train a small adapter on top of an embedding model, and know whether it helps.\n\n"
    + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        from ..core.files import library_version

        print(library_version())
        raise typer.Exit


_Version = typer.Option("--version", is_eager=True, callback=_version, help="Show it and exit.")


@app.callback()
def root(version: Annotated[bool, _Version] = False) -> None:
    """Carry the options that belong to no command; its help is that of the program."""


_Kind = TypeVar("_Kind", bound=type[Job])


@dataclass_transform(frozen_default=True, kw_only_default=True)
def command(summary: str) -> Callable[[_Kind], _Kind]:
    """Make a command of a job, a dataclass of its options; its docstring is the help."""

    def register(kind: _Kind) -> _Kind:
        dataclass(frozen=True, kw_only=True)(kind)

        def call(**given: Any) -> None:
            run_command(kind(**{name: _at_home(value, name) for name, value in given.items()}))

        known = {each.name: each for each in fields(kind)}
        names = dict.fromkeys(name for cls in kind.__mro__ for name in get_annotations(cls))
        own_first = [known[name] for name in names]
        title, hints = kind.__name__.lower(), get_type_hints(kind)
        parameters = [_parameter(each, hints[each.name], title) for each in own_first]
        call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        call.__doc__ = kind.__doc__
        app.command(title, epilog=EXIT_CODES, short_help=summary)(call)
        return kind

    return register


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _parameter(option: Field[Any], hint: Any, command: str) -> Parameter:
    name, default = option.name, option.default
    text = _HELP.get(f"{command} {name}") or _HELP[name]
    about = typer.Argument(help=text)
    if default is not MISSING or name == "out":
        least = _LEAST.get(name, 1 if hint in _COUNTS else None)
        about = typer.Option(_flag(name), help=text, min=least, **_SETTINGS.get(name, {}))
    default = Parameter.empty if default is MISSING else default
    kind, hint = Parameter.KEYWORD_ONLY, Annotated[hint, about]
    return Parameter(name, kind, default=default, annotation=hint)
