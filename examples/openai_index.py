"""Adapt an index of OpenAI embeddings without embedding it again. See docs/openai.md.

python examples/openai_index.py storage pairs.json "a question to try"
"""

import argparse

from llama_index.core import StorageContext, load_index_from_storage
from llama_index.embeddings.openai import OpenAIEmbedding

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    EmbeddingQAFinetuneDataset,
    check_similarity,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", help="folder of a persisted index")
    parser.add_argument("pairs", help="a dataset as JSON")
    parser.add_argument("question")
    parser.add_argument("--model", default="text-embedding-3-small")
    arguments = parser.parse_args()
    openai = OpenAIEmbedding(model=arguments.model, embed_batch_size=100)

    pairs = EmbeddingQAFinetuneDataset.from_json(arguments.pairs)
    engine = EmbeddingAdapterFinetuneEngine(pairs, openai, model_output_path="for_openai")
    engine.finetune()
    print(engine.report)
    print(f"{engine.report.base_texts} texts were sent; a second run sends none")

    adapted = engine.get_finetuned_model()
    storage = StorageContext.from_defaults(persist_dir=arguments.storage)
    index = load_index_from_storage(storage, embed_model=adapted)  # no document is embedded
    print(check_similarity(index, adapted))
    for name, model in (("before", openai), ("after", adapted)):
        hits = index.as_retriever(similarity_top_k=3, embed_model=model).retrieve(
            arguments.question
        )
        print(f"{name}:", *(hit.node.node_id for hit in hits))


if __name__ == "__main__":
    main()
