"""Training runs as the command line starts them."""
