"""An LLM writes questions about passages, filters judge them; or documents already contain them.

May import encoding and what is below it; knows neither adapters nor training.
"""
