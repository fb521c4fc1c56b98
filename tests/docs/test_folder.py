"""The reader of the page about saved folders reads what this version and version 0.1 saved."""

import numpy as np
import pytest

from llama_index_embeddings_adapted import AdaptedEmbedding, LinearAdapter
from llama_index_embeddings_adapted.adapters import base, saving
from tests.conftest import ROOT, CountingEmbedding
from tests.support.pages import blocks

PAGE = ROOT / "docs" / "folder.md"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_twenty_lines_read_a_folder(bias, normalize, tmp_path):
    random = np.random.default_rng(0)
    weight, offset = random.standard_normal((16, 16)), random.standard_normal(16)
    adapter = LinearAdapter(weight, offset if bias else None, normalize=normalize)
    AdaptedEmbedding(CountingEmbedding(), adapter).save_pretrained(tmp_path / "saved")
    code = blocks(PAGE)[0].partition("print(")[0]
    reader = code.partition("def read")[2]
    assert len([line for line in reader.splitlines() if line.strip()]) <= 20
    names: dict[str, object] = {}
    exec(code, names)
    for folder in (tmp_path / "saved", ROOT / "tests" / "frozen" / "linear"):
        wanted = saving.load(folder).adapter
        query = random.standard_normal(wanted.input_dim).astype(np.float32)
        found = names["read"](str(folder))(query)
        assert np.abs(found - wanted.apply(query)).max() < 1e-5


def test_the_page_names_every_class_that_maps_queries():
    page = PAGE.read_text("utf-8")
    ours = [c for n, c in base._registry.items() if c.__module__.startswith("llama_index_emb")]
    for kind in ours:
        if kind.__name__ not in ("UnitAdapter", "NudgeAdapter", "DocumentPrior"):
            assert kind.__name__ == "CompositeAdapter" or f"`{kind.__name__}`" in page
