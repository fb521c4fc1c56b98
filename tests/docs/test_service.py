import importlib.util
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter
from tests.conftest import ROOT, CountingEmbedding

openai = pytest.importorskip("openai", reason="extra 'dev' is missing")
uvicorn = pytest.importorskip("uvicorn", reason="extra 'service' is missing")
pytest.importorskip("fastapi", reason="extra 'service' is missing")
pytest.importorskip("prometheus_client", reason="extra 'service' is missing")

SCRIPT = ROOT / "examples" / "service.py"
DIM, TOKEN = 16, "let-me-in"
pytestmark = pytest.mark.filterwarnings("default")


class Provider(CountingEmbedding):
    away: bool = False

    def _answer(self, role: str, texts: list[str]) -> list[list[float]]:
        if self.away:
            raise ConnectionError("no route to host, key sk-secret-123456789012")
        return super()._answer(role, texts)


def saved(base: Any, folder: Path, factor: float) -> None:
    adapter = LinearAdapter(factor * np.eye(DIM), np.eye(DIM)[0])
    AdaptedEmbedding(base, adapter).save_pretrained(folder)


class Running:
    def __init__(self, root: Path) -> None:
        spec = importlib.util.spec_from_file_location("service", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.root, self.base = root, Provider()
        for number, name in enumerate(("adapter", "tenants/acme", "versions/two", "versions/bad")):
            saved(self.base, root / name, number - 1.5)
        (root / "versions" / "bad" / "adapter.safetensors").write_bytes(b"tampered")
        (root / "versions" / "empty").mkdir()
        saved(CountingEmbedding(dim=DIM, seed=5), root / "versions" / "other", 1.0)
        service = module.Service(self.base, *(root / n for n in ("adapter", "tenants", "versions")))
        config = uvicorn.Config(module.create_app(service, TOKEN), port=0, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, text: Any = "why?", **extra: Any) -> Any:
        answer = self.client.embeddings.create(model=model, input=text, **extra)
        vectors = [each.embedding for each in answer.data]
        return vectors[0] if isinstance(text, str) else vectors

    def admin(self, job: str, model: str, version: str | None = None, token: str = TOKEN) -> Any:
        asks = {"json": {"model": model, "version": version}}
        asks["headers"] = {"Authorization": f"Bearer {token}".strip()}
        return httpx.post(f"{self.address}/admin/{job}", **asks)

    def wanted(self, folder: str, text: str = "why?") -> Any:
        model = AdaptedEmbedding.from_pretrained(self.root / folder, self.base)
        return model.get_query_embedding(text)


@pytest.fixture
def running(tmp_path) -> Iterator[Running]:
    found = Running(tmp_path)
    yield found
    found.client.close()
    found.server.should_exit = True
    found.thread.join()


def test_openais_client_gets_base_adapter_and_tenant_in_both_roles(running):
    base = running.base
    query, document = (base.vector(role, "why?") for role in ("query", "document"))
    assert np.allclose(running.ask("base"), query, atol=1e-6)
    assert np.allclose(running.ask("adapter"), running.wanted("adapter"), atol=1e-6)
    assert np.allclose(running.ask("tenant:acme"), running.wanted("tenants/acme"), atol=1e-6)
    for name in ("base", "adapter", "tenant:acme"):
        assert np.allclose(running.ask(f"{name}:document"), document, atol=1e-6)
        extra = {"extra_body": {"input_type": "document"}}
        assert np.allclose(running.ask(name, **extra), document, atol=1e-6)
    floats = running.ask("adapter:query", ["why?", "how?"], encoding_format="float")
    assert np.allclose(floats, [running.wanted("adapter", t) for t in ("why?", "how?")], atol=1e-6)
    names = [model.id for model in running.client.models.list()]
    assert names == ["base", "adapter", "tenant:acme"]


@pytest.mark.parametrize(
    ("model", "text", "extra", "status", "message"),
    [
        ("gpt", "why?", {}, 404, "expected .*tenant:<name>.*got .*gpt"),
        ("tenant:../adapter", "why?", {}, 404, "got .*tenant:\\.\\./adapter"),
        ("tenant:", "why?", {}, 404, "got .*tenant:"),
        ("tenant:.previous", "why?", {}, 404, "got .*tenant:\\.previous"),
        ("adapter", [], {}, 400, "expected 1 to 2048 texts"),
        ("adapter", ["a", ""], {}, 400, "none of them empty"),
        ("adapter", [[1, 2]], {}, 400, "valid string"),
        ("adapter", "why?", {"dimensions": 3}, 400, "has 16 and cuts none off"),
        ("adapter:query", "w", {"extra_body": {"input_type": "document"}}, 400, "input_type says"),
        ("adapter", "w", {"extra_body": {"input_type": "passage"}}, 400, "'query' or 'document'"),
    ],
)
def test_bad_requests_are_refused_as_openai_does(running, model, text, extra, status, message):
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        running.ask(model, text, **extra)
    assert refused.value.status_code == status
    assert running.ask("base")


def test_a_base_model_out_of_reach_is_named_without_its_secrets(running):
    running.base.away = True
    for name in ("base", "adapter", "tenant:acme:document"):
        with pytest.raises(openai.APIStatusError, match="base model cannot be asked") as failed:
            running.ask(name)
        assert failed.value.status_code == 502
        assert "sk-" not in str(failed.value)
    running.base.away = False
    assert running.ask("adapter")


def test_versions_are_swapped_and_rolled_back_while_clients_ask(running):
    before, two = (running.wanted(name) for name in ("adapter", "versions/two"))
    plain = running.ask("base")
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(running.ask, "adapter") for _ in range(60)]
        assert running.admin("swap", "adapter", "two").json()["done"] == "swap"
        assert all(any(np.allclose(a.result(), v, atol=1e-6) for v in (before, two)) for a in asked)
    assert np.allclose(running.ask("adapter"), two, atol=1e-6)
    assert running.admin("swap", "adapter").status_code == 200
    assert np.allclose(running.ask("adapter"), plain, atol=1e-6)
    for wanted in (two, before):
        assert running.admin("roll_back", "adapter").status_code == 200
        assert np.allclose(running.ask("adapter"), wanted, atol=1e-6)
    acme = running.ask("tenant:acme")
    assert running.admin("swap", "tenant:acme", "two").status_code == 200
    assert np.allclose(running.ask("tenant:acme"), two, atol=1e-6)
    assert running.admin("roll_back", "tenant:acme").status_code == 200
    assert np.allclose(running.ask("tenant:acme"), acme, atol=1e-6)


