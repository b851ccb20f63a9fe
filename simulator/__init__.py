"""THE TWIN IN ACTION: the LangGraph twin, models, agents under test, conversations, the terminal."""

from .agents import AgentCall, Message, as_agent
from .backends.load import load_embedder, load_model, load_scorer
from .batch import RunFolder, simulate_many
from .simulation import AGENT_FAULTS, TWIN_FAULTS, Exchange, Simulation, StopReason, asimulate, simulate
from .state import Answer, RecalledTriple, TwinState
from .user import SimulatedUser

__all__ = [
    "AGENT_FAULTS",
    "TWIN_FAULTS",
    "AgentCall",
    "Answer",
    "Exchange",
    "Message",
    "RecalledTriple",
    "RunFolder",
    "SimulatedUser",
    "Simulation",
    "StopReason",
    "TwinState",
    "as_agent",
    "asimulate",
    "load_embedder",
    "load_model",
    "load_scorer",
    "simulate",
    "simulate_many",
]
