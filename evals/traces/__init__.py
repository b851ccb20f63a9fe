"""Whether reasoning traces carry more than leakage."""
