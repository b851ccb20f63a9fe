"""Benchmark of the page of `usertwin view` in a real browser."""
