"""An encoded dataset in, an adapter out. Torch lives here.

May import serving and what is below.
"""
