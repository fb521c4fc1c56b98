import asyncio
import copy
import json
import pickle
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex

from llama_index_embeddings_adapted import AdaptedEmbedding, AdapterPool, LinearAdapter
from llama_index_embeddings_adapted.adapters.maps import LowRankAdapter
from llama_index_embeddings_adapted.errors import BaseModelMismatchError, FolderError, OptionError
from tests.conftest import CountingEmbedding

DIM = 16
TENANTS = ("acme", "globex", "initech")
NO_TENANTS = ("acme.candidate", ".acme.12ab")  # a verdict was against it; half written


def adapter_of(number: int, dim: int = DIM, rank: int = 2) -> LowRankAdapter:
    random = np.random.default_rng(number)
    down, up = random.standard_normal((2, rank, dim))
    return LowRankAdapter(down, up.T, random.standard_normal(dim))


@pytest.fixture
def root(base, tmp_path) -> Path:
    for number, name in enumerate(TENANTS):
        AdaptedEmbedding(base, adapter_of(number)).save_pretrained(tmp_path / name)
    return tmp_path


@pytest.fixture
def pool(root, base) -> AdapterPool:
    return AdapterPool(root, base)


def expected(pool: AdapterPool, number: int, text: str = "why?") -> np.ndarray:
    vector = pool.base_embed_model.get_query_embedding(text)
    return adapter_of(number).apply(np.float32(vector))


def test_the_adapter_is_chosen_per_call_and_not_loaded_before(pool):
    assert pool.names() == list(TENANTS)
    assert pool.loaded == ()
    assert np.allclose(pool["globex"].get_query_embedding("why?"), expected(pool, 1))
    assert pool.loaded == ("globex",)
    assert pool["globex"] is pool["globex"]
    with pytest.raises(OptionError, match=r"pool.current\(\).for_documents\(\)"):
        pool.embed_model().to_dict()
    with pytest.raises(OptionError, match=r"sent to another process.*send pool.current\(\)"):
        pickle.dumps(pool.embed_model())
    model = copy.deepcopy(pool.embed_model())
    plain = pool.base_embed_model.get_query_embedding("why?")
    assert model.get_query_embedding("why?") == plain
    with pool.using("acme"):
        assert np.allclose(model.get_query_embedding("why?"), expected(pool, 0))
        with pool.using("initech"):
            assert np.allclose(model.get_query_embedding("why?"), expected(pool, 2))
        with pool.using(None):
            assert model.get_query_embedding("why?") == plain
        assert np.allclose(model.get_query_embedding("why?"), expected(pool, 0))
    assert model.get_query_embedding("why?") == plain


def test_a_default_answers_where_nothing_was_chosen(root, base):
    pool = AdapterPool(root, base, default="globex")
    assert np.allclose(pool.embed_model().get_query_embedding("why?"), expected(pool, 1))
    with pytest.raises(OptionError, match="There is no adapter 'nobody'"):
        AdapterPool(root, base, default="nobody")
    one = sum(array.nbytes for array in adapter_of(0).arrays().values())
    pool = AdapterPool(root, base, max_bytes=2 * one)
    for name in ("acme", "globex", "acme", "initech"):
        assert pool[name].adapter.input_dim == DIM
    assert pool.loaded == ("acme", "initech")
    assert pool.nbytes == 2 * one


async def test_coroutines_and_threads_do_not_see_each_others_choice(pool):
    model = pool.embed_model()

    async def ask(number: int) -> bool:
        with pool.using(TENANTS[number % 3]):
            await asyncio.sleep(0)
            found = await model.aget_query_embedding("why?")
            return np.allclose(found, expected(pool, number % 3))

    def ask_thread(number: int) -> bool:
        with pool.using(TENANTS[number % 3]):
            return np.allclose(model.get_query_embedding("why?"), expected(pool, number % 3))

    assert all(await asyncio.gather(*map(ask, range(60))))
    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask_thread, range(300)))


def test_tenants_share_one_index_whose_documents_are_the_base_models(pool):
    texts = ["apple pie", "blue whale", "city bus", "deep sea"]
    base = pool.base_embed_model
    documents = [Document(text=text) for text in texts]
    index = VectorStoreIndex.from_documents(documents, embed_model=pool.embed_model())
    assert [text for role, text in base.asked if role == "document"][-4:] == texts
    corpus = base.vectors("document", texts)
    for number, name in enumerate(TENANTS):
        order = np.argsort(-corpus @ expected(pool, number))
        with pool.using(name):
            found = index.as_retriever(similarity_top_k=4).retrieve("why?")
        assert [node.text for node in found] == [texts[row] for row in order]


