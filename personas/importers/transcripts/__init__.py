"""Transcripts of spoken conversations."""
