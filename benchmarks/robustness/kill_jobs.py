"""The work that is killed: what it starts from, what it leaves, and what must hold of that.

Each job has ``prepare``, ``work``, which also goes on where a killed run ended, ``check``, which
raises unless every artefact is the old one or the new one, ``result``, and ``paid``: what was asked
for and what of it is kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode

import llama_index_embeddings_adapted as package
from benchmarks.robustness import cheap
from llama_index_embeddings_adapted.core.arrays import Role
from llama_index_embeddings_adapted.core.files import read_config
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.questions.llm import FILE, AnswerCache

BATCH, CONCURRENCY = 10, 4
TOPICS = ["apple", "boat", "castle", "desert", "engine", "forest", "garden", "harbour", "island",
          "jungle"]  # fmt: skip
TEXTS = [
    f"{topic} number {n} has {TOPICS[n % 10]} and {TOPICS[n * 7 % 10]}s beside"
    for n in range(30)
    for topic in TOPICS
]


@dataclass(frozen=True)
class Paid:
    """Texts sent to a model so far, and those whose answers are on disk."""

    asked: list[str]
    kept: set[str]


class _Job:
    """What most have in common: texts are embedded, by role, and their vectors cached."""

    most_in_flight = BATCH

    def texts(self) -> dict[Role, list[str]]:
        return {"document": [node.text for node in _nodes()]}

    def prepare(self, folder: Path) -> None:
        """Start from nothing."""

    def check(self, folder: Path) -> None:
        """Every vector in the cache is that of its text."""
        for role, texts in self.texts().items():
            rows, found = _kept(folder, texts, role)
            truth = [cheap.vector(texts[row], role) for row in rows]
            assert np.array_equal(found, np.float32(truth).reshape(found.shape)), "a wrong vector"

    def paid(self, folder: Path) -> Paid:
        kept = {
            texts[row]
            for role, texts in self.texts().items()
            for row in _kept(folder, texts, role)[0]
        }
        return Paid(cheap.noted(folder / "log"), kept)


class Encode(_Job):
    """Fill a vector cache."""

    def texts(self) -> dict[Role, list[str]]:
        return {"document": TEXTS}

    def work(self, folder: Path) -> None:
        with Encoder(_base(folder), **_quiet(folder)) as encoder:
            encoder.encode(TEXTS, "document")

    def result(self, folder: Path) -> object:
        return _digest(_kept(folder, TEXTS, "document")[1])


class Train(_Job):
    """Embed, train, save over an older adapter, write checkpoints and a page."""

    def texts(self) -> dict[Role, list[str]]:
        pairs = _pairs()
        return {"query": [*pairs.queries.values()], "document": [*pairs.corpus.values()]}

    def prepare(self, folder: Path) -> None:
        package.LinearAdapter.identity(cheap.DIM).save(folder / "model")
        (folder / "page.html").write_text("old")

    def work(self, folder: Path) -> None:
        engine = package.EmbeddingAdapterFinetuneEngine(
            _pairs(),
            _base(folder),
            method="linear",
            epochs=6,
            model_output_path=folder / "model",
            model_checkpoint_path=folder / "steps",
            checkpoint_save_steps=5,
            report_path=folder / "page.html",
            **_quiet(folder),
        )
        engine.finetune()

    def check(self, folder: Path) -> None:
        """The adapter is the old one or a trained one, and so are page and checkpoints."""
        found = package.Adapter.load(folder / "model")
        trained = "report" in read_config(folder / "model").get("training", {})
        assert trained or found == package.LinearAdapter.identity(cheap.DIM), found
        page = (folder / "page.html").read_text(encoding="utf-8")
        assert page == "old" or page.rstrip().endswith("</html>"), page[-80:]
        for step in folder.glob("steps/step_*"):
            package.Adapter.load(step)
        super().check(folder)

    def result(self, folder: Path) -> object:
        report = dict(read_config(folder / "model")["training"]["report"])
        for changing in ("seconds", "base_calls", "base_texts", "base_tokens", "deployment"):
            report.pop(changing)
        report["history"] = [{**epoch, "seconds": 0.0} for epoch in report["history"]]
        arrays = package.Adapter.load(folder / "model").arrays()
        weights = {name: _digest(array) for name, array in arrays.items()}
        return weights, json.dumps(report, sort_keys=True)


class Save(_Job):
    """Write an adapter over an older one, several times."""

    most_in_flight = 0

    def prepare(self, folder: Path) -> None:
        package.AdaptedEmbedding(_base(folder), _adapter(0)).save_pretrained(folder / "model")

    def work(self, folder: Path) -> None:
        for version in range(1, 6):
            model = package.AdaptedEmbedding(
                _base(folder), _adapter(version), training={"v": version}
            )
            model.save_pretrained(folder / "model")

    def check(self, folder: Path) -> None:
        """The folder is one version, weights and description alike, and loads."""
        found = package.AdaptedEmbedding.from_pretrained(folder / "model", _base(folder))
        assert found.adapter == _adapter(found.training.get("v", 0)), found.training

    def result(self, folder: Path) -> object:
        return sorted(file.name for file in (folder / "model").iterdir()), _digest(
            *package.Adapter.load(folder / "model").arrays().values()
        )

    def paid(self, folder: Path) -> Paid:
        return Paid([], set())


class Generate(_Job):
    """Have questions written, over an older dataset."""

    most_in_flight = CONCURRENCY

    def prepare(self, folder: Path) -> None:
        _pairs().save_json(folder / "pairs.json")

    def work(self, folder: Path) -> None:
        package.generate_qa_embedding_pairs(
            [TextNode(id_=f"n{n}", text=text) for n, text in enumerate(TEXTS[:80])],
            cheap.WritingLLM(log=str(folder / "log"), pause_s=0.01),
            concurrency=CONCURRENCY,
            output_path=folder / "pairs.json",
            **_quiet(folder),
        )

    def check(self, folder: Path) -> None:
        """The dataset is whole: the old one, or one that was written."""
        found = package.EmbeddingQAFinetuneDataset.from_json(folder / "pairs.json")
        assert found == _pairs() or len(found.corpus) == 80, found

    def result(self, folder: Path) -> object:
        return package.EmbeddingQAFinetuneDataset.from_json(folder / "pairs.json").fingerprint

    def paid(self, folder: Path) -> Paid:
        place, kept = folder / "cache" / "questions", set()
        if (place / FILE).exists():
            with AnswerCache(place, {}), closing(sqlite3.connect(place / FILE)) as database:
                kept = {text for (text,) in database.execute("SELECT text FROM answers")}
        return Paid(cheap.noted(folder / "log"), kept)


class Rebuild(_Job):
    """Map an index into a new collection beside it; both on disk."""

    def prepare(self, folder: Path) -> None:
        with _qdrant(folder / "old") as store:
            storage = StorageContext.from_defaults(vector_store=store)
            VectorStoreIndex(_nodes(), storage_context=storage, embed_model=cheap.WordsEmbedding())

    def work(self, folder: Path) -> None:
        base = _base(folder)
        with _qdrant(folder / "old") as old, _qdrant(folder / "new") as new:
            index = VectorStoreIndex.from_vector_store(old, embed_model=base)
            model = package.AdaptedEmbedding(base, _adapter(1))
            options = {"nodes": _nodes(), "embed_missing": True, "batch_size": BATCH}
            package.adapt_index(index, model, new, **options, **_quiet(folder))

    def check(self, folder: Path) -> None:
        """The old collection is untouched; what the new one holds is mapped."""
        truth = np.array([cheap.vector(node.text, "document") for node in _nodes()])
        assert np.allclose(_stored(folder / "old"), truth, atol=1e-5)
        mapped = _adapter(1).apply(np.float32(truth), "document")
        found = _stored(folder / "new")
        there = ~np.isnan(found).any(axis=1)
        assert np.allclose(found[there], mapped[there], atol=1e-5)
        super().check(folder)

    def result(self, folder: Path) -> object:
        return _digest(np.round(_stored(folder / "new"), 5))


_ALL = (Encode(), Train(), Save(), Generate(), Rebuild())
JOBS = {type(job).__name__.lower(): job for job in _ALL}


def _base(folder: Path) -> cheap.WordsEmbedding:
    return cheap.WordsEmbedding(log=str(folder / "log"), pause_s=0.004, embed_batch_size=BATCH)


def _quiet(folder: Path) -> dict[str, Any]:
    return {"cache_dir": folder / "cache", "show_progress": False}


def _pairs() -> package.EmbeddingQAFinetuneDataset:
    corpus = {f"d{n}": text for n, text in enumerate(TEXTS[:60])}
    queries = {f"q{n}": f"which {TEXTS[n].split(' and ')[0]}" for n in range(60)}
    return package.EmbeddingQAFinetuneDataset(queries, corpus, {q: [f"d{q[1:]}"] for q in queries})


def _nodes() -> list[TextNode]:
    ids = (f"00000000-0000-0000-0000-{n:012d}" for n in range(60))
    return [TextNode(id_=name, text=text) for name, text in zip(ids, TEXTS, strict=False)]


def _adapter(version: int) -> package.LinearAdapter:
    random = np.random.default_rng(version)
    return package.LinearAdapter(random.standard_normal((cheap.DIM, cheap.DIM)), shared=True)


def _kept(folder: Path, texts: list[str], role: Role) -> Any:
    with Encoder(cheap.WordsEmbedding(), **_quiet(folder)) as encoder:
        return encoder.cache.get(role, texts)


@contextmanager
def _qdrant(folder: Path) -> Iterator[Any]:
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(folder))
    yield QdrantVectorStore("nodes", client=client)
    client.close()


def _stored(folder: Path) -> Any:
    """Return the vectors of all nodes in a collection, NaN where there is none yet."""
    with _qdrant(folder) as store:
        there = store.client.collection_exists("nodes")
        points = store.client.scroll("nodes", limit=1000, with_vectors=True)[0] if there else []
    place = {point.id: point.vector for point in points}
    none = [np.nan] * cheap.DIM
    return np.array([place.get(node.node_id, none) for node in _nodes()])


def _digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()
