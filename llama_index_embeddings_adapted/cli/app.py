"""The command line: arguments are parsed here, and the work is done by the library.

What all commands share: where output goes, how errors look, and what exit codes mean.

What the folder of a saved adapter says, without asking any model.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import numpy as np
import typer

from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.adapters.base import Adapter, CompositeAdapter
from llama_index_embeddings_adapted.adapters.nonparametric import NudgeAdapter
from llama_index_embeddings_adapted.cli import options as o
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.errors import AdaptedError, FolderError, OptionError

if TYPE_CHECKING:
    from llama_index_embeddings_adapted.cli.inputs import QuestionJob
    from llama_index_embeddings_adapted.evaluation.verdict import Stance, Verdict


DONE, ERROR, USAGE, AGAINST, UNPROVEN, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = """Exit codes: 0 done, and where there is a verdict it is to ship (finetune), better
(compare, of the last model) or to keep the adapter (inspect --queries); 1 an error; 2 wrong usage;
3 done, and the verdict is against it; 4 done, and nothing is proven either way; 130 interrupted.
With --exit-zero, 3 and 4 become 0."""
_CODES: dict[Stance, int] = {"for": DONE, "against": AGAINST, "open": UNPROVEN}


@dataclass(frozen=True)
class Outcome:
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


_PARTS = (
    ("overall", "all held-out queries"),
    ("known", "about documents with training questions"),
    ("new", "about documents without"),
)


def folder_facts(folder: str | Path) -> dict[str, Any]:
    """Return what is known of a saved adapter, as JSON knows it.

    Returns:
        ``adapter`` (class, shape, roles), ``base_model`` (name, dimension, fingerprint),
        ``saved_at``, ``age_days``, ``library_version``, ``format_version``, ``bytes`` per file,
        ``moved_documents`` (how many, how far; None for an adapter that moves none), ``verdict``,
        ``scores``, ``data`` and ``settings`` of the training, each None where the folder does not
        say.

    Raises:
        FolderError: Missing, damaged, foreign, or newer than this library.
    """
    path = Path(folder)
    saved = saving.load(path)
    config = folders.read_config(path) if (path / folders.CONFIG).is_file() else {}
    report = _report(saved.training, path)
    base = saved.base or {}
    return {
        "folder": str(path),
        "adapter": {
            "description": repr(saved.adapter),
            "input_dim": saved.adapter.input_dim,
            "output_dim": saved.adapter.output_dim,
            "roles": ["query", "document"] if saved.adapter.adapts_documents else ["query"],
        },
        "base_model": {key: base.get(key) for key in ("name", "dim", "fingerprint")},
        "saved_at": config.get("saved_at"),
        "age_days": _age(config.get("saved_at")),
        "library_version": config.get("library_version"),
        "format_version": config.get("format_version"),
        "bytes": {file.name: file.lstat().st_size for file in sorted(path.iterdir())},
        "moved_documents": _moved(saved.adapter),
        "verdict": report.get("verdict"),
        "saved": report.get("saved"),
        "holds": report.get("holds"),
        "scores": {key: report[key] for key, _ in _PARTS if report.get(key)} or None,
        "data": report.get("data") or None,
        "settings": report.get("settings"),
    }


def _report(training: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what is known of the training, in a form that can be shown.

    Raises:
        FolderError: It has another form.
    """
    report = training.get("report") or {}
    try:
        for key, _ in _PARTS:
            if report.get(key):
                _score(report[key])
        data = report.get("data") or {}
        sound = not data or all(isinstance(data[key], int) for key in ("queries", "documents"))
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise FolderError(
            f"{folder}: what it says of its training is damaged ({cause!r})."
        ) from cause
    if not sound:
        raise FolderError(f"{folder}: what it says of its training data is damaged.")
    return dict(report)


