"""The demonstration: held-out moments beside what the twin says at them, and a guessing game."""
