import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode

import llama_index_embeddings_adapted as package
from benchmarks.robustness import cheap
from benchmarks.robustness.kill_jobs import JOBS
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, errors
from llama_index_embeddings_adapted.adapters import saving
from llama_index_embeddings_adapted.encoding.base_model import Fingerprint
from llama_index_embeddings_adapted.encoding.cache import VectorCache
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.operations import folder as saved_folder
from llama_index_embeddings_adapted.questions.llm import AnswerCache, CachedAnswer
from tests.conftest import QUIET, ROOT, CountingEmbedding
from tests.support.files import edit

Dataset = package.EmbeddingQAFinetuneDataset


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own; where none can be mounted, the test is skipped."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount on this system")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no space; return what to delete to get it back."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while stream.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def test_a_full_disk_leaves_the_old_adapter_and_says_so(base, small_disk):
    old = LinearAdapter.identity(16)
    AdaptedEmbedding(base, old).save_pretrained(small_disk / "model")
    ballast = fill(small_disk)
    new = AdaptedEmbedding(base, LinearAdapter(np.ones((16, 16), dtype=np.float32)))
    with pytest.raises(errors.DiskError, match=r"could not be written \(No space left.*still is"):
        new.save_pretrained(small_disk / "model")
    assert LinearAdapter.load(small_disk / "model") == old
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "model"]
    ballast.unlink()
    new.save_pretrained(small_disk / "model")
    assert LinearAdapter.load(small_disk / "model") == new.adapter


def test_a_full_disk_leaves_the_old_dataset(small, small_disk):
    small.save_json(small_disk / "pairs.json")
    small.to_beir(small_disk / "beir")
    fill(small_disk)
    larger = Dataset({"q": "x" * 9000}, {"d": "y" * 9000}, {"q": ["d"]})
    for write, name in ((larger.save_json, "pairs.json"), (larger.to_beir, "beir")):
        with pytest.raises(errors.DiskError, match="No space left"):
            write(small_disk / name)
    assert Dataset.from_json(small_disk / "pairs.json") == small
    assert Dataset.from_beir(small_disk / "beir") == small


def test_encoding_goes_on_where_the_disk_was_full(small_disk, tmp_path):
    texts = [f"text number {number}" for number in range(2000)]
    model = CountingEmbedding(embed_batch_size=100)
    with pytest.raises(errors.CacheError, match=r"cannot be used.*Free some space"):
        Encoder(model, cache_dir=small_disk, show_progress=False).encode(texts, "document")
    kept = Encoder(CountingEmbedding(), cache_dir=small_disk, show_progress=False)
    rows, found = kept.cache.get("document", texts)
    assert 0 < len(rows) < len(texts)
    truth = model.vectors("document", texts)
    assert np.array_equal(found, truth[rows])
    remount(small_disk, "size=4m")
    later = CountingEmbedding(embed_batch_size=100)
    work = Encoder(later, cache_dir=small_disk, show_progress=False)
    assert np.array_equal(work.encode(texts, "document"), truth)
    assert len({text for _, text in later.asked} & set(texts)) == len(texts) - len(rows)


def test_answers_are_kept_up_to_where_the_disk_was_full(small_disk):
    kept: list[int] = []

    def write_for_ever(cache: AnswerCache) -> None:
        while True:
            cache.put(f"{len(kept)}", CachedAnswer("y" * 1000))
            kept.append(len(kept))

    with AnswerCache(small_disk, {}) as cache:
        ballast = fill(small_disk)
        with pytest.raises(errors.GenerationError, match=r"is full|disk I/O"):
            write_for_ever(cache)
        ballast.unlink()
        cache.put("after", CachedAnswer("z"))
    with AnswerCache(small_disk, {}) as again:
        assert [again.get(str(each)) for each in kept] == [CachedAnswer("y" * 1000)] * len(kept)
        assert again.get("after") == CachedAnswer("z")


@pytest.mark.parametrize("job", ["train", "generate"])
def test_a_whole_run_on_a_full_disk_is_one_error_and_can_be_continued(job, small_disk, tmp_path):
    JOBS[job].prepare(small_disk)
    (small_disk / "log").symlink_to(tmp_path / "log")
    fill(small_disk)
    with pytest.raises(errors.AdaptedError, match=r"No space left|disk I/O|is full"):
        JOBS[job].work(small_disk)
    remount(small_disk, "size=8m")
    JOBS[job].check(small_disk)
    JOBS[job].work(small_disk)
    (tmp_path / "whole").mkdir()
    JOBS[job].prepare(tmp_path / "whole")
    JOBS[job].work(tmp_path / "whole")
    assert JOBS[job].result(small_disk) == JOBS[job].result(tmp_path / "whole")


