"""Fuzzing: mutated files, settings, completions and replies for every reader of usertwin."""
