"""The options of the command line, each with its help.

The configuration file of a whole run: a table per command, and what they share above.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OptionError, truncate
from ..questions.prompts import STYLES

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
    """Return what a TOML file says about one command.

    Keys are the names of options, with ``_`` or ``-``. Above the tables stands what several
    commands share: each takes what it knows.

    Args:
        path: Of the file, ``.toml``.
        command: Such as ``"finetune"``.
        options: Command → names of its options.

    Raises:
        OptionError: No such file, not TOML, or a key that no command has; the message names the
            nearest one.
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
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."
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
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(version("llama-index-embeddings-adapted"))
        except PackageNotFoundError:  # run from a bare checkout
            print("unknown")
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
PerChunk = Annotated[int, typer.Option(min=1, help="Questions per passage, at most.")]
MaxChunks = Annotated[
    int | None,
    typer.Option(min=1, help="Ask about so many passages only, drawn evenly; all if not given."),
]
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
