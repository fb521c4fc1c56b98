"""The command line, the only room that imports typer.

May import every other room.
"""
