"""Readers of chat logs, by source."""
