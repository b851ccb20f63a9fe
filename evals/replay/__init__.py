"""Held-out turns replayed under each arm."""
