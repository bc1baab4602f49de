"""Benchmarks: commands that print the figures of the documentation again."""
