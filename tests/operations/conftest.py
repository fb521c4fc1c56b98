from typing import Any

import pytest


@pytest.fixture
def quiet(tmp_path) -> dict[str, Any]:
    return {"cache_dir": tmp_path / "cache", "show_progress": False}
