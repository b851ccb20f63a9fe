"""Text utilities: transcripts, words and prompt templates."""