def facts_as_text(facts: Mapping[str, Any]) -> str:
    """Return what :func:`folder_facts` found as lines to read."""
    adapter, base, age = facts["adapter"], facts["base_model"], facts["age_days"]
    moved, data = facts["moved_documents"], facts["data"] or {}
    lines = [
        ("adapter", f"{adapter['description']}, applied to {' and '.join(adapter['roles'])}"),
        ("dimensions", f"{adapter['input_dim']} → {adapter['output_dim']}"),
        ("base model", base["name"] and f"{base['name']}, fingerprint {base['fingerprint']}"),
        ("saved", facts["saved_at"] and str(facts["saved_at"])
         + ("" if age is None else f", {age:.1f} days ago")),
        ("by version", facts["library_version"]),
        ("size", f"{sum(facts['bytes'].values()):,} bytes in {len(facts['bytes'])} files"),
        ("moved documents", moved and f"{moved['documents']:,}, by {moved['mean_drift']:.3f} on "
         f"average and {moved['largest_drift']:.3f} at most"),
        ("trained on", data and f"{data['queries']:,} queries, {data['documents']:,} documents"
         + (", written by an LLM" if data.get("synthetic") else "")),
        ("verdict", facts["verdict"]),
        ("holds", facts["holds"]),
        *((name, _score(facts["scores"][key])) for key, name in _PARTS
          if key in (facts["scores"] or {})),
    ]  # fmt: skip
    return "\n".join(f"{name}: {'unknown' if text is None else text}" for name, text in lines
                     if text or name not in ("moved documents", "trained on", "holds"))  # fmt: skip


def _score(part: Mapping[str, Any]) -> str:
    found = part["difference"]
    return (
        f"NDCG@10 {part['base']['ndcg@10']:.4f} → {part['adapted']['ndcg@10']:.4f} "
        f"[{found['low']:+.4f}, {found['high']:+.4f}], {part['queries']:,} queries"
    )


def _age(saved_at: object) -> float | None:
    try:
        moment = datetime.fromisoformat(str(saved_at))
        days = (datetime.now(timezone.utc) - moment).total_seconds() / 86_400
    except (TypeError, ValueError):  # no date, or one without a time zone
        return None
    return days if days >= 0 else None  # saved by a clock that was ahead of this one


def _moved(adapter: Adapter) -> dict[str, Any] | None:
    drifts = [
        np.linalg.norm(part.offsets, axis=1)
        for part in _parts(adapter)
        if isinstance(part, NudgeAdapter)
    ]
    if not drifts:
        return None
    lengths = np.concatenate(drifts)
    moved = lengths[lengths > 0]
    mean, largest = (float(moved.mean()), float(moved.max())) if len(moved) else (0.0, 0.0)
    return {"documents": len(moved), "mean_drift": mean, "largest_drift": largest}


def _parts(adapter: Adapter) -> Iterator[Adapter]:
    yield adapter
    if isinstance(adapter, CompositeAdapter):
        for part in adapter.parts().values():
            yield from _parts(part)


_TRAINING = ("adapts", "ship", "expect", "epochs", "batch_size", "seed", "cache_dir")

app = typer.Typer(
    name="llama-index-adapted",
    help="Train a small adapter on top of an embedding model, and know whether it helps.\n\n"
    + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def root(version: o.Version = False) -> None:
    """Carry the options that belong to no command; its help is that of the program."""


@app.command(epilog=EXIT_CODES)
def generate(
    source: o.Documents,
    out: Annotated[Path, typer.Option(help="Where to write the dataset.")] = Path("pairs.json"),
    llm: o.Llm = None,
    structure: o.Structure = False,
    base: Annotated[
        str | None,
        typer.Option(help="The embedding model, for filters that need one; none if not given."),
    ] = None,
    questions_per_chunk: o.PerChunk = 2,
    max_chunks: o.MaxChunks = None,
    chunk_size: o.ChunkSize = 512,
    chunk_overlap: o.ChunkOverlap = 50,
    styles: o.Styles = None,
    questions_per_call: o.PerCall = None,
    concurrency: o.Concurrency = None,
    round_trip_k: o.RoundTrip = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what it would cost, from a few calls.")
    ] = False,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    config: o.Config = None,
) -> None:
    """Write questions about documents: a dataset to train on."""
    given = locals()

    def work() -> Outcome:
        from llama_index_embeddings_adapted.cli import inputs
        from llama_index_embeddings_adapted.cli.inputs import QuestionJob
        from llama_index_embeddings_adapted.questions import generate as estimation

        job = QuestionJob.of(given)
        if inputs.holds_pairs(source):
            raise OptionError(f"{source} is a dataset: it has questions. Point at documents.")
        if estimate:
            found = estimation.estimate(*job.asked(), **job.options())
            return Outcome(str(found), {"estimate": vars(found)})
        dataset = job.dataset()
        inputs.save_pairs(dataset, out)
        data = {"out": str(out), "queries": len(dataset), "documents": len(dataset.corpus)}
        report = dataset.report.to_dict()
        return Outcome(f"{dataset.report}\n{dataset} in {out}", {**data, "report": report})

    conclude(work, as_json=as_json, debug=debug)


