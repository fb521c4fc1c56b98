"""What an adapter is: immutable numpy maps, and the folder they are saved in.

May import encoding and what is below it; knows neither torch nor LlamaIndex.
"""