def test_a_tenant_gets_a_new_version_and_its_old_one_back(pool, root, base, tmp_path):
    for number in (7, 8):
        AdaptedEmbedding(base, adapter_of(number)).save_pretrained(tmp_path / "new" / str(number))
    served = pool["acme"]
    with pytest.raises(OptionError, match="no earlier version of adapter 'acme'"):
        pool.roll_back("acme")
    for number in (7, 8):
        pool.replace("acme", tmp_path / "new" / str(number))
        assert pool["acme"].adapter == adapter_of(number)
    assert served.adapter == adapter_of(0)  # whoever holds it ends with it
    pool.roll_back("acme")
    assert AdapterPool(root, base)["acme"].adapter == pool["acme"].adapter == adapter_of(7)
    pool.roll_back("acme")
    assert pool["acme"].adapter == adapter_of(8)
    AdaptedEmbedding(base, adapter_of(7)).save_pretrained(root / "acme")  # behind its back
    assert pool["acme"].adapter == adapter_of(8)
    pool.forget("acme")
    pool.forget("never there")
    assert pool["acme"].adapter == adapter_of(7)
    pool.replace("hooli", tmp_path / "new" / "7")
    assert pool.names() == sorted([*TENANTS, "hooli"])
    assert pool["globex"].adapter == adapter_of(1)


def test_a_version_that_is_refused_changes_nothing(pool, root, tmp_path):
    other = tmp_path / "elsewhere"
    AdaptedEmbedding(CountingEmbedding(seed=3), adapter_of(1)).save_pretrained(other / "model")
    shutil.copytree(root / "acme", other / "torn")
    (other / "torn" / "adapter.safetensors").write_bytes(b"torn")
    (other / "empty").mkdir()
    files = sorted(root.rglob("*"))
    for name in ("model", "torn", "empty", "nothing"):
        error = BaseModelMismatchError if name == "model" else FolderError
        with pytest.raises(error, match=name):
            pool.replace("acme", other / name)
    for name in ("../acme", "a/b", "", ".", "..", ".previous", "/etc"):
        with pytest.raises(OptionError, match="name: expected a plain name"):
            pool.replace(name, root / "acme")
    assert sorted(root.rglob("*")) == files
    assert pool["acme"].adapter == adapter_of(0)


def test_no_query_fails_while_tenants_are_replaced(pool, base, tmp_path):
    for number in (0, 5):
        AdaptedEmbedding(base, adapter_of(number)).save_pretrained(tmp_path / f"v{number}")
    wanted = [expected(pool, number) for number in (0, 5)]
    model = pool.embed_model()

    def ask(_: int) -> bool:
        with pool.using("acme"):
            found = model.get_query_embedding("why?")
        return any(np.allclose(found, each, atol=1e-5) for each in wanted)

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(ask, range(400))
        for number in (5, 0, 5, 0, 5):
            pool.replace("acme", tmp_path / f"v{number}")
        assert all(asked)
    assert pool["acme"].adapter == adapter_of(5)


@pytest.mark.parametrize(
    "name", ["../acme", "acme/../acme", "", ".", "..", "/etc", "nobody", "x" * 300, *NO_TENANTS]
)
def test_a_name_that_is_no_folder_below_the_root_is_refused(pool, root, name):
    for other in NO_TENANTS:
        shutil.copytree(root / "acme", root / other)
    with pytest.raises(OptionError, match=r'There is no adapter .* which has 3 \(first: "acme"'):
        pool[name]
    with pytest.raises(OptionError, match="There is no adapter"), pool.using(name):
        raise AssertionError("the block does not run")


def test_what_does_not_belong_in_a_pool_is_refused(root, base, tmp_path):
    shared = LinearAdapter.identity(DIM, shared=True)
    AdaptedEmbedding(base, shared).save_pretrained(root / "shared")
    AdaptedEmbedding(CountingEmbedding(seed=3), adapter_of(1)).save_pretrained(root / "other")
    shutil.copytree(root / "acme", root / "torn")
    (root / "torn" / "adapter.safetensors").write_bytes(b"torn")
    pool = AdapterPool(root, base)
    with pytest.raises(OptionError, match="moves documents, and the adapters of a pool share one"):
        pool["shared"]
    with pytest.raises(BaseModelMismatchError, match="other was trained on"):
        pool["other"]
    with pytest.raises(FolderError, match="damaged"):
        pool["torn"]
    assert AdapterPool(root, base, verify=False)["other"].adapter == adapter_of(1)
    with pytest.raises(OptionError, match="max_bytes: expected a number > 0"):
        AdapterPool(root, base, max_bytes=0)


def test_a_thousand_adapters_of_dimension_384_fit_in_200_megabytes(tmp_path):
    base = CountingEmbedding(dim=384)
    AdaptedEmbedding(base, adapter_of(0, 384, rank=32)).save_pretrained(tmp_path / "t0")
    config = json.loads((tmp_path / "t0" / "config.json").read_text())
    assert config["adapter"]["shapes"]["down"] == [32, 384]  # the default rank
    for number in range(1, 1000):
        shutil.copytree(tmp_path / "t0", tmp_path / f"t{number}")
    pool = AdapterPool(tmp_path, base)
    assert pool["t0"].adapter.input_dim == 384  # imports and probes are not what is measured
    tracemalloc.start()
    for number in range(1, 1000):
        assert pool[f"t{number}"].adapter.input_dim == 384
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    AdaptedEmbedding(base, adapter_of(0, 384, rank=8)).save_pretrained(tmp_path / "small")
    assert sum(file.stat().st_size for file in (tmp_path / "small").iterdir()) < 50_000
    assert len(pool.loaded) == 1000
    assert used < peak < 200_000_000
    assert len(pickle.dumps(pool["t5"].adapter)) < 120_000
