"""A twin on disk: its record, and learning, appending and forgetting."""
