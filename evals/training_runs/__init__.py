"""Training runs of `usertwin train`."""
