import pytest

from llama_index_embeddings_adapted.encoding import base_model


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch) -> None:
    """Try again at once, so that tests of faults do not wait for them to pass."""
    monkeypatch.setattr(base_model, "FIRST_WAIT_S", 0.001)
