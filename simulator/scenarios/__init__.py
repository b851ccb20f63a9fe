"""Scenarios as data: who talks, what they want and know, how a conversation begins and ends, and the check of the twin."""

from .scenario import Fact, Scenario

__all__ = ["Fact", "Scenario"]
