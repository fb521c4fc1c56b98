"""Words beside vectors: what texts are made of, and how well they match by it.

May import encoding and what is below it; knows texts, neither models nor training.
"""
