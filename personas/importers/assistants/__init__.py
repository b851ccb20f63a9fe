"""Exports and training data of assistants."""
