"""The agent under test: every accepted shape as one async call, and how its turn is run, whatever the agent does."""

from .call import AgentCall
from .command import command_agent
from .endpoint import endpoint_agent
from .graphs import graph_agent
from .http_file import http_agent
from .process import AgentProcess
from .replies import as_replies
from .shapes import as_agent, load_agent
from .turn import Failure, Message, run_turn

__all__ = [
    "AgentCall",
    "AgentProcess",
    "Failure",
    "Message",
    "as_agent",
    "as_replies",
    "command_agent",
    "endpoint_agent",
    "graph_agent",
    "http_agent",
    "load_agent",
    "run_turn",
]
