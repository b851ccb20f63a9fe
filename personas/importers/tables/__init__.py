"""Tables, and data sets of conversations."""
