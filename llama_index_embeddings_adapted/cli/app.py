"""The command line: each command is a class whose fields are its options, and ``run`` its work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from . import options as o
from .commands import Export, Show, Split, Upgrade
from .options import EXIT_CODES, CommandResult, Job, command

if TYPE_CHECKING:
    from ..data.dataset import EmbeddingQAFinetuneDataset

app = typer.Typer(
    name="llama-index-adapted",
    help="Train a small adapter on top of an embedding model, and know whether it helps.\n\n"
    + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def root(version: o.Version = False) -> None:
    """Carry the options that belong to no command; its help is that of the program."""


command(app, "Show queries of a dataset with their documents.")(Show)
command(app, "Cut a dataset into one to train on and one to test on.")(Split)


@dataclass(frozen=True, kw_only=True)
class EmbeddingJob(Job):
    """The options of commands that embed texts."""

    cache_dir: o.CacheDir = None
    quiet: o.Quiet = False

    @property
    def _encoding(self) -> dict[str, Any]:
        return {"cache_dir": self.cache_dir, "show_progress": not self.quiet}


@dataclass(frozen=True, kw_only=True)
class QuestionJob(EmbeddingJob):
    """The options of commands that may have questions written about documents."""

    llm: o.Llm = None
    structure: o.Structure = False
    examples: o.Examples = None
    questions_per_chunk: o.PerChunk = None
    max_chunks: o.MaxChunks = None
    chunk_size: o.ChunkSize = None
    chunk_overlap: o.ChunkOverlap = None
    styles: o.Styles = None
    questions_per_call: o.PerCall = None
    concurrency: o.Concurrency = None
    round_trip_k: o.RoundTrip = None
    estimate: o.Estimate = False
    seed: o.Seed = 0

    def _check_way(self, source: Path) -> None:
        """Check that a way leads from documents to questions.

        Raises:
            OptionError: None does; or an LLM that nothing is known by.
            MissingExtraError: The package of the LLM is not installed.
        """
        from . import inputs

        if self.llm is None and not self.structure:
            raise OptionError(
                f"{source} holds documents: pass --llm to have questions written, --structure to "
                f"take them from headings, or both. --llm takes {o.LLMS}."
            )
        if self.examples is not None and self.llm is None:
            raise OptionError("--examples: what an LLM is to imitate. Pass --llm.")
        if self.llm is not None:
            inputs.resolve_writer(self.llm)  # which asks nothing
        if self.estimate and self.llm is None:
            raise OptionError("--estimate: questions from headings cost nothing. Pass --llm.")
        if self.examples is not None:
            from ..questions import options

            options.read_examples(inputs.existing(self.examples))

    def _written(self, documents: Any, model: Any) -> Any:
        """Return a dataset of questions about documents, or the estimate of what one would cost."""
        from ..questions import generate, structure
        from . import inputs

        filters: dict[str, Any] = {"embed_model": model, "seed": self.seed, **self._encoding}
        if self.round_trip_k is not None:
            filters["round_trip_k"] = self.round_trip_k
        if self.llm is None:
            return structure.pairs_from_structure(documents, **filters)
        passages = inputs.cut(documents, model, self.chunk_size, self.chunk_overlap)
        writer = inputs.resolve_writer(self.llm)
        settings = dict(writer.settings)
        if self.examples is not None and "max_chunks" in settings:
            settings["max_chunks"] *= 2  # a call takes less than half as long
        given = {name: getattr(self, field) for field, name in _OF_WRITING.items()}
        named = {name: value for name, value in given.items() if value is not None}
        options = {**settings, **named, **filters, "structure": self.structure}
        make = generate.estimate if self.estimate else generate.generate_qa_embedding_pairs
        return make(passages, writer.llm, **options)


#: Else what suits the LLM.
_OF_WRITING = {
    name: name for name in ("examples", "styles", "questions_per_call", "concurrency", "max_chunks")
} | {"questions_per_chunk": "num_questions_per_chunk"}


@command(app, "Write questions about documents.")
@dataclass(frozen=True, kw_only=True)
class Generate(QuestionJob):
    """Write questions about documents: a dataset to train on."""

    source: o.Documents
    out: Annotated[Path, typer.Option(help="Where to write the dataset.")] = Path("pairs.json")
    base: Annotated[
        str | None,
        typer.Option(help="The embedding model, for filters that need one; none if not given."),
    ] = None

    def run(self) -> CommandResult:
        """Check, then read the documents, then load the model, then ask."""
        from ..core import files
        from . import inputs

        if inputs.holds_pairs(self.source):
            raise OptionError(f"{self.source} is a dataset: it has questions. Point at documents.")
        self._check_way(self.source)
        if not self.estimate:
            files.check_target(self.out, error=OptionError)
        documents = inputs.read_documents(self.source)
        inputs.check_cut(self.chunk_size, self.chunk_overlap)
        model = None if self.base is None else inputs.resolve_model(self.base)
        dataset = self._written(documents, model)
        if self.estimate:
            return CommandResult(str(dataset), {"estimate": vars(dataset)})
        inputs.save_pairs(dataset, self.out)
        data = {"out": str(self.out), "queries": len(dataset), "documents": len(dataset.corpus)}
        report = dataset.report
        return CommandResult(
            f"{report}\n{dataset} in {self.out}", {**data, "report": report.to_dict()}
        )


@command(app, "Train and save an adapter, and judge it.")
@dataclass(frozen=True, kw_only=True)
class Finetune(QuestionJob):
    """Train and save an adapter, from a dataset or, with --llm, from documents.

    Questions that were written are kept in <out>.pairs.json; the page about what training found is
    written to <out>.report.html. Where the verdict is against the adapter that was chosen,
    <out> holds the base model, and the adapter is kept in <out>.candidate: see ship.
    """

    source: o.Source
    base: o.Base = "minilm"
    out: Annotated[Path, typer.Option(help="Folder of the adapter.")] = Path("adapter")
    val: o.Val = None
    method: o.Method = None
    adapts: o.Adapts = "query"
    ship: o.Ship = "proven"
    expect: o.Expect = None
    epochs: o.Epochs = None
    batch_size: o.BatchSize = None
    learning_rate: o.LearningRate = None
    split: o.Split = "train"
    report: o.Report = None
    exit_zero: o.ExitZero = False

    def run(self) -> CommandResult:
        """Check, then read the data, then load the model, then train."""
        from ..operations.folder import inspect_adapter
        from ..training.engine import EmbeddingAdapterFinetuneEngine
        from . import inputs

        dataset, documents = self._data()
        page = _page(self.report, self.out.with_name(f"{self.out.name}.report.html"))
        self._check_targets(page)
        options = self._training()
        val = None if self.val is None else inputs.read_pairs(self.val, self.split)
        model = inputs.resolve_model(self.base)
        lines: list[str] = []
        if dataset is None:
            dataset = self._written(documents, model)
            if self.estimate:
                return CommandResult(str(dataset), {"estimate": vars(dataset)})
            inputs.save_pairs(dataset, self.out.with_name(f"{self.out.name}.pairs.json"))
            val, lines = self._judges(val, dataset), [f"{dataset.report}\n"]
        engine = EmbeddingAdapterFinetuneEngine(
            dataset, model, model_output_path=self.out, val_dataset=val, **options, **self._encoding
        )
        engine.finetune()
        found, facts = engine.report, inspect_adapter(self.out)
        if page is not None:
            found.to_html(page, title=f"Adapter {self.out.name}: {self.base} on {self.source.name}")
        lines += [str(found), f"adapter: {self.out}"]
        if facts["saved"] == "base" and facts["candidate"]:
            lines.append(f"to put the candidate there: llama-index-adapted ship {self.out}")
        lines += [f"report: {page}"] if page else []
        data = {"out": str(self.out), "report_path": page and str(page), **found.to_dict()}
        return CommandResult("\n".join(lines), data, found.verdict)

    def _data(self) -> tuple[EmbeddingQAFinetuneDataset | None, Any]:
        """Return the dataset, or the documents to make one of."""
        from . import inputs

        if not inputs.holds_pairs(self.source):
            self._check_way(self.source)
            inputs.check_cut(self.chunk_size, self.chunk_overlap)
            return None, inputs.read_documents(self.source)
        if self.llm is not None or self.structure or self.estimate:
            raise OptionError(
                f"{self.source} is a dataset: it has questions. Leave out --llm, --structure and "
                "--estimate, or point at documents."
            )
        return inputs.read_pairs(self.source, self.split), None

    def _judges(
        self, val: EmbeddingQAFinetuneDataset | None, written: EmbeddingQAFinetuneDataset
    ) -> EmbeddingQAFinetuneDataset | None:
        """Return the real queries that judge, without those that the writer was shown.

        They are those of --val, or those of --examples from 100 on.
        """
        from . import inputs

        if self.examples is None or (val is None and self.examples.suffix.lower() == ".txt"):
            return val
        fewest = FEWEST_JUDGES if val is None else 1
        real = inputs.read_pairs(self.examples, self.split) if val is None else val
        shown = {example.query for example in written.report.shown}
        rest = [q for q, text in real.queries.items() if " ".join(text.split()) not in shown]
        if len(rest) < fewest:
            return None
        return real.subset(rest).model_copy(update={"corpus": {**written.corpus, **real.corpus}})

    def _check_targets(self, page: Path | None) -> None:
        from ..core import files

        for folder in (self.out, self.out.with_name(f"{self.out.name}.candidate")):
            files.check_target_folder(folder, error=OptionError)
        if page is not None:
            files.check_target(page, error=OptionError)

    def _training(self) -> dict[str, Any]:
        """Return the options of the training, checked."""
        from ..training.auto.search_space import check_method
        from ..training.options import AdapterOptions, implied_method

        named = {name: getattr(self, name) for name in _OF_TRAINING}
        options = {name: value for name, value in named.items() if value is not None}
        method = self.method or implied_method(options)
        options["method"] = method.split(",") if "," in method else method
        check_method(AdapterOptions(**options))
        return options


FEWEST_JUDGES = 100  # real queries prove more than many written ones, from here on
_OF_TRAINING = (
    "adapts", "ship", "expect", "epochs", "batch_size", "learning_rate", "seed",
)  # fmt: skip


@command(app, "Score one model.")
@dataclass(frozen=True, kw_only=True)
class Evaluate(EmbeddingJob):
    """Score one model: hit rate, MRR, NDCG, recall, precision and MAP."""

    data: o.Pairs
    model: Annotated[str, typer.Argument(help="A model, as in compare.")]
    split: o.Split = "test"
    ks: o.Ks = None

    def run(self) -> CommandResult:
        """Read the data, then load the model."""
        from ..evaluation.retrieval import evaluate_retrieval
        from . import inputs

        dataset = inputs.read_pairs(self.data, self.split)
        *_, model = inputs.named_models([self.model], dataset.corpus).values()
        scores = evaluate_retrieval(model, dataset, **_cuts(self.ks), **self._encoding)
        return CommandResult(str(scores), {"model": self.model, **scores.to_dict()})


@command(app, "Score models side by side, with significance tests.")
@dataclass(frozen=True, kw_only=True)
class Compare(EmbeddingJob):
    """Score models side by side, and test whether the difference is chance.

    Nothing is written, unless --report names a page.
    """

    data: o.Pairs
    models: Annotated[
        list[str],
        typer.Argument(
            help="Models, as in --base of finetune, or name=model; bm25 for words, model+bm25 for "
            "both. The first is what others are compared with; a lone adapter has its base, as has "
            "a lone model+bm25."
        ),
    ]
    split: o.Split = "test"
    ks: o.Ks = None
    report: o.Report = None
    title: Annotated[
        str | None, typer.Option(help="Of the page; names of models and data if none.")
    ] = None
    exit_zero: o.ExitZero = False

    def run(self) -> CommandResult:
        """Check the page's place, read the data, then load the models."""
        from ..core import files
        from ..evaluation.comparison import compare_retrieval
        from . import inputs

        page = _page(self.report, None)
        if page is not None:
            files.check_target(page, error=OptionError)
        dataset = inputs.read_pairs(self.data, self.split)
        models = inputs.named_models(self.models, dataset.corpus)
        found = compare_retrieval(models, dataset, **_cuts(self.ks), **self._encoding)
        facts = found.to_dict()
        first, *others = found.scores
        differences = {name: found.significance(first, name) for name in others}
        lines = [str(found), *(f"{name}: {each}" for name, each in differences.items())]
        if page is not None:
            title = self.title or f"{', '.join(found.scores)} on {self.data.name}"
            lines.append(f"report: {found.to_html(page, title=title)}")
        verdict = differences[others[-1]].verdict if others else None
        data = {**facts, "verdict": verdict or "", "report": page and str(page)}
        return CommandResult("\n".join(lines), data, verdict)


