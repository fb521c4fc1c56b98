"""A new base model over the index of the old one, with two real models. See docs/upgrade.md.

python examples/upgrade.py OLD_MODEL NEW_MODEL test.json      # folders, such as MiniLM's, mpnet's
"""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import resolve_embed_model
from llama_index.core.schema import TextNode

from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    EmbeddingQAFinetuneDataset,
    evaluate_upgrade,
    upgrade_adapter,
)


def main(old_folder: str, new_folder: str, judged: str) -> None:
    old, new = (resolve_embed_model(f"local:{folder}") for folder in (old_folder, new_folder))
    test = EmbeddingQAFinetuneDataset.from_json(judged)
    nodes = [TextNode(id_=name, text=text) for name, text in test.corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=old)  # in service; nothing in it changes

    # No labels: both models embed the same texts. It warns where they are too few to learn from.
    upgrade = upgrade_adapter(old, new, list(test.corpus.values()))
    print(upgrade)

    # With labels: what a real re-embedding would give instead.
    print(evaluate_upgrade(upgrade, old, new, test))

    bridge = AdaptedEmbedding(new, upgrade.adapter)
    query = next(iter(test.queries.values()))
    for found in index.as_retriever(embed_model=bridge, similarity_top_k=3).retrieve(query):
        print(f"{found.score:.3f} {found.node.node_id}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
