"""Commands that train nothing: look at a dataset, cut it in two, move to a new base, export."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import OptionError, truncate
from . import options as o
from .options import CommandResult, Job

_SHOWN = 300  # characters of a passage


@dataclass(frozen=True, kw_only=True)
class Show(Job):
    """Show what a dataset holds: numbers, and queries with their documents, drawn at random."""

    data: o.Pairs
    number: Annotated[int, typer.Option(min=0, help="How many queries.")] = 5
    split: o.Split = "train"
    seed: o.Seed = 0

    def run(self) -> CommandResult:
        """Read, count and draw."""
        from ..data.dataset import data_statistics
        from . import inputs

        dataset = inputs.read_pairs(self.data, self.split)
        names = list(dataset.queries)
        drawn = random.Random(self.seed).sample(names, min(self.number, len(names)))
        sources = ", ".join(f"{n:,} {source}" for source, n in dataset.sources.items())
        origin = f" ({sources})" if sources else ""
        lines = [f"{len(names):,} queries{origin}, {len(dataset.corpus):,} documents"]
        shown = []
        for name in drawn:
            answers = {found: dataset.corpus[found] for found in dataset.relevant_docs[name]}
            shown.append({"query_id": name, "query": dataset.queries[name], "documents": answers})
            lines.append(f"\n{truncate(dataset.queries[name], _SHOWN)}  [{name}]")
            lines += [
                f"  → {truncate(' '.join(text.split()), _SHOWN)}  [{found}]"
                for found, text in answers.items()
            ]
        data: dict[str, Any] = {"statistics": data_statistics(dataset), "queries": shown}
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class Split(Job):
    """Cut a dataset in two: train on one file, compare on the other.

    By document, no test query asks for a document that a training query asks for: the harder test,
    and the honest one where users will ask about documents that nobody has asked about yet.
    """

    data: o.Pairs
    train: Annotated[Path, typer.Option(help="Where to write the larger part.")] = Path(
        "train.json"
    )
    test: Annotated[Path, typer.Option(help="Where to write the smaller part.")] = Path("test.json")
    share: Annotated[
        float, typer.Option(help="Of the queries, for the test: above 0, below 1.")
    ] = 0.2
    by: Annotated[str, typer.Option(help='"document", or "query".')] = "document"
    split: o.Split = "train"
    seed: o.Seed = 0

    def run(self) -> CommandResult:
        """Check both places before anything is written."""
        from ..core import files
        from . import inputs

        targets = (self.train, self.test)
        if self.by not in ("document", "query") or not 0 < self.share < 1:
            raise OptionError("expected --by document or query, and --share above 0 and below 1.")
        if self.train.resolve() == self.test.resolve():
            raise OptionError(f"--train and --test: expected two files, both are {self.test}.")
        for path in targets:
            files.check_target(path, error=OptionError)
            if path.exists():
                raise OptionError(f"{path} is there already. Name others: --train and --test.")
        dataset = inputs.read_pairs(self.data, self.split)
        parts = dataset.train_test_split(self.share, by=self.by, seed=self.seed)  # type: ignore[arg-type]
        for part, path in zip(parts, targets, strict=True):
            inputs.save_pairs(part, path)
        lines = [
            f"{path}: {len(part):,} queries, {len(part.corpus):,} documents"
            for part, path in zip(parts, targets, strict=True)
        ]
        names = zip(("train", "test"), targets, parts, strict=True)
        data = {name: {"path": str(path), "queries": len(part)} for name, path, part in names}
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class Upgrade(Job):
    """Let a new base model ask the index of an old one: nothing is embedded again.

    A map from the new model's vectors to the old one's is fitted on texts; no labels are needed.
    Serve the folder like any adapter.
    """

    old: Annotated[str, typer.Argument(help="The model in service, as in --base of finetune.")]
    new: Annotated[str, typer.Argument(help="The model that is to take over.")]
    texts: o.Source
    out: Annotated[Path, typer.Option(help="Folder of the map.")] = Path("upgrade")
    judged: Annotated[
        Path | None, typer.Option(help="A dataset: compare with a real re-embedding, too.")
    ] = None
    split: o.Split = "test"
    cache_dir: o.CacheDir = None
    quiet: o.Quiet = False

    def run(self) -> CommandResult:
        """Check, read, then load the models, fit, save, and judge."""
        from ..core import files
        from ..operations.upgrade import evaluate_upgrade, upgrade_adapter
        from ..serving.embedding import AdaptedEmbedding
        from . import inputs

        files.check_target_folder(self.out, error=OptionError)
        judged = None if self.judged is None else inputs.read_pairs(self.judged, self.split)
        texts = inputs.read_texts(self.texts, self.split)
        old, new = inputs.resolve_model(self.old), inputs.resolve_model(self.new)
        encoding: dict[str, Any] = {"cache_dir": self.cache_dir, "show_progress": not self.quiet}
        found = upgrade_adapter(old, new, texts, **encoding)
        AdaptedEmbedding(new, found.adapter).save_pretrained(self.out)
        lines = [str(found), f"adapter: {self.out}"]
        data: dict[str, Any] = {"out": str(self.out), "method": found.method, "texts": found.texts}
        data |= {"agreement": found.agreement, "cosine": found.cosine}
        if judged is not None:
            scores = evaluate_upgrade(found, old, new, judged, **encoding)
            lines.insert(1, str(scores))
            data["scores"] = scores.to_dict()
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class Export(Job):
    """Write a saved adapter for use outside LlamaIndex: see docs/export.md for its readers."""

    folder: o.Folder
    out: Annotated[Path, typer.Option(help="The file, or for sentence-transformers the folder.")]
    format: Annotated[
        str, typer.Option(help="onnx, json, numpy, sql (pgvector) or sentence-transformers.")
    ] = "onnx"
    role: Annotated[str, typer.Option(help="Whose vectors: query, or document.")] = "query"

    def run(self) -> CommandResult:
        """Read the folder, and build its base model only where that is written, too."""
        from ..adapters import saving
        from . import inputs

        adapter, base = saving.load(inputs.existing(self.folder)).adapter, None
        if self.format == "sentence-transformers":
            base = getattr(inputs.resolve_model(str(self.folder)), "base_embed_model", None)
        role: Any = self.role
        adapter.export(self.out, self.format, role=role, base=base)
        data = {"out": str(self.out), "format": self.format, "role": self.role}
        return CommandResult(f"{self.format}: {self.out}", data)
