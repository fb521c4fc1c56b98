import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS, Fingerprint
from llama_index_embeddings_adapted.encoding.cache import VectorCache
from llama_index_embeddings_adapted.errors import CacheError


def model(name: str = "model", *, turn: float = 0.0, length: float = 1.0) -> Fingerprint:
    """A model of two dimensions whose probe vectors all point at an angle."""
    probe = length * np.float32([np.cos(turn), np.sin(turn)])
    return Fingerprint(name, np.tile(probe, (2 * len(PROBE_TEXTS), 1)))


def rows(*values: float) -> np.ndarray:
    return np.float32([[value, -value] for value in values])


@pytest.fixture(params=["disk", "memory"])
def cache(request, tmp_path) -> Iterator[VectorCache]:
    found = VectorCache(tmp_path / "cache" if request.param == "disk" else None, model())
    yield found
    found.close()


def test_what_was_put_is_found_in_any_order_however_odd_or_many(cache):
    cache.put("query", ["one", "two"], rows(1, 2))
    cache.put("query", ["three"], rows(3))
    positions, vectors = cache.get("query", ["three", "unknown", "one"])
    assert positions.tolist() == [0, 2]
    assert np.array_equal(vectors, rows(3, 1))
    cache.put("query", ["\ud800", ""], rows(1, 2))
    assert np.array_equal(cache.get("query", ["", "\ud800"])[1], rows(2, 1))
    texts = [str(number) for number in range(1300)]
    cache.put("query", texts, rows(*range(1300)))
    assert np.array_equal(cache.get("query", texts[::-1])[1], rows(*range(1300))[::-1])


def test_a_text_put_twice_keeps_its_vector_and_those_after_it_theirs(cache):
    cache.put("query", ["a", "b"], rows(1, 2))
    cache.put("query", ["c", "b"], rows(3, 9))  # the last row belongs to nobody
    cache.put("query", ["d", "e"], rows(4, 5))
    assert np.array_equal(cache.get("query", list("abcde"))[1], rows(1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("other", "shares"),
    [
        (model(turn=0.001), True),  # cosine 1 - 5e-7: float noise
        (model(turn=0.1), False),  # cosine .995: another model behind the same name
        (model(length=2.0), False),  # the same directions, not normalised
        (model("other"), False),
        (Fingerprint("model", np.ones((6, 3), dtype=np.float32)), False),
    ],
    ids=["noise", "other directions", "other lengths", "other name", "other dimension"],
)
def test_models_share_only_if_name_and_vectors_agree(tmp_path, other, shares):
    cache = VectorCache(tmp_path, model())
    cache.put("query", ["text"], rows(1))
    second = VectorCache(tmp_path, other)
    assert len(second.get("query", ["text"])[0]) == shares
    assert len(VectorCache(tmp_path, model()).get("query", ["text"])[0]) == 1


def test_a_digest_names_a_model_and_not_its_noise():
    assert model().digest == model(turn=1e-5).digest == model(turn=-1e-5).digest
    assert len({model().digest, model(turn=0.1).digest, model(length=2.0).digest}) == 3


def test_a_folder_outlives_its_cache_and_holds_no_text(tmp_path):
    first = VectorCache(tmp_path, model())
    first.put("query", ["a very private question"], rows(7))
    first.close()
    found = VectorCache(tmp_path, model()).get("query", ["a very private question"])[1]
    assert np.array_equal(found, rows(7))
    assert b"private" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_rows_without_a_key_are_overwritten(tmp_path):
    """As a kill between the vectors and their keys leaves them, with a torn last row."""
    cache = VectorCache(tmp_path, model())
    cache.put("query", ["a"], rows(1))
    cache.close()
    with (tmp_path / "1.f32").open("ab") as stream:
        stream.write(rows(8, 9).tobytes() + b"torn")
    cache = VectorCache(tmp_path, model())
    assert np.array_equal(cache.get("query", ["a", "b"])[1], rows(1))
    cache.put("query", ["b"], rows(2))
    assert np.array_equal(cache.get("query", ["a", "b"])[1], rows(1, 2))


def test_who_makes_the_file_at_the_same_time_asks_again(tmp_path, monkeypatch):
    refused: list[str] = []

    class Busy(sqlite3.Connection):
        def execute(self, statement: str, *given: Any) -> sqlite3.Cursor:
            if "WAL" in statement and len(refused) < 2:
                refused.append(statement)
                raise sqlite3.OperationalError("database is locked")  # SQLite does not wait here
            return super().execute(statement, *given)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Busy))
    VectorCache(tmp_path, model()).put("query", ["a"], rows(1.0))
    assert len(refused) == 2


