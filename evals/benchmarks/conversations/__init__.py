"""Benchmarks of running conversations: throughput, processor time, query embeddings, and the embedded engine."""
