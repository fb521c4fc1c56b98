"""Kills, hostile files, flaky servers, long runs, and what a move of code must leave equal."""