@app.command(epilog=EXIT_CODES, short_help="Train and save an adapter, and judge it.")
def finetune(
    source: o.Source,
    base: o.Base = "minilm",
    out: Annotated[Path, typer.Option(help="Folder of the adapter.")] = Path("adapter"),
    llm: o.Llm = None,
    structure: o.Structure = False,
    val: o.Val = None,
    method: o.Method = "linear",
    adapts: o.Adapts = "query",
    ship: o.Ship = "proven",
    expect: o.Expect = None,
    epochs: o.Epochs = 40,
    batch_size: o.BatchSize = 64,
    learning_rate: o.LearningRate = None,
    split: o.Split = "train",
    report: o.Report = None,
    questions_per_chunk: o.PerChunk = 2,
    max_chunks: o.MaxChunks = None,
    chunk_size: o.ChunkSize = 512,
    chunk_overlap: o.ChunkOverlap = 50,
    styles: o.Styles = None,
    questions_per_call: o.PerCall = None,
    concurrency: o.Concurrency = None,
    round_trip_k: o.RoundTrip = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = 0,
    exit_zero: o.ExitZero = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    config: o.Config = None,
) -> None:
    """Train and save an adapter, from a dataset or, with --llm, from documents.

    Questions that were written are kept in <out>.pairs.json; the page about what training found is
    written to <out>.report.html.
    """
    given = locals()

    def work() -> Outcome:
        from llama_index_embeddings_adapted.cli.inputs import QuestionJob

        job = QuestionJob.of(given)
        options = {name: given[name] for name in _TRAINING}
        options["method"] = method.split(",") if "," in method else method
        options["show_progress"] = not quiet
        options["report_path"] = _page(report, out.with_name(f"{out.name}.report.html"))
        if learning_rate is not None:
            options["learning_rate"] = learning_rate
        return _train(job, out, split, val, options)

    conclude(work, as_json=as_json, debug=debug, exit_zero=exit_zero)


@app.command(epilog=EXIT_CODES, short_help="Score one model.")
def evaluate(
    data: o.Pairs,
    model: Annotated[str, typer.Argument(help="An embedding model, as in --base of finetune.")],
    split: o.Split = "test",
    ks: o.Ks = None,
    cache_dir: o.CacheDir = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    config: o.Config = None,
) -> None:
    """Score one model: hit rate, MRR, NDCG, recall, precision and MAP."""

    def work() -> Outcome:
        from llama_index_embeddings_adapted.cli import inputs
        from llama_index_embeddings_adapted.cli import inputs as model_specs
        from llama_index_embeddings_adapted.evaluation import retrieval

        dataset = inputs.read_pairs(data, split)
        scores = retrieval.evaluate_retrieval(
            model_specs.resolve_model(model), dataset, **_search(ks, cache_dir, quiet)
        )
        return Outcome(str(scores), {"model": model, **scores.to_dict()})

    conclude(work, as_json=as_json, debug=debug)


@app.command(epilog=EXIT_CODES, short_help="Score models side by side; is it chance?")
def compare(
    data: o.Pairs,
    models: Annotated[
        list[str],
        typer.Argument(
            help="Models, as in --base of finetune, or name=model. The first is what "
            "others are compared with; a lone adapter is compared with its base."
        ),
    ],
    split: o.Split = "test",
    ks: o.Ks = None,
    report: o.Report = "comparison.html",
    title: Annotated[str, typer.Option(help="Of the page.")] = "Comparison of embedding models",
    cache_dir: o.CacheDir = None,
    exit_zero: o.ExitZero = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    config: o.Config = None,
) -> None:
    """Score models side by side, test whether the difference is chance, and write a page."""

    def work() -> Outcome:
        from llama_index_embeddings_adapted.cli import inputs
        from llama_index_embeddings_adapted.cli import inputs as model_specs
        from llama_index_embeddings_adapted.core import files
        from llama_index_embeddings_adapted.evaluation import comparison

        page = _page(report, Path("comparison.html"))
        if page is not None:
            files.check_target(page, error=OptionError)
        found = comparison.compare_retrieval(
            model_specs.named_models(models),
            inputs.read_pairs(data, split),
            **_search(ks, cache_dir, quiet),
        )
        facts = found.to_dict()
        lines = [str(found)]
        first, *others = found.scores
        lines += [f"{name}: {found.significance(first, name)}" for name in others]
        if page is not None:
            lines.append(f"report: {found.to_html(page, title=title)}")
        verdict = facts["differences"][others[-1]]["verdict"] if others else None
        facts |= {"verdict": verdict or "", "report": page and str(page)}
        return Outcome("\n".join(lines), facts, verdict)

    conclude(work, as_json=as_json, debug=debug, exit_zero=exit_zero)


