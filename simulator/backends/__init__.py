"""Models by name: names, downloads, loading."""
