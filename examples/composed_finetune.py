"""A small model trained beside a frozen black box.

``python examples/composed_finetune.py TRAIN VAL``, JSON files of ``EmbeddingQAFinetuneDataset``.
``--black-box`` is anything that LlamaIndex resolves, such as ``local:<name or folder>``; ``openai``
asks OpenAI, with the key in ``OPENAI_API_KEY``, once per text. A killed run continues when it is
started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llama_index_embeddings_adapted import (
    ComposedFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    resolve_embed_model,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--black-box", default="openai")
    parser.add_argument("--augment-model", default="BAAI/bge-small-en-v1.5")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out/composed"))
    arguments = parser.parse_args()
    box = "default" if arguments.black_box == "openai" else arguments.black_box

    engine = ComposedFinetuneEngine(
        EmbeddingQAFinetuneDataset.from_json(arguments.train),
        resolve_embed_model(box),
        arguments.augment_model,
        val_dataset=EmbeddingQAFinetuneDataset.from_json(arguments.val),
        epochs=arguments.epochs,
        model_output_path=arguments.out / "model",
        cache_dir=arguments.out / "cache",  # of the black box's vectors
        verbose=True,  # prints the hit rate of every epoch, and the verdict
    )
    engine.finetune()
    engine.save_history(arguments.out / "history.json")
    print(f"figure: {engine.plot_history(arguments.out / 'history.png')}")


if __name__ == "__main__":
    main()
