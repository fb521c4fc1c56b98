import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llama_index_embeddings_adapted import AdaptedEmbedding, AdaptedError, Adapter, LinearAdapter
from llama_index_embeddings_adapted.core import files as folders
from llama_index_embeddings_adapted.core.arrays import l2_normalize
from llama_index_embeddings_adapted.core.files import atomic_folder, check_target_folder
from llama_index_embeddings_adapted.encoding.base_model import PROBE_TEXTS
from llama_index_embeddings_adapted.errors import BaseModelMismatchError, FolderError
from llama_index_embeddings_adapted.operations.folder import inspect_adapter, ship_candidate
from tests.conftest import CountingEmbedding, Noisy
from tests.support.files import edit


@pytest.fixture
def model(base) -> AdaptedEmbedding:
    weight = np.random.default_rng(0).standard_normal((16, 16))
    return AdaptedEmbedding(base, LinearAdapter(weight), training={"data": "abc", "seed": 3})


@pytest.fixture
def saved(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_saved_model_comes_back_as_it_was_and_its_folder_says_what_is_in_it(model, base, saved):
    loaded = AdaptedEmbedding.from_pretrained(saved, base)
    assert loaded.adapter == model.adapter
    assert loaded.training == {"data": "abc", "seed": 3}
    assert loaded.get_query_embedding("why?") == model.get_query_embedding("why?")
    files = {"README.md", "adapter.safetensors", "config.json"}
    assert {path.name for path in saved.iterdir()} == files
    config = json.loads((saved / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["roles"] == ["query"]
    assert config["adapter"]["class"] == "LinearAdapter"
    assert config["adapter"]["shapes"] == {"weight": [16, 16]}
    assert config["base_model"]["name"] == "CountingEmbedding"
    assert config["base_model"]["settings"]["dim"] == config["base_model"]["dim"] == 16
    assert load_file(saved / "adapter.safetensors").keys() == {"weight", "fingerprint.probes"}


def test_a_model_that_shows_its_base_stays_so(base, tmp_path):
    shown = AdaptedEmbedding(base, LinearAdapter(-np.eye(16)), transform_query=False)
    shown.save_pretrained(tmp_path / "a")
    assert AdaptedEmbedding.from_pretrained(tmp_path / "a", base).transform_query is False
    applied = AdaptedEmbedding.from_pretrained(tmp_path / "a", base, transform_query=True)
    assert np.allclose(applied.get_query_embedding("x"), -np.float32(base.vector("query", "x")))


def test_the_card_has_the_scores_and_the_snippet(base, tmp_path):
    metrics = {"hit_rate@1": 0.25, "hit_rate@5": 1, "mrr@10": 0.5, "ndcg@10": 0.75, "recall@10": 1}
    part = {"queries": 12, "base": dict.fromkeys(metrics, 0.0), "adapted": metrics}
    report = {"verdict": "ship: it helps", "overall": part, "known": None, "new": part}
    adapter = LinearAdapter.identity(16)
    AdaptedEmbedding(base, adapter, training={"report": report}).save_pretrained(tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("# Adapter for CountingEmbedding\n")
    assert "Verdict: ship: it helps." in card
    assert "| all (12) | adapted | 0.2500 | 1.0000 | 0.5000 | 0.7500 | 1.0000 |" in card
    assert "| new documents (12) | base | 0.0000" in card
    assert "known documents" not in card
    assert 'AdaptedEmbedding.from_pretrained("mine", base_embed_model)' in card


def test_saving_again_replaces_the_folder_or_leaves_it_whole(base, saved, model):
    AdaptedEmbedding(base, LinearAdapter.identity(16)).save_pretrained(saved)
    assert Adapter.load(saved) == LinearAdapter.identity(16)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    with pytest.raises(TypeError, match="not JSON serializable"):
        folders.write(saved, {"adapter": object()}, {})
    assert isinstance(Adapter.load(saved), LinearAdapter)
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match=r"holds other files \(notes\.txt\).*Choose an empty"):
        model.save_pretrained(saved)
    assert (saved / "notes.txt").read_text() == "mine"
    with pytest.raises(FolderError, match=r"notes\.txt: cannot be written \(Not a directory\)"):
        model.save_pretrained(saved / "notes.txt")


class Instructed(CountingEmbedding):
    def vector(self, role: str, text: str) -> list[float]:
        return super().vector(role, f"query: {text}" if role == "query" else text)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (CountingEmbedding(dim=8), "on CountingEmbedding; .*8 dimensions, expected 16.*verify=F"),
        (CountingEmbedding(seed=1), r"least cosine -?0\.\d+, expected at least"),
        (Instructed(), "gives other vectors"),
    ],
    ids=["dimension", "weights", "instruction"],
)
def test_another_model_or_a_changed_one_of_the_same_name_is_refused(saved, other, message):
    with pytest.raises(BaseModelMismatchError, match=message):
        AdaptedEmbedding.from_pretrained(saved, other)


def test_verifying_asks_for_probes_only_and_accepts_noise_and_another_class(saved):
    AdaptedEmbedding.from_pretrained(saved, Noisy(by_call=1e-3))
    base = CountingEmbedding()
    AdaptedEmbedding.from_pretrained(saved, base)
    assert {text for _, text in base.asked} == set(PROBE_TEXTS)
    assert len(base.asked) == 2 * len(PROBE_TEXTS)
    unasked = CountingEmbedding(seed=1)
    loaded = AdaptedEmbedding.from_pretrained(saved, unasked, verify=False)
    assert (loaded.base_embed_model, unasked.asked) == (unasked, [])


Damage = Callable[[Path], object]


def config(**changes: Any) -> Damage:
    return lambda folder: edit(folder / "config.json", **changes)


def weights(**arrays: np.ndarray | None) -> Damage:
    def change(folder: Path) -> None:
        stored = load_file(folder / "adapter.safetensors") | arrays
        kept = {name: array for name, array in stored.items() if array is not None}
        save_file(kept, folder / "adapter.safetensors")

    return change


def cut(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


PROBES = "fingerprint.probes"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
    "no weights": (lambda f: (f / "adapter.safetensors").unlink(), "no adapter.safetensors"),
    "config cut": (lambda f: (f / "config.json").write_text('{"a'), "expected JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "config of another": (lambda f: (f / "config.json").write_text("{}"), "Is this a saved adap"),
    "weights cut": (cut, "damaged or not safetensors"),
    "weights empty": (lambda f: (f / "adapter.safetensors").write_bytes(b""), "not safetensors"),
    "NaN": (weights(weight=np.full((16, 16), np.nan, np.float32)), '"weight" has NaN'),
    "smaller weights": (weights(weight=np.eye(8, dtype=np.float32)), r"expected weights of shapes"),
    "shapes that lie": (config(adapter__shapes={"weight": [8, 8]}), r"\[8, 8\].*found .*\[16, 16"),
    "a weight too many": (weights(more=np.ones(3, np.float32)), "expected weights of shapes"),
    "a weight renamed": (
        lambda f: (
            weights(weight=None, wait=np.eye(16))(f),
            config(adapter__shapes={"wait": [16, 16]})(f),
        ),
        "not a valid LinearAdapter",
    ),
    "future format": (config(format_version=2), "saved in format 2; .*reads up to 1.*--upgrade"),
    "no format": (config(format_version="1"), "no format_version"),
    "unknown class": (config(adapter__class="Magic"), "'Magic' is not known here .*LinearAdapter"),
    "class no name": (config(adapter__class=["LinearAdapter"]), "is not known here"),
    "unknown setting": (config(adapter__config={"speed": 1}), "not a valid LinearAdapter.*speed"),
    "no adapter": (config(adapter=None), "no adapter is described"),
    "base no object": (config(base_model="x"), "base_model is not an object"),
    "NaN probes": (weights(**{PROBES: np.full((6, 16), np.nan, np.float32)}), "has NaN"),
    "flat probes": (weights(**{PROBES: np.ones(16, np.float32)}), "identify its base.*damaged"),
    "few probes": (weights(**{PROBES: np.ones((2, 16), np.float32)}), "expected 6, got 2"),
    "narrow probes": (weights(**{PROBES: np.ones((6, 4), np.float32)}), "16 dimensions, got 4"),
    "no probes": (weights(**{PROBES: None}), "identify its base model are damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_is_refused(base, saved, damage):
    damage[0](saved)
    with pytest.raises(FolderError, match=damage[1]):
        AdaptedEmbedding.from_pretrained(saved, base)


def test_an_adapter_saved_alone_asks_for_its_base_and_a_missing_one_is_named(base, tmp_path):
    LinearAdapter.identity(16).save(tmp_path / "alone")
    with pytest.raises(FolderError, match=r"Pass base_embed_model=…"):
        AdaptedEmbedding.from_pretrained(tmp_path / "alone")
    loaded = AdaptedEmbedding.from_pretrained(tmp_path / "alone", base)
    assert loaded.adapter == LinearAdapter.identity(16)
    assert AdaptedEmbedding(base, str(tmp_path / "alone")).adapter == loaded.adapter
    with pytest.raises(FolderError, match="nowhere: no such folder"):
        AdaptedEmbedding.from_pretrained(tmp_path / "nowhere", base)
    with pytest.raises(FolderError, match="nowhere: no such folder"):
        AdaptedEmbedding(base, tmp_path / "nowhere")


def old(name: str, *dims: int, **settings: Any) -> Any:
    """A network of the old package, with a bias and a residual to be seen."""
    module = pytest.importorskip("llama_index.embeddings.adapter.utils", reason="it is missing")
    network = getattr(module, name)(*dims, **settings)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.7)
    return network


OLD = {
    "linear": partial(old, "LinearLayer", 16, 16, bias=False),
    "linear with bias": partial(old, "LinearLayer", 16, 16, bias=True),
    **{
        f"two layers, {name}, {residual}": partial(old, "TwoLayerNN", 16, 8, 16, bias=True,
                                                   activation_fn_str=name, add_residual=residual)
        for name, residual in (("relu", False), ("relu", True), ("sigmoid", True), ("tanh", False),
                               ("leaky_relu", False))
    },
}  # fmt: skip


@pytest.mark.parametrize("make", OLD.values(), ids=OLD.keys())
def test_a_folder_of_the_old_package_gives_what_it_gave(base, tmp_path, make):
    from llama_index.embeddings.adapter import AdapterEmbeddingModel

    torch.manual_seed(0)
    module = make()
    module.save(str(tmp_path))
    theirs = AdapterEmbeddingModel(base, str(tmp_path), type(module))
    ours = AdaptedEmbedding.from_pretrained(tmp_path, base)
    for text in ("why?", "how do whales sleep"):
        expected = l2_normalize(np.array(theirs.get_query_embedding(text)))
        assert np.allclose(ours.get_query_embedding(text), expected, atol=1e-6)
        assert ours.get_text_embedding(text) == theirs.get_text_embedding(text)
    ours.save_pretrained(tmp_path)  # in place, in the new format
    assert AdaptedEmbedding.from_pretrained(tmp_path, base).adapter == ours.adapter
    assert not (tmp_path / "pytorch_model.bin").exists()


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_malicious_pickle_is_refused_and_not_run(base, tmp_path):
    trace, folder = tmp_path / "was here", tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"linear.weight": Malicious(trace)}, folder / "pytorch_model.bin")
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert trace.exists()  # it would work
    trace.unlink()
    for _ in range(2):
        with pytest.raises(FolderError, match="not a plain file of tensors"):
            AdaptedEmbedding.from_pretrained(folder, base)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    assert not trace.exists()


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_a_name_is_read_and_never_replaced(model, saved, monkeypatch, name):
    (saved / "in").mkdir()
    monkeypatch.chdir(saved / name.replace("..", "in"))
    assert inspect_adapter(name)["folder"] == str(saved.resolve())
    writes = (
        model.save_pretrained,
        check_target_folder,
        lambda path: atomic_folder(path).__enter__(),
    )
    for write in writes:
        with pytest.raises(FolderError, match=f"ends in a name, such as {saved.resolve()}"):
            write(Path(name))
    with pytest.raises(FolderError, match="no candidate to ship"):
        ship_candidate(name)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"other.weight": torch.ones(2, 2)}, r"expected the tensors of.*found \['other\.weight'\]"),
        ({"linear.weight": torch.full((2, 2), torch.nan)}, "finite numbers"),
        ({"linear.weight": 1}, "expected named tensors"),
        ([torch.ones(2)], "expected named tensors"),
        ({}, r"found \[\]"),
    ],
)
def test_old_folders_of_another_kind_are_refused(base, tmp_path, state, message):
    (tmp_path / "config.json").write_text("{}")
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(AdaptedError, match=message):
        AdaptedEmbedding.from_pretrained(tmp_path, base)
