"""From a folder of documents to an adapter, with Ollama. See docs/ollama.md.

python examples/own_documents.py my_documents --llm llama3.2 --embed nomic-embed-text
"""

import argparse

from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.llms.ollama import Ollama

from llama_index_embeddings_adapted import (
    EmbeddingAdapterFinetuneEngine,
    compare_retrieval,
    generate_qa_embedding_pairs,
    hold_out_documents,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--llm", default="llama3.2")
    parser.add_argument("--embed", default="nomic-embed-text")
    parser.add_argument("--url", default="http://localhost:11434")
    parser.add_argument("--passages", type=int, default=200, help="to ask about, at most")
    arguments = parser.parse_args()
    base = OllamaEmbedding(model_name=arguments.embed, base_url=arguments.url)
    llm = Ollama(model=arguments.llm, base_url=arguments.url, request_timeout=300)

    documents = SimpleDirectoryReader(arguments.folder, recursive=True).load_data()
    nodes = SentenceSplitter(chunk_size=512, chunk_overlap=50).get_nodes_from_documents(documents)
    dataset = generate_qa_embedding_pairs(
        nodes, llm, max_chunks=arguments.passages, concurrency=2, embed_model=base
    )
    print(dataset.report)
    dataset.save_json("written.json")

    train, test = hold_out_documents(dataset, nodes, 0.3)
    engine = EmbeddingAdapterFinetuneEngine(train, base, model_output_path="ollama_adapter")
    engine.finetune()
    print(engine.report)
    print(compare_retrieval({"base": base, "adapted": engine.get_finetuned_model()}, test))


if __name__ == "__main__":
    main()
