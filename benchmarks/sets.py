"""The data sets, as BEIR folders below one folder, and an engine trained on one."""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.quality import package_sets
from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine as Engine
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from llama_index_embeddings_adapted.data import contents
from llama_index_embeddings_adapted.encoding.encoder import Encoder

NAMES = ("nfcorpus", "scifact", "uberlyft_10k", "squad_dev", "nl2bash", "tldr_pages")
NAMES += ("banking77_intent",)
_NEW = 0.25  # of a made set's queries: of test, about documents that nobody asks for in training
_KNOWN, _DEV = 0.2, 0.1  # of the others, or of train where a published set has no dev


@dataclass(frozen=True)
class RealSet:
    """One data set; ``tests`` has an entry per test file, ``"test"`` is the whole."""

    name: str
    train: Dataset
    dev: Dataset | None
    tests: dict[str, Dataset]

    def with_dev(self) -> tuple[Dataset, Dataset]:
        """Return train and dev; where there is no dev, a tenth of train."""
        if self.dev is not None:
            return self.train, self.dev
        return self.train.train_test_split(_DEV, by="query", seed=0)

    @property
    def labelled(self) -> Dataset:
        """Train and dev together."""
        return self.train if self.dev is None else self.train.merged(self.dev)


def load(folder: Path, name: str, packages: Path | None = None) -> RealSet:
    """Read a set, or make it of packages. Tests of uberlyft_10k search the Uber documents only."""
    if name in package_sets.SETS:
        if packages is None:
            raise SystemExit(f"{name} needs --packages")
        return split(name, package_sets.SETS[name](packages))
    path = folder / name
    splits = sorted(file.stem for file in (path / "qrels").glob("*.tsv"))
    tests = {s: _published(path, s) for s in splits if s.startswith("test")}
    if name == "uberlyft_10k":
        tests = {split: _only_uber(path, test) for split, test in tests.items()}
    dev = _published(path, "dev") if "dev" in splits else None
    return RealSet(name, _published(path, "train"), dev, tests)


def split(name: str, whole: Dataset) -> RealSet:
    """Return train, dev, and a test set of new and known documents, by ids: twins may be known."""
    rest, new = contents.split(whole, whole.relevant_docs, _NEW, by="document", seed=0)
    rest, known = rest.train_test_split(_KNOWN, by="query", seed=0)
    train, dev = rest.train_test_split(_DEV, by="query", seed=0)
    return RealSet(name, train, dev, {"test": known.merged(new)})


def _published(path: Path, split: str) -> Dataset:
    """Read a split, to be scored as others score it: by id, whatever the texts."""
    return Dataset.from_beir(path, split).scored(twins_count=False)


def trained(train: Dataset, base: Any, cache: Path | bool, **options: Any) -> Engine:
    """Return an engine that has trained; the folder it saved to is gone."""
    given = {"cache_dir": cache, "show_progress": False, **options}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(train, base, model_output_path=Path(folder) / "adapter", **given)
        engine.finetune()
    return engine


def encoder(cache: Path, **options: Any) -> Encoder:
    return Encoder(environment.minilm(**options), cache_dir=cache, show_progress=False)


def _only_uber(path: Path, test: Dataset) -> Dataset:
    with gzip.open(path / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    uber = {line["_id"] for line in lines if line["metadata"]["source"] == "uber"}
    corpus = {document: text for document, text in test.corpus.items() if document in uber}
    return Dataset(test.queries, corpus, test.relevant_docs, twins_count=False)
