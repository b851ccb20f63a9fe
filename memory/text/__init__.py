"""Transcripts, words and prompt templates."""
