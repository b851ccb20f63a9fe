"""Who compares two replies: a model, or a person."""
