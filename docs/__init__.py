"""Guides, and the reference that is written from docstrings."""
