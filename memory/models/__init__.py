"""Interfaces to chat models, scorers and embedders, and their caches."""
