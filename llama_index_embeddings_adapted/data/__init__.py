"""Datasets: texts, ids and which documents are relevant; their formats and splits.

May import core; knows no model.
"""
