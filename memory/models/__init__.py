"""What a model is to this package: chat, scoring, embedding, and their caches."""
