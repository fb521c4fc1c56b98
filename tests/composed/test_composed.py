import asyncio
import copy
import json
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings.loading import load_embed_model

import llama_index_embeddings_adapted as package
from llama_index_embeddings_adapted.composed.small_model import SmallModel, digests
from llama_index_embeddings_adapted.errors import BaseModelMismatchError, EncodeError, FolderError
from tests.conftest import CountingEmbedding
from tests.support import flaky_server
from tests.support.files import edit
from tests.support.tiny import tiny_model

OURS = "sentence_transformers.models.Transformer"
TEXTS = ["a blue whale in the deep sea", "apple pie", "the city bus is late today"]


@pytest.fixture(scope="module")
def small() -> Any:
    return tiny_model()


@pytest.fixture
def composed(base, small) -> package.ComposedEmbedding:
    return package.ComposedEmbedding(base, small, 0.5)


def expected(base: CountingEmbedding, small: Any, role: str, text: str) -> np.ndarray:
    b, a = np.array(base.vector(role, text)), small.encode(text)
    joined = np.concatenate([b / np.linalg.norm(b), 0.5 * a / np.linalg.norm(a)])
    return joined / np.linalg.norm(joined)


async def test_a_vector_is_both_models_side_by_side_alone_in_batches_and_async(
    composed, base, small
):
    query = expected(base, small, "query", TEXTS[0])
    documents = [expected(base, small, "document", text) for text in TEXTS]
    assert len(query) == 16 + 32
    for found, wanted in (
        (composed.get_query_embedding(TEXTS[0]), query),
        (await composed.aget_query_embedding(TEXTS[0]), query),
        (composed.get_text_embedding(TEXTS[0]), documents[0]),
        (await composed.aget_text_embedding(TEXTS[0]), documents[0]),
        (composed.get_text_embedding_batch(TEXTS), documents),
        (await composed.aget_text_embedding_batch(TEXTS), documents),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert composed.get_text_embedding_batch([]) == []


def test_both_models_are_asked_in_batches(composed, base, monkeypatch):
    sizes: list[int] = []
    encode = SmallModel.encode

    def counted(self: SmallModel, texts: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(texts))
        return encode(self, texts, *args, **kwargs)

    monkeypatch.setattr(SmallModel, "encode", counted)
    composed.get_text_embedding_batch([f"text {n}" for n in range(8)])
    assert base.batches == sizes == [4, 4]


def test_the_small_model_computes_while_the_black_box_is_awaited(small, monkeypatch):
    encode, begun = SmallModel.encode, threading.Event()

    class Waiting(CountingEmbedding):
        """A black box that answers once the small model has begun."""

        async def _aget_query_embedding(self, query: str) -> list[float]:
            assert await asyncio.to_thread(begun.wait, 5), "the small model was not asked meanwhile"
            return self.vector("query", query)

    def begins(self: SmallModel, *args: Any, **kwargs: Any) -> Any:
        begun.set()
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(SmallModel, "encode", begins)
    found = asyncio.run(package.ComposedEmbedding(Waiting(), small).aget_query_embedding("why"))
    assert len(found) == 48


def test_without_weight_it_is_the_black_box_and_the_small_model_is_not_loaded(base, tmp_path):
    model = package.ComposedEmbedding(base, str(tmp_path / "not there"), 0)
    assert np.allclose(model.get_query_embedding("why"), base.vector("query", "why"), atol=1e-6)
    assert len(asyncio.run(model.aget_text_embedding("why"))) == 16


def test_it_drops_into_an_index_and_into_settings(composed, monkeypatch):
    documents = [Document(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=composed)
    found = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])
    assert found[0].text == TEXTS[1]
    monkeypatch.setattr(Settings, "_embed_model", None)
    Settings.embed_model = composed
    assert Settings.embed_model is composed


@pytest.fixture
def saved(composed, tmp_path) -> Path:
    composed.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_gives_the_same_vectors_is_replaced_and_named(composed, saved, base):
    loaded = package.ComposedEmbedding.from_pretrained(saved, base)
    assert loaded.get_query_embedding("why") == composed.get_query_embedding("why")
    assert loaded.weight == 0.5
    assert "ComposedEmbedding.from_pretrained" in (saved / "README.md").read_text()
    composed.weight = 0.25
    composed.save_pretrained(saved)
    assert package.ComposedEmbedding.from_pretrained(saved, base).weight == 0.25
    model = package.resolve_embed_model(f"adapted:{saved}")
    assert isinstance(model, package.ComposedEmbedding)
    assert isinstance(model.base_embed_model, CountingEmbedding)
    assert len(model.get_query_embedding("why")) == 48


