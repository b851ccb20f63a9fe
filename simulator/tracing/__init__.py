"""Traces of conversations, for LangSmith and other LangChain callbacks, and as OpenTelemetry spans."""

from .settings import tracing

__all__ = ["tracing"]