def test_who_may_not_swap_or_swaps_what_is_not_there_changes_nothing(running):
    before = running.ask("adapter"), running.ask("tenant:acme")
    for token in ("", "wrong", TOKEN[:-1]):
        assert running.admin("swap", "adapter", "two", token).status_code == 401
    for model in ("adapter", "tenant:acme"):
        for version in ("bad", "empty", "other", "nothing", "../adapter", "/etc", "", ".."):
            answer = running.admin("swap", model, version)
            assert answer.status_code == 400, (model, version, answer.text)
            assert answer.json()["error"]["message"]
    for model in ("base", "tenant:../adapter", "tenant:"):
        assert running.admin("swap", model, "two").status_code == 400
        assert running.admin("roll_back", model).status_code == 400
    assert running.admin("roll_back", "tenant:acme").status_code == 400
    assert running.admin("delete", "adapter").status_code == 404
    assert (running.ask("adapter"), running.ask("tenant:acme")) == before


def test_metrics_count_by_kind_and_health_says_what_is_served(running):
    for name in ("base", "adapter", "tenant:acme:document", "tenant:acme"):
        running.ask(name)
    with pytest.raises(openai.APIStatusError):
        running.ask("tenant:someone-" + "x" * 50)
    text = httpx.get(f"{running.address}/metrics").text
    assert 'embeddings_requests_total{model="tenant",status="200"} 2.0' in text
    assert 'embeddings_requests_total{model="tenant",status="404"} 1.0' in text
    assert 'embeddings_texts_total{model="tenant",role="document"} 1.0' in text
    assert 'embeddings_seconds_count{model="adapter"} 1.0' in text
    assert "embeddings_tenants_loaded 1.0" in text
    assert "someone" not in text
    assert "LinearAdapter(16 → 16" in httpx.get(f"{running.address}/health").json()["adapter"]
    shutil.rmtree(running.root / "tenants" / "acme")
    with pytest.raises(openai.APIStatusError, match=r"got .*tenant:acme"):
        running.ask("tenant:acme")
