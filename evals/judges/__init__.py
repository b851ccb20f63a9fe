"""Judges that compare two replies: a model, or a human rater."""
