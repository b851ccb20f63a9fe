"""Measurements of many people, described by one TOML file."""
