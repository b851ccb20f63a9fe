"""The agent under test: every accepted shape as one async call, and how its turn is run, whatever the agent does."""

from .process import AgentProcess
from .replies import as_replies
from .shapes import AgentCall, as_agent, load_agent
from .turn import Failure, Message, run_turn

__all__ = ["AgentCall", "AgentProcess", "Failure", "Message", "as_agent", "as_replies", "load_agent", "run_turn"]