@app.command(epilog=EXIT_CODES, short_help="Say what a saved adapter is; watch queries.")
def inspect(
    folder: Annotated[Path, typer.Argument(help="A saved adapter.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Build its base model and check that it is the same.")
    ] = False,
    queries: Annotated[
        Path | None,
        typer.Option(help="Live queries, one per line: have they moved away from training?"),
    ] = None,
    exit_zero: o.ExitZero = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
    config: o.Config = None,
) -> None:
    """Say what a saved adapter is, what it belongs to, how it scored and how old it is."""

    def work() -> Outcome:
        from llama_index_embeddings_adapted.cli import inputs
        from llama_index_embeddings_adapted.cli import inputs as model_specs

        facts = folder_facts(folder)
        text, verdict = facts_as_text(facts), None
        if verify:
            model_specs.resolve_model(str(folder))
            facts["verified"] = True
            text += "\nverified: the base model gives the vectors it gave in training"
        if queries is not None:
            from llama_index_embeddings_adapted.operations.monitoring import inspect_queries

            drift = inspect_queries(folder, inputs.read_lines(queries), show_progress=not quiet)
            facts["live_queries"], verdict = drift.to_dict(), drift.verdict
            text += f"\nlive queries: {verdict}"
        return Outcome(text, facts, verdict)

    conclude(work, as_json=as_json, debug=debug, exit_zero=exit_zero)


def main() -> None:
    """Run the command line."""
    app()


def _train(
    job: QuestionJob, out: Path, split: str, val: Path | None, options: dict[str, Any]
) -> Outcome:
    from llama_index_embeddings_adapted.cli import inputs
    from llama_index_embeddings_adapted.core import files
    from llama_index_embeddings_adapted.core import files as folder
    from llama_index_embeddings_adapted.data.dataset import EmbeddingQAFinetuneDataset
    from llama_index_embeddings_adapted.training.engine import EmbeddingAdapterFinetuneEngine

    page = options["report_path"]
    job.check()
    folder.check_target_folder(out)
    if page is not None:
        files.check_target(page, error=OptionError)
    options["val_dataset"] = None if val is None else inputs.read_pairs(val, split)
    options["model_output_path"] = out
    assert job.model is not None  # the option has a default
    if not inputs.holds_pairs(job.source):  # refuse options before minutes of an LLM are spent
        any_pair = EmbeddingQAFinetuneDataset({"q": "?"}, {"d": "."}, {"q": ["d"]})
        EmbeddingAdapterFinetuneEngine(any_pair, job.model, **options)
    dataset = job.dataset(split)
    if not inputs.holds_pairs(job.source):
        inputs.save_pairs(dataset, out.with_name(f"{out.name}.pairs.json"))
    engine = EmbeddingAdapterFinetuneEngine(dataset, job.model, **options)
    engine.finetune()
    found = engine.report
    lines = [str(found), f"adapter: {out}", *([f"report: {page}"] if page else [])]
    data = {"out": str(out), "report_path": page and str(page), **found.to_dict()}
    return Outcome("\n".join(lines), data, found.verdict)


def _page(report: str | None, default: Path) -> Path | None:
    """Return where the page goes, None for nowhere."""
    if report is not None and report.lower() == "none":
        return None
    return default if report is None else Path(report)


def _search(ks: list[int] | None, cache_dir: str | None, quiet: bool) -> dict[str, Any]:
    cuts = {"ks": tuple(ks)} if ks else {}
    return {**cuts, "cache_dir": cache_dir, "show_progress": not quiet}
