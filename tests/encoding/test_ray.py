import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import TextNode

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, embed_corpus, errors
from llama_index_embeddings_adapted.encoding.base_model import fingerprint_of
from llama_index_embeddings_adapted.encoding.corpus import EmbeddingActor, packed
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from tests.conftest import CountingEmbedding

TEXTS = [f"text {number} of many" for number in range(1200)]

# Ray is started and stopped by the fixture; its sockets and files are its own affair.
NOISE = ("Resource", "pytest.PytestUnraisableException", "Deprecation", "Future")
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}Warning") for kind in NOISE]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  others here must not kill it
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  nor starve it on a busy machine
    ray = pytest.importorskip("ray", reason="extra 'ray' is missing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = dict.fromkeys(("include_dashboard", "log_to_driver", "configure_logging"), False)
        ray.init(num_cpus=2, object_store_memory=100 * 2**20, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


class Mortal(CountingEmbedding):
    """Ends its process at a text, the first time; fails at others, always."""

    deadly: str = ""
    grave: str = ""
    bad: tuple[str, ...] = ()
    dies_forever: bool = False

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        if self.deadly in texts and not os.path.exists(self.grave):
            if not self.dies_forever:
                Path(self.grave).touch()
            os._exit(1)
        for text in texts:
            if text in self.bad:
                raise RuntimeError(f"cannot read {text}")
        return super()._answer(role, texts)


class Forgetful(CountingEmbedding):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.seed = 1


def embedded(texts: Any, model: Any, cache: Path, **options: Any) -> Any:
    given = {"executor": "ray", "cache_dir": cache, "show_progress": False, **options}
    return embed_corpus(texts, model, **given)


def assert_all_cached(model: CountingEmbedding, cache: Path, texts: list[str]) -> None:
    with Encoder(model, cache_dir=cache, show_progress=False) as encoder:
        rows, vectors = encoder.cache.get("document", texts)
    assert len(rows) == len(texts)
    assert np.array_equal(vectors, model.vectors("document", texts))


def test_actors_fill_the_cache_and_what_it_holds_is_not_embedded_again(tmp_path):
    model = CountingEmbedding(embed_batch_size=64)
    embed_corpus(TEXTS[:600], model, cache_dir=tmp_path, show_progress=False)
    asked = len(model.asked)
    found = embedded(TEXTS, model, tmp_path, actors=2, window=5000)
    assert (found.embedded, found.executor, found.actors) == (600, "ray", 2)
    assert len(model.asked) == asked  # nothing was embedded here
    assert_all_cached(model, tmp_path, TEXTS)
    assert embedded(TEXTS, model, tmp_path).embedded == 0


def test_an_actor_that_dies_is_replaced_and_texts_that_fail_do_not_stop_others(tmp_path):
    grave = tmp_path / "grave"
    model = Mortal(embed_batch_size=64, deadly=TEXTS[700], grave=str(grave), bad=(TEXTS[5],))
    cache = tmp_path / "cache"
    with pytest.raises(errors.EncodeError, match=r"1 of 1,200 texts .*cannot read text 5 of many"):
        embedded(TEXTS, lambda: model, cache, actors=1)  # what an actor calls
    assert (tmp_path / "grave").exists()
    assert_all_cached(model, cache, [text for text in TEXTS if text != TEXTS[5]])


def test_a_text_that_kills_every_actor_ends_the_work_and_not_what_was_done(tmp_path):
    model = Mortal(deadly=TEXTS[0], grave=str(tmp_path / "none"), dies_forever=True)
    cache = tmp_path / "cache"
    with pytest.raises(errors.EncodeError, match="Ray cannot go on"):
        embedded(TEXTS[:40], model, cache, actors=1, ray_options={"max_task_retries": 1})
    with Encoder(model, cache_dir=cache, show_progress=False) as encoder:
        assert TEXTS[0] in encoder.cache.missing("document", TEXTS)


def test_what_does_not_arrive_as_it_left_or_cannot_be_sent_is_refused():
    model = Forgetful()
    with pytest.raises(errors.BaseModelMismatchError, match="Pass a function that builds the"):
        EmbeddingActor(packed(model), fingerprint_of(model), "document", None)
    with pytest.raises(errors.OptionError, match="cannot be sent to other processes"):
        packed(threading.Lock())


def test_without_ray_the_error_says_how_to_install_it(base, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray.data", None)
    with pytest.raises(errors.MissingExtraError, match=r"adapted\[ray\]"):
        embedded(TEXTS, base, tmp_path)


def test_an_adapted_model_embeds_in_llamaindexs_ray_pipeline():
    from llama_index.ingestion.ray import RayIngestionPipeline, RayTransformComponent

    base = CountingEmbedding(embed_batch_size=8)
    adapter = LinearAdapter(np.random.default_rng(0).standard_normal((16, 16)), shared=True)
    model = AdaptedEmbedding(base, adapter)
    made = {"transform_kwargs": {"base_embed_model": base, "adapter": adapter}}
    made["map_batches_kwargs"] = {"batch_size": 10}
    step = RayTransformComponent(transform_class=AdaptedEmbedding, **made)
    nodes = [TextNode(id_=f"n{row}", text=text) for row, text in enumerate(TEXTS[:25])]
    done = {n.node_id: n for n in RayIngestionPipeline(transformations=[step]).run(nodes=nodes)}
    assert len(done) == 25
    for node in nodes:
        assert np.allclose(done[node.node_id].embedding, model.get_text_embedding(node.text))
