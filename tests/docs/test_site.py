import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llama_index_embeddings_adapted as package
from tests.conftest import ROOT

DOCS = ROOT / "docs"
LOADED = r'(?:<script[^>]+src|<link[^>]+rel="(?:stylesheet|icon|preconnect)"[^>]*href)="(\w+:)?//'


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for name in ("material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("extra 'dev' is missing")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(ROOT / ".ci" / "mkdocs.yml"), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_guide_is_in_the_menu_and_no_page_loads_anything_from_elsewhere(site):
    menu = (site / "index.html").read_text("utf-8").partition("<article")[0]
    for page in DOCS.glob("*.md"):
        path = site if page.stem == "README" else site / page.stem
        assert page.stem == "README" or f'href="{page.stem}/"' in menu, page.stem
        assert not re.search(LOADED, (path / "index.html").read_text("utf-8")), page.stem
    assert (site / "examples" / "first_adapter.ipynb").exists()


@pytest.mark.slow
def test_the_reference_has_every_exported_name_with_its_errors(site):
    page = (site / "reference" / "index.html").read_text("utf-8")
    found = re.findall(rf'<h3 id="{package.__name__}\.(\w+)"', page)
    assert sorted(found) == sorted(package.__all__)
    assert f'id="{package.__name__}.AdaptedEmbedding.from_pretrained"' in page
    assert "BaseModelMismatchError" in page
    assert not re.search(r"_get_query_embedding|:(?:class|func|meth|attr|mod|data):<code>", page)
