"""Twins as the user in other tools: one file for each tool, which imports that tool only when it is used."""
