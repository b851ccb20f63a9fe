"""Measures of closeness and the statistics over them."""