def test_the_folder_is_a_standard_one_without_pickles(saved, small):
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(saved / "augment_model"), device="cpu")
    np.testing.assert_allclose(loaded.encode("why"), small.encode("why"), atol=1e-6)
    kinds = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".md", ".txt"}


def test_a_dict_rebuilds_it_unless_it_was_never_saved(saved, composed):
    model = package.ComposedEmbedding.from_pretrained(saved)
    data = json.loads(model.to_json())
    for again in (package.ComposedEmbedding.from_dict(dict(data)), load_embed_model(dict(data))):
        assert again.get_query_embedding("why") == model.get_query_embedding("why")
    del data["augment_digest"]  # as of 0.1
    assert package.ComposedEmbedding.from_dict(data).weight == model.weight
    with pytest.raises(FolderError, match=r"names no small model.*save_pretrained"):
        package.ComposedEmbedding.from_dict(composed.to_dict())


def test_a_pipeline_does_not_take_one_small_model_for_another(base, composed, tmp_path):
    models = [composed]
    for queries in ((), [f"why {text}" for text in TEXTS]):
        words = package.LexicalEmbedding.of(TEXTS, queries)
        models.append(package.ComposedEmbedding(base, words))
        models[-1].save_pretrained(tmp_path / "again")
        models.append(package.ComposedEmbedding.from_pretrained(tmp_path / "again", base))
        assert models[-1].to_dict() == models[-1].to_dict()
        assert models[-1]._small._model is None  # it was not loaded for that
    assert len({str(model.to_dict()) for model in models}) == len(models)


@pytest.mark.parametrize("from_folder", [True, False], ids=["from folder", "in memory"])
def test_pickles_and_copies_give_the_same_vectors(from_folder, saved, composed):
    model = package.ComposedEmbedding.from_pretrained(saved) if from_folder else composed
    query = model.get_query_embedding("why")
    state = pickle.dumps(model)
    assert (b"torch._" not in state) == from_folder  # a saved small model travels as its name
    for again in (pickle.loads(state), copy.deepcopy(model)):
        np.testing.assert_allclose(again.get_query_embedding("why"), query, atol=1e-6)
        assert again.weight == model.weight


def test_an_adapter_may_wrap_it_and_be_saved(saved, tmp_path):
    model = package.ComposedEmbedding.from_pretrained(saved)
    wrapped = package.AdaptedEmbedding(model, package.LinearAdapter.identity(48))
    query = model.get_query_embedding("why")
    assert np.allclose(wrapped.get_query_embedding("why"), query, atol=1e-5)
    wrapped.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "config.json"
    ours = "llama_index_embeddings_adapted.ComposedEmbedding"
    assert json.loads(config.read_text())["base_model"]["import_path"] == ours
    for path in (ours, ours.replace(".", ".composed.")):  # the second as 0.1 wrote
        edit(config, base_model__import_path=path)
        again = package.resolve_embed_model(f"adapted:{tmp_path / 'adapter'}")
        assert again.get_query_embedding("why") == wrapped.get_query_embedding("why")


def test_another_black_box_and_the_class_of_adapters_are_refused(saved):
    with pytest.raises(BaseModelMismatchError, match="gives other vectors for the probe texts"):
        package.ComposedEmbedding.from_pretrained(saved, CountingEmbedding(seed=1))
    package.ComposedEmbedding.from_pretrained(saved, CountingEmbedding(seed=1), verify=False)
    with pytest.raises(FolderError, match="holds a ComposedEmbedding: load it with that"):
        package.AdaptedEmbedding.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model__import_path": "nowhere.Nobody"}, r"Nobody, which is not known here\. Pass"),
        ({"composed__weight": -3}, "weight: expected a number >= 0, got -3"),
    ],
)
def test_a_config_that_was_changed_to_nonsense_is_refused(changes, message, saved):
    edit(saved / "config.json", **changes)
    with pytest.raises(FolderError, match=message):
        package.ComposedEmbedding.from_pretrained(saved)


