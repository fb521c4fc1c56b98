"""What LlamaIndex holds: embedding models and retrievers around an adapter.

May import evaluation and what is below; knows neither torch nor training.
"""
