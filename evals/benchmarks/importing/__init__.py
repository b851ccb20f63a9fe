"""The benchmark of importing logs."""
