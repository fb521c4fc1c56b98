"""The picture of a report in the README: MiniLM on SciFact, default settings, in a real browser."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from benchmarks import environment, sets
from benchmarks.pages.browser import browser
from llama_index_embeddings_adapted import EmbeddingAdapterFinetuneEngine, compare_retrieval

PICTURE = environment.RESULTS / "report.png"


def run(data: Path, cache: Path) -> Path:
    """Train, compare on the test queries, write the page and photograph it."""
    base, scifact = environment.minilm(embed_batch_size=32), sets.load(data, "scifact")
    with tempfile.TemporaryDirectory() as folder:
        engine = EmbeddingAdapterFinetuneEngine(
            scifact.train,
            base,
            model_output_path=Path(folder) / "adapter",
            cache_dir=cache,
            method="linear",
        )
        engine.finetune()
        models = {"base": base, "adapted": engine.get_finetuned_model()}
        found = compare_retrieval(models, scifact.tests["test"], cache_dir=cache)
        page = found.to_html(Path(folder) / "page.html", title="SciFact, all-MiniLM-L6-v2")
        with browser() as tab:
            tab.open(page, width=1215, dark=False)
            tab.run("document.querySelectorAll('.pair details')[1].open = true")
            tab.screenshot(PICTURE, height=1900)
    # A palette is enough for a page, and a third of the size.
    Image.open(PICTURE).quantize(96).save(PICTURE, optimize=True)
    return PICTURE
