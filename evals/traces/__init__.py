"""Control traces and trained synthesizers, which test whether a trace's score is more than leakage."""
