"""Tests of an agent by simulated conversations: checks, a judge of criteria, rates, summaries, thresholds, and comparisons."""
