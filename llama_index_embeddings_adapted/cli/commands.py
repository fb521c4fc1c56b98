"""Commands that train nothing: look at a dataset, cut it in two, move to a new base, export."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError, truncate
from .options import CommandResult, EmbeddingJob, Job

_SHOWN = 300  # characters of a passage


@dataclass(frozen=True, kw_only=True)
class Show(Job):
    """Show what a dataset holds: numbers, and queries with their documents, drawn at random."""

    data: Path
    number: int = 5
    split: str = "train"
    seed: int = 0

    def run(self) -> CommandResult:
        from ..data.dataset import data_statistics
        from . import inputs

        dataset = inputs.read_pairs(self.data, self.split)
        sources = ", ".join(f"{n:,} {source}" for source, n in dataset.sources.items())
        origin = f" ({sources})" if sources else ""
        lines = [f"{len(dataset):,} queries{origin}, {len(dataset.corpus):,} documents"]
        shown = []
        names = list(dataset.queries)
        for name in random.Random(self.seed).sample(names, min(self.number, len(names))):
            query = dataset.queries[name]
            answers = {found: dataset.corpus[found] for found in dataset.relevant_docs[name]}
            shown.append({"query_id": name, "query": query, "documents": answers})
            lines.append(f"\n{truncate(query, _SHOWN)}  [{name}]")
            lines += [
                f"  → {truncate(' '.join(text.split()), _SHOWN)}  [{found}]"
                for found, text in answers.items()
            ]
        data = {"statistics": data_statistics(dataset), "queries": shown}
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class Split(Job):
    """Cut a dataset in two: train on one file, compare on the other.

    By document, no test query asks for a document that a training query asks for: the harder test,
    and the honest one where users will ask about documents that nobody has asked about yet.
    """

    data: Path
    train: Path = Path("train.json")
    test: Path = Path("test.json")
    share: float = 0.2
    by: str = "document"
    split: str = "train"
    seed: int = 0

    def run(self) -> CommandResult:
        from . import inputs

        if self.by not in ("document", "query") or not 0 < self.share < 1:
            raise OptionError("expected --by document or query, and --share above 0 and below 1.")
        if self.train.resolve() == self.test.resolve():
            raise OptionError(f"--train and --test: expected two files, both are {self.test}.")
        for path in (self.train, self.test):
            inputs.check_target(path)
            if path.exists():
                raise OptionError(f"{path} is there already. Name others: --train and --test.")
        dataset = inputs.read_pairs(self.data, self.split)
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
class Upgrade(EmbeddingJob):
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
        """Check, read, then load the models, fit, save, and judge."""
        from ..operations.upgrade import evaluate_upgrade, upgrade_adapter
        from ..serving.embedding import AdaptedEmbedding
        from . import inputs

        inputs.check_target_folder(self.out)
        judged = None if self.judged is None else inputs.read_pairs(self.judged, self.split)
        texts = inputs.read_texts(self.texts, self.split)
        old, new = inputs.resolve_model(self.old), inputs.resolve_model(self.new)
        found = upgrade_adapter(old, new, texts, **self._encoding)
        AdaptedEmbedding(new, found.adapter).save_pretrained(self.out)
        lines = [str(found), f"adapter: {self.out}"]
        data = {"out": str(self.out), "method": found.method, "texts": found.texts}
        data |= {"agreement": found.agreement, "cosine": found.cosine}
        if judged is not None:
            scores = evaluate_upgrade(found, old, new, judged, **self._encoding)
            lines.insert(1, str(scores))
            data["scores"] = scores.to_dict()
        return CommandResult("\n".join(lines), data)


@dataclass(frozen=True, kw_only=True)
class Export(Job):
    """Write a saved adapter for use outside LlamaIndex: see docs/export.md for its readers."""

    folder: Path
    out: Path
    format: str = "onnx"
    role: str = "query"

    def run(self) -> CommandResult:
        from ..adapters import saving
        from . import inputs

        adapter, base = saving.load(inputs.existing(self.folder)).adapter, None
        if self.format == "sentence-transformers":
            base = getattr(inputs.resolve_model(str(self.folder)), "base_embed_model", None)
        role: Any = self.role
        adapter.export(self.out, self.format, role=role, base=base)
        data = {"out": str(self.out), "format": self.format, "role": self.role}
        return CommandResult(f"{self.format}: {self.out}", data)
