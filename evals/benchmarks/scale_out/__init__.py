"""Benchmark of runs on Ray."""
