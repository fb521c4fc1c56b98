"""Text becomes vectors here and nowhere else: asks a base model in bulk, keeps vectors on disk.

May import data and core; knows neither adapters nor training.
"""
