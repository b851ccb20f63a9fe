"""Exports of help desks."""
