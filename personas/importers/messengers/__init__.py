"""Exports of messengers, e-mail and IRC."""
