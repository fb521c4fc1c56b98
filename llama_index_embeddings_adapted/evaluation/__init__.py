"""Arrays in; scores, verdicts, tables and pages out.

May import adapters, questions and what is below; knows no training.
"""
