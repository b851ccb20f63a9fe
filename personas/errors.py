"""Every error the user of usertwin can meet, in one tree.

    UsertwinError
    ├── LogError(ValueError)          a chat log cannot be read, or does not hold what was asked of it
    ├── TwinError(ValueError)         a twin's name, folder or memory is not what it should be
    ├── ModelError(RuntimeError)      a model cannot be had or does not answer
    │   └── VerdictError              a judge gives no verdict that can be read, however often it is asked
    ├── AgentError(RuntimeError)      the agent under test raised, returned nothing or took too long
    └── UsageError(ValueError)        an argument that makes no sense

The one design choice: the tree is small, each leaf also inherits the standard error it replaces, and each
message is one sentence that says what is wrong, where, and the way out, so that a door of the program prints the message
and nothing else.
"""

from __future__ import annotations


class UsertwinError(Exception):
    """Base of every error that usertwin raises on purpose; its text is meant for the user."""


class LogError(UsertwinError, ValueError):
    """A chat log cannot be read, or does not hold what was asked of it."""


class TwinError(UsertwinError, ValueError):
    """A twin's name, folder or memory is not what it should be."""


class ModelError(UsertwinError, RuntimeError):
    """A model cannot be had (not fetched, not installed, forbidden), or does not answer."""


class VerdictError(ModelError):
    """A judge gives no verdict that can be read, however often it is asked."""


class AgentError(UsertwinError, RuntimeError):
    """The agent under test raised, returned nothing that can be read as a message, or took too long."""


class UsageError(UsertwinError, ValueError):
    """An argument that makes no sense, or two that exclude each other."""
