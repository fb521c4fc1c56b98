from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.bridge.pydantic import PrivateAttr

from llama_index_embeddings_adapted import embed_corpus
from llama_index_embeddings_adapted.encoding import corpus
from llama_index_embeddings_adapted.encoding.encoder import Encoder
from llama_index_embeddings_adapted.errors import DatasetError, EncodeError, OptionError
from tests.conftest import CountingEmbedding

TEXTS = [f"text {number}" for number in range(10)]


class Allergic(CountingEmbedding):
    bad: tuple[str, ...] = ()
    _tried: int = PrivateAttr(default=0)

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        self._tried += 1
        if any(text in self.bad for text in texts):
            raise RuntimeError("429 for https://me:pw@host with sk-abcdefghijklmnop")
        return super()._answer(role, texts)


def embedded(texts: Any, model: Any, cache: Path, **options: Any) -> corpus.EmbeddedCorpus:
    return embed_corpus(texts, model, cache_dir=cache, show_progress=False, **options)


def cached(model: CountingEmbedding, cache: Path, role: str = "document") -> dict[str, np.ndarray]:
    with Encoder(model, cache_dir=cache, show_progress=False) as encoder:
        rows, vectors = encoder.cache.get(role, TEXTS)
    return {TEXTS[row]: vector for row, vector in zip(rows, vectors, strict=True)}


@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_distinct_text_is_embedded_once_whatever_the_window(base, tmp_path, window):
    found = embedded(iter([*TEXTS, *TEXTS]), base, tmp_path, window=window)
    assert (found.texts, found.embedded, found.failures) == (20, 10, {})
    assert (found.to_dict()["failures"], found.texts_per_second > 0) == (0, True)
    assert len(base.asked_beyond_probes) == 10
    for text, vector in cached(base, tmp_path).items():
        assert np.array_equal(vector, np.float32(base.vector("document", text)))


def test_what_the_cache_holds_is_not_asked_for_again(base, tmp_path):
    embedded(TEXTS[:6], base, tmp_path)
    before = len(base.asked)
    assert embedded(TEXTS, base, tmp_path).embedded == 4
    assert len(base.asked) == before + 4


def test_a_dataset_a_mapping_and_queries_are_corpora_too(base, small, tmp_path):
    assert embedded(small, base, tmp_path).embedded == 6
    assert embedded(dict(zip("abc", TEXTS[:3], strict=True)), base, tmp_path).embedded == 3
    assert embedded(TEXTS, base, tmp_path, role="query").embedded == 10
    assert set(cached(base, tmp_path)) == set(TEXTS[:3])
    assert set(cached(base, tmp_path, "query")) == set(TEXTS)


def test_a_function_that_builds_the_model_serves_as_well(tmp_path):
    assert embedded(TEXTS, CountingEmbedding, tmp_path).embedded == 10
    with pytest.raises(OptionError, match="got one string"):
        embedded("text", CountingEmbedding, tmp_path)
    with pytest.raises(OptionError, match="got NoneType"):
        embedded(None, CountingEmbedding, tmp_path)
    for texts, name in ((["a", None], "1"), ({"a": "b", "c": None}, "'c'")):
        with pytest.raises(DatasetError, match=f"expected strings, text {name} is NoneType"):
            embedded(texts, CountingEmbedding, tmp_path)


def test_an_interrupted_run_keeps_what_it_had(base, tmp_path, monkeypatch):
    def interrupted() -> Iterator[str]:
        yield from TEXTS[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded(interrupted(), base, tmp_path, window=2)
    assert set(cached(base, tmp_path)) == set(TEXTS[:4])


@pytest.mark.parametrize("bad", [("text 3",), ("text 0", "text 9"), tuple(TEXTS[2:8])])
def test_texts_that_fail_are_set_aside_and_the_others_kept(bad, tmp_path):
    model = Allergic(embed_batch_size=4, bad=bad)
    with pytest.raises(EncodeError, match=rf"{len(bad)} of 10 texts have no vector.*call again"):
        embedded(TEXTS, model, tmp_path)
    assert set(cached(model, tmp_path)) == set(TEXTS) - set(bad)
    found = embedded(TEXTS, model, tmp_path, on_failure="continue")
    assert set(found.failures) == set(bad)
    reason = found.failures[bad[0]]
    assert "429" in reason
    assert "pw" not in reason
    assert "sk-" not in reason
    model.bad = ()
    assert embedded(TEXTS, model, tmp_path).embedded == len(bad)


def test_a_broken_model_is_not_asked_for_every_text(tmp_path):
    texts = [f"word {number}" for number in range(500)]
    model = Allergic(embed_batch_size=100, bad=tuple(texts))
    found = embedded(texts, model, tmp_path, on_failure="continue")
    assert len(found.failures) == 500
    assert "not tried" in found.failures[min(texts, key=len)]
    assert model._tried < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "spark"}, "executor: expected one of local, ray, got 'spark'"),
        ({"embed_model": "local:x"}, "embed_model: 'local:x' names no model here"),
        ({"role": "passage"}, "role: expected one of document, query"),
        ({"on_failure": "ignore"}, "on_failure: expected one of raise, continue"),
        ({"actors": 0}, "actors: expected a whole number >= 1, got 0"),
        ({"window": True}, "window: expected a whole number >= 1, got True"),
        ({"cache_dir": False}, "cache_dir: expected a folder or None"),
    ],
)
def test_bad_options_are_refused_before_anything_is_embedded(base, options, message):
    with pytest.raises(OptionError, match=message):
        embed_corpus(**{"texts": TEXTS, "embed_model": base, "cache_dir": None, **options})
    assert not base.asked