@command(app, "Say what a saved adapter is; watch queries.")
@dataclass(frozen=True, kw_only=True)
class Inspect(EmbeddingJob):
    """Say what a saved adapter is, what it belongs to, how it scored and how old it is."""

    folder: o.Folder
    verify: Annotated[
        bool, typer.Option("--verify", help="Build its base model and check that it is the same.")
    ] = False
    queries: Annotated[
        Path | None,
        typer.Option(help="Live queries, one per line: have they moved away from training?"),
    ] = None
    exit_zero: o.ExitZero = False

    def run(self) -> CommandResult:
        """Read the folder, and ask its base model only where that is asked for."""
        from ..data.reading import read_lines
        from ..operations.folder import as_text, inspect_adapter
        from . import inputs

        facts, verdict = inspect_adapter(inputs.existing(self.folder)), None
        text = as_text(facts)
        lines = " Expected one query per line."
        live = None if self.queries is None else read_lines(inputs.existing(self.queries, lines))
        if self.verify:
            inputs.resolve_model(str(self.folder))
            facts["verified"] = True
            text += "\nverified: the base model gives the vectors it gave in training"
        if live is not None:
            from ..operations.monitoring import inspect_queries

            drift = inspect_queries(self.folder, live, **self._encoding)
            facts["live_queries"], verdict = drift.to_dict(), drift.verdict
            text += f"\nlive queries: {verdict}"
        return CommandResult(text, facts, verdict)


@command(app, "Put a candidate into its folder.")
@dataclass(frozen=True, kw_only=True)
class Ship(Job):
    """Put the candidate that finetune --method auto kept beside a folder into the folder.

    The verdict was against it, or open: judge it on queries of your own first, with compare.
    """

    folder: o.Folder

    def run(self) -> CommandResult:
        """Promote the candidate."""
        from ..operations.folder import as_text, inspect_adapter, ship_candidate
        from . import inputs

        ship_candidate(inputs.existing(self.folder))
        facts = inspect_adapter(self.folder)
        return CommandResult(as_text(facts), facts)


command(app, "Let a new base model ask an old index.")(Upgrade)
command(app, "Write an adapter for use elsewhere.")(Export)


def main() -> None:
    """Run the command line."""
    app()


def _page(report: str | None, default: Path | None) -> Path | None:
    """Return where the page goes, None for nowhere."""
    if report is not None and report.lower() == "none":
        return None
    return default if report is None else Path(report)


def _cuts(ks: list[int] | None) -> dict[str, Any]:
    return {"ks": tuple(ks)} if ks else {}
