"""Traces of language model applications."""
