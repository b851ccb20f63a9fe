"""A person's twin on disk: learn, extend, forget."""
