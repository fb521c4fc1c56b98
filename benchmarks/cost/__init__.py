"""Seconds, memory and growth."""
