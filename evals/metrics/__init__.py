"""Measures of closeness, and their statistics."""
