"""Benchmarks: commands that measure time and say on what machine."""
