"""Every error that usertwin raises on purpose, in one tree.

    UsertwinError
    ├── LogError        a chat log or a persona file
    ├── TwinError       a twin's folder or memory
    ├── ModelError      a model
    │   ├── VerdictError    a judge model's verdict
    │   └── ReplayMiss      a call that a replayed recording does not hold
    ├── AgentError      the agent under test
    └── UsageError      an argument

Each message is one sentence: the input, what is wrong, and the way out. The command line prints that message and no traceback.
Each class also inherits the standard exception that it specialises, so `except ValueError` works too.
"""

from __future__ import annotations

from .secrets import mask


class UsertwinError(Exception):
    """Base of every error that usertwin raises on purpose; its text is written for the user, and keys in it are masked."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(mask(arg) if isinstance(arg, str) else arg for arg in args))


class LogError(UsertwinError, ValueError):
    """A chat log or a persona file cannot be read, or a log lacks the speaker, turns or dates that the call needs."""


class TwinError(UsertwinError, ValueError):
    """A twin's name is invalid, or its folder or memory is missing, in use or damaged."""


class ModelError(UsertwinError, RuntimeError):
    """A model is not downloaded, not installed or not allowed, or it does not answer."""


class VerdictError(ModelError):
    """A judge model returned no readable verdict, after all retries."""


class ReplayMiss(ModelError):
    """A replayed run asks for what its recording does not hold. It ends the run: it is no fault of the twin or the agent."""


class AgentError(UsertwinError, RuntimeError):
    """The agent under test returned no usable message, or raised an error that cannot be passed on."""


class UsageError(UsertwinError, ValueError):
    """An argument is invalid, or two arguments exclude each other."""