def test_threads_share_one_cache(cache):
    def put(start: int) -> None:
        for number in range(start, start + 10):  # each number by two threads
            cache.put("query", [str(number), f"again {number % 7}"], rows(number, number % 7))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(put, (0, 0, 10, 10, 20, 20)))
    texts = [str(number) for number in range(30)] + [f"again {number}" for number in range(7)]
    assert np.array_equal(cache.get("query", texts)[1], rows(*range(30), *range(7)))


def test_what_was_forgotten_is_asked_for_again_and_its_neighbours_are_not(cache):
    cache.put("query", ["a", "b", "c"], rows(1, 2, 3))
    cache.forget("query", ["b", "unknown"])
    cache.forget("document", ["a"])
    assert cache.get("query", ["a", "b", "c"])[0].tolist() == [0, 2]
    cache.put("query", ["b"], rows(4))
    assert np.array_equal(cache.get("query", ["a", "b", "c"])[1], rows(1, 4, 3))


def sql(statement: str) -> Callable[[Path], None]:
    def execute(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "vectors.sqlite")) as database, database:
            database.execute(statement)

    return execute


def replaced_by_a_folder(folder: Path) -> None:
    (folder / "vectors.sqlite").unlink()
    (folder / "vectors.sqlite").mkdir()


CUT = r"1\.f32: expected at least 16 bytes.*found 8\..*delete the folder"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "vectors cut": (lambda f: (f / "1.f32").write_bytes(rows(1).tobytes()), CUT),
    "no vectors": (lambda f: (f / "1.f32").unlink(), "found 0"),
    "a newer format": (sql("PRAGMA user_version=2"), "cache format 2, this version reads 1"),
    "no database": (lambda f: (f / "vectors.sqlite").write_text("x" * 999), "not a database"),
    "a folder": (replaced_by_a_folder, "unable to open"),
    "a row below 0": (sql("UPDATE vectors SET row = -1"), "cannot be used|The file was cut"),
    "a row too far": (sql(f"UPDATE vectors SET row = {10**15}"), "cannot be used|was cut"),
    "a row of letters": (sql("UPDATE vectors SET row = 'many'"), "cannot be used|was cut"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_an_error_that_says_what_to_do(damage, tmp_path):
    cache = VectorCache(tmp_path, model())
    cache.put("query", ["a", "b"], rows(1, 2))
    cache.close()
    change, message = DAMAGES[damage]
    change(tmp_path)
    with pytest.raises(CacheError, match=message):
        VectorCache(tmp_path, model()).get("query", ["a", "b"])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/cache", r"cannot be created .*cache_dir=False"),
        ("file", "cannot be created"),
        ("/proc/self", r"/proc/self/vectors\.sqlite cannot be used"),
    ],
)
def test_a_folder_that_cannot_be_made_or_written_is_an_error(place, message, tmp_path):
    if place.startswith("/proc") and not Path(place).is_dir():
        pytest.skip("needs a folder nobody may write to")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match=message):
        VectorCache(tmp_path / place, model())


def test_bytes_that_are_no_numbers_are_not_served(tmp_path):
    cache = VectorCache(tmp_path, model())
    cache.put("query", ["a", "b"], rows(1, 2))
    with (tmp_path / "1.f32").open("r+b") as stream:
        stream.write(b"\xff" * 8)
    with pytest.raises(CacheError, match=r"1\.f32: holds NaN.*Delete the folder"):
        cache.get("query", ["a", "b"])
    assert np.array_equal(cache.get("query", ["b"])[1], rows(2))
    (tmp_path / "1.f32").write_bytes(rows(1).tobytes())
    with pytest.raises(CacheError, match="cannot be used"):  # cut while in use
        cache.get("query", ["b"])
    cache.close()


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on file sizes on this system")
    cache = VectorCache(tmp_path, model())
    cache.put("query", ["kept"], rows(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(CacheError, match=r"File too large.*Free some space"):
            cache.put("query", [str(number) for number in range(1 << 18)], np.ones((1 << 18, 2)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cache.put("query", ["after"], rows(2))
    assert np.array_equal(cache.get("query", ["kept", "0", "after"])[1], rows(1, 2))
