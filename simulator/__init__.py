"""THE TWIN IN ACTION: the LangGraph twin, models, agents under test, conversations, the terminal."""

from .agents import AgentCall, Message, as_agent
from .backends.load import load_embedder, load_model, load_scorer
from .batch import simulate_many
from .simulation import Exchange, Simulation, StopReason, asimulate, simulate
from .state import Answer
from .user import SimulatedUser

__all__ = [
    "AgentCall",
    "Answer",
    "Exchange",
    "Message",
    "SimulatedUser",
    "Simulation",
    "StopReason",
    "as_agent",
    "asimulate",
    "load_embedder",
    "load_model",
    "load_scorer",
    "simulate",
    "simulate_many",
]
