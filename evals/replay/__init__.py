"""Replay of held-out turns under each arm, and other measurements of a twin."""
