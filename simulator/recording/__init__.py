"""Recorded and replayed runs: every model call of either side by its content, so that a run repeats without a model."""

from .agent import RecordedAgent, recorded_agent, run_recorded_turn
from .embedder import RecordedEmbedder
from .models import recorded_model, replayed_model
from .twin import load_user

__all__ = [
    "RecordedAgent",
    "RecordedEmbedder",
    "load_user",
    "recorded_agent",
    "recorded_model",
    "replayed_model",
    "run_recorded_turn",
]
