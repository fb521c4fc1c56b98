"""``python -m llama_index_embeddings_adapted.cli``."""

from .app import main

main()
