"""The command line: each command is a class whose fields are its options, and ``run`` its work."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, truncate
from .options import LLMS, READ, WRITING, WRITTEN, CommandResult, EmbeddingJob, Job, app, command

if TYPE_CHECKING:
    from ..data.dataset import EmbeddingQAFinetuneDataset as Dataset

_SHOWN = 300  # characters of a passage
_FEWEST_JUDGES = 100  # examples that say better than written questions when to stop


@dataclass(frozen=True, kw_only=True)
class DataJob(Job):
    """The options of commands that read a dataset."""

    split: str = "train"
    columns: list[str] | None = None

    def _pairs(self, path: Path) -> Dataset:
        from .inputs import read_pairs

        return read_pairs(path, self.split, self.columns or ())


@command("Show queries of a dataset with their documents.")
class Show(DataJob):
    """Show what a dataset holds: numbers, and queries with their documents, drawn at random."""

    data: Path
    number: int = 5
    seed: int = 0

    def run(self) -> CommandResult:
        from ..data.dataset import data_statistics

        dataset = self._pairs(self.data)
        sources = ", ".join(f"{n:,} {source}" for source, n in dataset.sources.items())
        origin = sources and f" ({sources})"
        lines = [f"{len(dataset):,} queries{origin}, {len(dataset.corpus):,} documents"]
        shown = []
        count = min(self.number, len(dataset))
        for name in random.Random(self.seed).sample([*dataset.queries], count):
            query = dataset.queries[name]
            answers = {found: dataset.corpus[found] for found in dataset.relevant_docs[name]}
            shown.append({"query_id": name, "query": query, "documents": answers})
            lines.append(f"\n{truncate(query, _SHOWN)}  [{name}]")
            said = ((truncate(" ".join(t.split()), _SHOWN), found) for found, t in answers.items())
            lines += [f"  → {text}  [{found}]" for text, found in said]
        data = {"statistics": data_statistics(dataset), "queries": shown}
        return CommandResult("\n".join(lines), data)


@command("Cut a dataset into one to train on and one to test on.")
class Split(DataJob):
    """Cut a dataset in two: train on one file, compare on the other.

    By document, no test query asks for a document that a training query asks for: the harder test,
    and the honest one where users will ask about documents that nobody has asked about yet.
    """

    data: Path
    train: Path = Path("train.json")
    test: Path = Path("test.json")
    share: float = 0.2
    by: str = "document"
    seed: int = 0

    def run(self) -> CommandResult:
        from . import inputs

        if self.by not in ("document", "query") or not 0 < self.share < 1:
            raise OptionError("expected --by document or query, and --share above 0 and below 1.")
        if self.train.resolve() == self.test.resolve():
            raise OptionError(f"--train and --test: expected two files, both are {self.test}.")
        for path in (self.train, self.test):
            inputs.check_dataset(path)
            if path.exists():
                raise OptionError(f"{path} is there already. Name others: --train and --test.")
        dataset = self._pairs(self.data)
        by: Any = self.by
        parts = dataset.train_test_split(self.share, by=by, seed=self.seed)
        lines, data = [], {}
        for name, part in zip(("train", "test"), parts, strict=True):
            path = getattr(self, name)
            inputs.save_pairs(part, path)
            lines.append(f"{path}: {len(part):,} queries, {len(part.corpus):,} documents")
            data[name] = {"path": str(path), "queries": len(part)}
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class QuestionJob(EmbeddingJob, DataJob):
    """The options of commands that may have questions written about documents."""

    llm: str | None = None
    structure: bool = False
    examples: Path | None = None
    questions_per_chunk: int | None = None
    max_chunks: int | None = None
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    styles: list[str] | None = None
    questions_per_call: int | None = None
    concurrency: int | None = None
    round_trip_k: int | None = None
    estimate: bool = False
    seed: int = 0

    def _documents(self, source: Path) -> Any:
        """Read documents, or raise an OptionError where no way leads from them to questions."""
        from ..questions import options
        from . import inputs

        if self.llm is not None:
            inputs.resolve_writer(self.llm)  # which asks nothing
        elif not self.structure:
            ways = "pass --llm to have questions written, --structure to take them from headings"
            raise OptionError(f"{source} holds documents: {ways}, or both. --llm takes {LLMS}.")
        elif self.examples is not None:
            raise OptionError("--examples: what an LLM is to imitate. Pass --llm.")
        elif self.estimate:
            raise OptionError("--estimate: questions from headings cost nothing. Pass --llm.")
        else:
            self.unheeded("headings are taken as they are", *WRITING)
        if self.examples is not None:
            options.read_examples(self._asked(inputs.existing(self.examples)))
        size = self.chunk_size or inputs.USUAL_CHUNK
        if (self.chunk_overlap or 0) >= size:
            raise OptionError(
                f"chunk_overlap: expected a number from 0 to below chunk_size ({size}), "
                f"got {self.chunk_overlap}."
            )
        return inputs.read_documents(source, self.paths(*WRITTEN), self.paths(*READ))

    def _asked(self, examples: Path) -> Any:
        """Return queries without passages, or a dataset."""
        from . import inputs

        return inputs.asked_in(examples, self._pairs, inputs.roles_of(self.columns or ()))

    def _written(self, documents: Any, model: Any) -> Any:
        """Return a dataset of questions about documents, or the estimate of what one would cost."""
        from ..questions import generate, structure
        from . import inputs

        filters = {"embed_model": model, **self.given("seed", "round_trip_k"), **self._encoding}
        if self.llm is None:
            return structure.pairs_from_structure(documents, **filters)
        passages = inputs.cut(documents, model, self.chunk_size, self.chunk_overlap)
        llm, suited = inputs.resolve_writer(self.llm)
        options = dict(suited)
        if self.examples is not None:
            options = {k: v for k, v in suited.items() if k not in ("styles", "questions_per_call")}
            options["examples"] = self._asked(self.examples)
            if "max_chunks" in options:
                options["max_chunks"] *= 2  # a call takes less than half as long
        named = ("styles", "questions_per_call", "concurrency", "max_chunks", "structure")
        options |= self.given(*named)
        if self.questions_per_chunk is not None:
            options["num_questions_per_chunk"] = self.questions_per_chunk
        make = generate.estimate if self.estimate else generate.generate_qa_embedding_pairs
        return make(passages, llm, **options, **filters)


@command("Write questions about documents.")
class Generate(QuestionJob):
    """Write questions about documents: a dataset to train on."""

    source: Path
    out: Path = Path("pairs.json")
    base: str | None = None

    def run(self) -> CommandResult:
        from . import inputs

        if inputs.holds_pairs(self.source):
            raise OptionError(f"{self.source} is a dataset: it has questions. Point at documents.")
        if not self.estimate:
            inputs.check_dataset(self.out)
        documents = self._documents(self.source)
        model = None if self.base is None else inputs.resolve_model(self.base)
        dataset = self._written(documents, model)
        if self.estimate:
            return CommandResult(str(dataset), {"estimate": vars(dataset)})
        inputs.save_pairs(dataset, self.out)
        data = {"out": str(self.out), "queries": len(dataset), "documents": len(dataset.corpus)}
        data["report"] = dataset.report.to_dict()
        return CommandResult(f"{dataset.report}\n{dataset} in {self.out}", data)


@command("Train and save an adapter, and judge it.")
class Finetune(QuestionJob):
    """Train and save an adapter, from a dataset or, with --llm, from documents.

    Questions that were written are kept in <out>.pairs.json; the page about what training found is
    written to <out>.report.html. Where the verdict is against the adapter that was chosen,
    <out> holds the base model, and the adapter is kept in <out>.candidate: see ship.
    """

    source: Path
    base: str = "minilm"
    out: Path = Path("adapter")
    val: Path | None = None
    method: str | None = None
    adapts: str = "query"
    ship: str = "proven"
    expect: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    report: str | None = None
    exit_zero: bool = False

    def run(self) -> CommandResult:
        """Check, then read the data, then load the model, then train."""
        from ..operations.folder import inspect_adapter
        from ..training.engine import EmbeddingAdapterFinetuneEngine
        from . import inputs

        dataset = documents = None
        if not inputs.holds_pairs(self.source):
            documents = self._documents(self.source)
        elif self.llm is not None or self.structure or self.estimate:
            left = "Leave out --llm, --structure and --estimate, or point at documents."
            raise OptionError(f"{self.source} is a dataset: it has questions. {left}")
        else:
            dataset = self._pairs(self.source)
            self.unheeded(f"{self.source} is a dataset", "examples", "round_trip_k", *WRITING)
        inputs.check_apart(self.out, self.base)
        inputs.check_target_folder(self._beside("candidate"))
        page = inputs.page(self.report, self._beside("report.html"), self.out, self.paths(*READ))
        options = self._training()
        val = None if self.val is None else self._pairs(self.val)
        model = inputs.resolve_model(self.base)
        lines: list[str] = []
        if dataset is None:
            dataset = self._written(documents, model)
            if self.estimate:
                return CommandResult(str(dataset), {"estimate": vars(dataset)})
            inputs.save_pairs(dataset, self._beside("pairs.json"))
            val, lines = self._judges(val, dataset, options["method"]), [f"{dataset.report}\n"]
        options |= {"model_output_path": self.out, "val_dataset": val, **self._encoding}
        engine = EmbeddingAdapterFinetuneEngine(dataset, model, **options)
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

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name}.{ending}")

    def _judges(self, val: Dataset | None, written: Dataset, method: Any) -> Dataset | None:
        """Return the queries of --val or of --examples, less those that the writer was shown."""
        if self.examples is None:
            return val
        if isinstance(real := val or self._asked(self.examples), list):
            return None  # without passages they judge nothing
        rest = written.report.not_shown(real.queries)
        if not rest or (val is None and method == "linear" and len(real) < _FEWEST_JUDGES):
            return None
        return real.subset(rest).model_copy(update={"corpus": {**written.corpus, **real.corpus}})

    def _training(self) -> dict[str, Any]:
        from ..training.auto.search_space import check_method
        from ..training.options import TrainingOptions, implied_method

        named = ("adapts", "ship", "expect", "epochs", "batch_size", "learning_rate", "seed")
        options = self.given(*named)
        method = self.method or implied_method(options)
        options["method"] = method.split(",") if "," in method else method
        check_method(TrainingOptions(**options))
        return options


@command("Score one model.")
class Evaluate(EmbeddingJob, DataJob):
    """Score one model: mean hit rate, MRR, NDCG, recall, precision and MAP; NDCG@10 decides."""

    data: Path
    model: str
    split: str = "test"
    ks: list[int] | None = None

    def run(self) -> CommandResult:
        from ..evaluation.retrieval import evaluate_retrieval
        from . import inputs

        dataset = self._pairs(self.data)
        *_, model = inputs.named_models([self.model], dataset.corpus).values()
        scores = evaluate_retrieval(model, dataset, **self.given("ks"), **self._encoding)
        return CommandResult(str(scores), {"model": self.model, **scores.to_dict()})


@command("Score models side by side, with significance tests.")
class Compare(EmbeddingJob, DataJob):
    """Score models side by side, and test whether the difference is chance.

    Nothing is written, unless --report names a page.
    """

    data: Path
    models: list[str]
    split: str = "test"
    ks: list[int] | None = None
    report: str | None = None
    title: str | None = None
    exit_zero: bool = False

    def run(self) -> CommandResult:
        from ..evaluation.comparison import compare_retrieval
        from . import inputs

        page = inputs.page(self.report, None, read=self.paths(*READ))
        dataset = self._pairs(self.data)
        models = inputs.named_models(self.models, dataset.corpus)
        found = compare_retrieval(models, dataset, **self.given("ks"), **self._encoding)
        first, *others = found.scores
        differences = {name: found.significance(first, name) for name in others}
        lines = [str(found), *(f"{name} against {first}: {d}" for name, d in differences.items())]
        if page is not None:
            title = self.title or f"{', '.join(found.scores)} on {self.data.name}"
            lines.append(f"report: {found.to_html(page, title=title)}")
        verdict = differences[others[-1]].verdict if others else None
        data = {**found.to_dict(), "verdict": verdict or "", "report": page and str(page)}
        return CommandResult("\n".join(lines), data, verdict)


@command("Say what a saved adapter is; watch queries.")
class Inspect(EmbeddingJob):
    """Say what a saved adapter is, what it belongs to, how it scored and how old it is."""

    folder: Path
    verify: bool = False
    queries: Path | None = None
    columns: list[str] | None = None
    exit_zero: bool = False

    def run(self) -> CommandResult:
        from ..operations.folder import as_text, inspect_adapter
        from . import inputs

        facts, verdict = inspect_adapter(inputs.existing(self.folder)), None
        text = as_text(facts)
        live: Any = self.queries and inputs.read_queries(self.queries, self.columns or ())
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


@command("Put a candidate into its folder.")
class Ship(Job):
    """Put the candidate that finetune --method auto kept beside a folder into the folder.

    The verdict was against it, or open: judge it on queries of your own first, with compare.
    """

    folder: Path

    def run(self) -> CommandResult:
        from ..operations.folder import as_text, inspect_adapter, ship_candidate
        from . import inputs

        facts = inspect_adapter(ship_candidate(inputs.existing(self.folder)))
        return CommandResult(as_text(facts), facts)


@command("Let a new base model ask an old index.")
class Upgrade(EmbeddingJob, DataJob):
    """Let a new base model ask the index of an old one: nothing is embedded again.

    A map from the new model's vectors to the old one's is fitted on texts; no labels are needed.
    Serve the folder like any adapter.
    """

    old: str
    new: str
    texts: Path
    out: Path = Path("upgrade")
    judged: Path | None = None
    split: str = "test"

    def run(self) -> CommandResult:
        from ..operations.upgrade import evaluate_upgrade, upgrade_adapter
        from ..serving.embedding import AdaptedEmbedding
        from . import inputs

        inputs.check_apart(self.out, self.old, self.new)
        judged = None if self.judged is None else self._pairs(self.judged)
        texts = inputs.read_texts(self.texts, self._pairs)
        old, new = inputs.resolve_model(self.old), inputs.resolve_model(self.new)
        found = upgrade_adapter(old, new, texts, **self._encoding)
        AdaptedEmbedding(new, found.adapter).save_pretrained(self.out)
        lines = [str(found), f"adapter: {self.out}"]
        named = ("method", "texts", "agreement", "cosine")
        data = {"out": str(self.out), **{name: getattr(found, name) for name in named}}
        if judged is not None:
            scores = evaluate_upgrade(found, old, new, judged, **self._encoding)
            lines.insert(1, str(scores))
            data["scores"] = scores.to_dict()
        return CommandResult("\n".join(lines), data)


@command("Write an adapter for use elsewhere.")
class Export(Job):
    """Write a saved adapter for use outside LlamaIndex: see docs/export.md for its readers."""

    folder: Path
    out: Path
    format: str | None = None
    role: str = "query"

    def run(self) -> CommandResult:
        from ..adapters import saving
        from ..adapters.export import format_of
        from . import inputs

        adapter, base = saving.load(inputs.existing(self.folder)).adapter, None
        if (format := self.format or format_of(self.out)) == "sentence-transformers":
            base = getattr(inputs.resolve_model(str(self.folder)), "base_embed_model", None)
        settings: Any = {"format": format, "role": self.role}
        adapter.export(self.out, base=base, **settings)
        return CommandResult(f"{format}: {self.out}", {"out": str(self.out), **settings})


def main() -> None:
    """Run the command line."""
    app()
