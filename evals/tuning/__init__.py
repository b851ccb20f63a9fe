"""Settings of a twin that are chosen on its validation turns."""
