"""Benchmarks of simulated conversations."""
