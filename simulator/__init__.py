"""THE TWIN IN ACTION: learn a twin, open it, and let it talk with the agent under test."""

from .agents import AgentCall, Message, as_agent, command_agent, endpoint_agent, graph_agent, http_agent
from .backends.load import load_embedder, load_model, load_scorer
from .learning import learn
from .records import Exchange, Simulation, StopReason
from .runs.many import simulate_many
from .scenarios.scenario import Fact, Scenario
from .simulation import asimulate, simulate
from .state import Answer
from .user import SimulatedUser

__all__ = [
    "AgentCall",
    "Answer",
    "Exchange",
    "Fact",
    "Message",
    "Scenario",
    "SimulatedUser",
    "Simulation",
    "StopReason",
    "as_agent",
    "asimulate",
    "command_agent",
    "endpoint_agent",
    "graph_agent",
    "http_agent",
    "learn",
    "load_embedder",
    "load_model",
    "load_scorer",
    "simulate",
    "simulate_many",
]
