"""The command line: arguments are parsed here, and the work is done by the library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_embeddings_adapted import cli_options as o
from llama_index_embeddings_adapted.cli_frame import EXIT_CODES, Outcome, conclude
from llama_index_embeddings_adapted.errors import OptionError

if TYPE_CHECKING:
    from llama_index_embeddings_adapted.question_job import QuestionJob

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
        bool, typer.Option("--estimate", help="Only say what it would cost, from one call.")
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
        from llama_index_embeddings_adapted import estimation, inputs
        from llama_index_embeddings_adapted.question_job import QuestionJob

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
        from llama_index_embeddings_adapted.question_job import QuestionJob

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
        from llama_index_embeddings_adapted import evaluation, inputs, model_specs

        dataset = inputs.read_pairs(data, split)
        scores = evaluation.evaluate_retrieval(
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
        from llama_index_embeddings_adapted import comparison, files, inputs, model_specs

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
        verdict = facts["differences"][others[-1]]["verdict"] if others else ""
        return Outcome(
            "\n".join(lines), {**facts, "verdict": verdict, "report": page and str(page)}, verdict
        )

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
        from llama_index_embeddings_adapted import folder_facts, inputs, model_specs

        facts = folder_facts.folder_facts(folder)
        text, verdict = folder_facts.facts_as_text(facts), ""
        if verify:
            model_specs.resolve_model(str(folder))
            facts["verified"] = True
            text += "\nverified: the base model gives the vectors it gave in training"
        if queries is not None:
            from llama_index_embeddings_adapted.watching import inspect_queries

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
    from llama_index_embeddings_adapted import files, folder, inputs
    from llama_index_embeddings_adapted.dataset import EmbeddingQAFinetuneDataset
    from llama_index_embeddings_adapted.engines import EmbeddingAdapterFinetuneEngine

    page = options["report_path"]
    job.check()
    folder.check_target(out)
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


if __name__ == "__main__":
    main()
