"""Twins behind an OpenAI-compatible endpoint: the model's name is the twin's."""
