"""Upkeep of an adapter in service: rebuilt indexes, similarity, new base models, drift.

May import serving and what is below; knows no training.
"""
