"""Numpy arrays and files: unit rows, exact search, qrels, atomic files.

Imports errors only; knows neither LlamaIndex nor texts, scipy or torch.
"""