def tampered(saved: Path, path: str, content: str | None) -> Path:
    (saved / path).unlink(missing_ok=True)
    if content is not None:
        (saved / path).write_text(content, encoding="latin-1")
    return saved


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", "{", "expected JSON"),
        ("config.json", "{}", "no format_version"),
        ("config.json", '{"format_version": 99}', "saved in format 99"),
        ("config.json", '{"format_version": 1}', "holds no composed model"),
        ("fingerprint.safetensors", None, "no fingerprint.safetensors"),
        ("fingerprint.safetensors", "junk", "damaged or not safetensors"),
        ("augment_model/model.safetensors", "junk", "not what was saved.*model.safetensors"),
        ("augment_model/more.txt", "x", "1 files are missing, new or not what was saved"),
        ("augment_model/tokenizer.json", None, "not what was saved"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(path, content, message, saved, base):
    with pytest.raises(FolderError, match=message):
        package.ComposedEmbedding.from_pretrained(tampered(saved, path, content), base)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("modules.json", '[{"type": "evil.Module", "path": ""}]', "the code of evil.Module"),
        ("modules.json", '[{"type": "os.system", "path": ""}]', "the code of os.system"),
        ("modules.json", f'[{{"type": "{OURS}", "path": "../.."}}]', "points outside its folder"),
        ("modules.json", "{}", "expected a list of modules"),
        ("config.json", '{"auto_map": {"AutoModel": "evil.Model"}}', "code of its own"),
        ("1_Pooling/weights.pkl", "\x80\x04.", "weights that may run code"),
        ("vocab.txt", "/etc/hostname", "points outside its folder"),
    ],
)
def test_no_folder_makes_us_run_its_code_or_leave_it(path, content, message, saved, base):
    (saved / "augment_model" / "evil.py").write_text("raise SystemExit('executed')")
    if path == "vocab.txt":
        os.symlink(content, saved / "augment_model" / path)
    else:
        tampered(saved, f"augment_model/{path}", content)
    # The hashes fit what is there, as who tampers on purpose would make them.
    edit(saved / "config.json", composed__files=digests(saved / "augment_model"))
    with pytest.raises(FolderError, match=message):
        package.ComposedEmbedding.from_pretrained(saved, base)


def test_a_small_model_that_gives_no_numbers_is_found(base, small):
    import torch

    broken = copy.deepcopy(small)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(EncodeError, match="small model gave a vector with NaN"):
        package.ComposedEmbedding(base, broken).get_query_embedding("why")


@pytest.fixture
def server() -> Iterator[flaky_server.Flaky]:
    """Refuses every tenth request, as busy servers do."""
    busy = flaky_server.Reply(503, says="busy")
    with flaky_server.serving(lambda _, n: busy if n % 10 == 9 else flaky_server.Reply()) as found:
        yield found


def test_a_remote_black_box_is_batched_retried_and_billed_once_per_text(tmp_path, server, quiet):
    pytest.importorskip("llama_index.embeddings.openai")
    pytest.importorskip("datasets", reason="extra 'composed' is missing")
    key = "sk-secret-of-the-user-1234567890"
    remote = flaky_server.client(server.address, api_key=key, embed_batch_size=16, max_retries=5)
    corpus = {f"d{n}": f"entry number {n}" for n in range(24)}
    queries = {f"q{n}": f"what is {n}" for n in range(24)}
    data = package.EmbeddingQAFinetuneDataset(queries, corpus, {q: [f"d{q[1:]}"] for q in queries})
    settings = {"epochs": 3, "model_output_path": tmp_path / "model", "device": "cpu", **quiet}
    engine = package.ComposedFinetuneEngine(data, remote, tiny_model(), **settings)
    engine.finetune()
    assert {server.answered[text] for text in [*corpus.values(), *queries.values()]} == {1}
    assert 10 <= len(server.requests) < 48  # some refused and asked again, documents in batches
    saved = "".join(path.read_text(errors="ignore") for path in (tmp_path / "model").glob("*.*"))
    assert "sk-secret" not in saved
    before = server.answered.total()
    package.ComposedFinetuneEngine(data, remote, tiny_model(), **settings).finetune()
    assert server.answered.total() == before
    model = engine.get_finetuned_model()
    later = asyncio.run(model.aget_query_embedding("what is 3"))
    np.testing.assert_allclose(later, model.get_query_embedding("what is 3"), atol=1e-5)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "api_key" in config["base_model"]["omitted"]
