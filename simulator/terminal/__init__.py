"""The twin in the terminal: what is seen of a turn, and conversations in which a person takes part or watches."""
