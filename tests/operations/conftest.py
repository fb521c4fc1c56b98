from typing import Any

import pytest


@pytest.fixture
def quiet(tmp_path) -> dict[str, Any]:
    """A cache of the test's own, and no bars."""
    return {"cache_dir": tmp_path / "cache", "show_progress": False}
