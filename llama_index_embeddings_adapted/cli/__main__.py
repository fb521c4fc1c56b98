"""``python -m llama_index_embeddings_adapted.cli``."""

from llama_index_embeddings_adapted.cli.app import main

main()