def test_a_read_only_place_is_refused_before_texts_are_embedded(base, small, small_disk, tmp_path):
    place = small_disk
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(place / "saved")
    remount(place, "ro")  # also for root
    for options, error, said in (
        ({"model_output_path": place / "model"}, errors.FolderError, "cannot be written"),
        ({"cache_dir": place}, errors.CacheError, r"cannot be used.*cache_dir=False"),
    ):
        options = {"model_output_path": tmp_path / "model", **QUIET, **options}
        with pytest.raises(error, match=said):
            package.EmbeddingAdapterFinetuneEngine(small, base, **options).finetune()
    assert not [text for _, text in base.asked if text in small.queries.values()]
    with pytest.raises(errors.DiskError, match="Read-only file system"):
        small.save_json(place / "pairs.json")
    with pytest.raises(errors.GenerationError, match="Read-only file system"):
        AnswerCache(place, {}).__enter__()
    found = AdaptedEmbedding.from_pretrained(place / "saved", base)  # and it is served from
    assert found.get_query_embedding("why") == pytest.approx(base.vector("query", "why"))
    assert saved_folder.inspect_adapter(place / "saved")["adapter"]["input_dim"] == 16


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder nobody may write to")
def test_a_place_that_takes_no_file_is_an_error_of_ours(base):
    nodes = [TextNode(text="a cat"), TextNode(text="the sea")]
    hybrid = package.adapt_without_labels(nodes, base, **QUIET)
    for write in (hybrid.save_pretrained, LinearAdapter.identity(16).save):
        with pytest.raises(errors.FolderError, match="/proc/q: cannot be written"):
            write("/proc/q")
    with pytest.raises(errors.DiskError, match=r"/proc/x\.html could not be written"):
        package.Comparison({}).to_html("/proc/x.html", title="none")


WRITER = """
import sys
from pathlib import Path
from llama_index_embeddings_adapted.questions.llm import AnswerCache, CachedAnswer
with AnswerCache(Path(sys.argv[1]), {}) as cache:
    for number in range(300):
        answer = CachedAnswer(f"{sys.argv[2]} " + "x" * (number * 7 % 900))
        cache.put(f"{sys.argv[2]}-{number}", answer)
"""


def test_two_processes_write_one_cache_and_lose_no_answer(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with AnswerCache(tmp_path, {}) as cache:
        assert all(cache.get(f"{name}-{n}") for name in ("one", "two") for n in range(300))
        found = cache.get("two-299")
    assert found.text.startswith("two xxx")


def test_a_cache_with_tables_of_another_version_is_an_error_and_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "vectors.sqlite") as database:
        database.execute("CREATE TABLE bases (id INTEGER PRIMARY KEY, fingerprint TEXT)")
        database.execute("INSERT INTO bases VALUES (1, 'of another time')")
    database.close()
    with pytest.raises(errors.CacheError, match="cannot be used"):
        VectorCache(tmp_path, Fingerprint("model", np.ones((6, 4), dtype=np.float32)))
    with closing(sqlite3.connect(tmp_path / "vectors.sqlite")) as database:
        assert database.execute("SELECT * FROM bases").fetchall() == [(1, "of another time")]
        assert database.execute("PRAGMA user_version").fetchone() == (0,)


@pytest.fixture
def jumping_clock(monkeypatch) -> None:
    """Every look at the clock of the wall finds it a day earlier than the last."""
    start, days = time.time(), iter(range(10**9))

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromtimestamp(start, tz) - timedelta(days=next(days))

    monkeypatch.setattr(time, "time", lambda: start - 86_400 * next(days))
    monkeypatch.setattr(time, "time_ns", lambda: int((start - 86_400 * next(days)) * 1e9))
    for module in (saving, saved_folder):
        monkeypatch.setattr(module, "datetime", Jumping)


@pytest.mark.parametrize("job", ["encode", "train", "generate"])
def test_a_clock_that_runs_backwards_changes_nothing(job, tmp_path, request):
    for name in ("straight", "jumping"):
        (tmp_path / name).mkdir()
        JOBS[job].prepare(tmp_path / name)
        JOBS[job].work(tmp_path / name)
        request.getfixturevalue("jumping_clock")
    assert JOBS[job].result(tmp_path / "jumping") == JOBS[job].result(tmp_path / "straight")
    before = len(cheap.noted(tmp_path / "jumping" / "log"))
    for path in (tmp_path / "jumping").rglob("*"):
        os.utime(path, (0, 0))  # and all files are from 1970
    JOBS[job].work(tmp_path / "jumping")
    assert len(cheap.noted(tmp_path / "jumping" / "log")) == before  # all of it was found again


def test_a_folder_saved_in_the_future_has_no_age(base, tmp_path):
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    edit(tmp_path / "a" / "config.json", saved_at="2999-01-01T00:00:00+00:00")
    facts = saved_folder.inspect_adapter(tmp_path / "a")
    assert facts["age_days"] is None
    assert "saved: 2999-01-01T00:00:00+00:00\n" in saved_folder.as_text(facts)
