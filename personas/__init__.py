"""WHO: turns, conversations, log importers, (context, action) pairs, splits, personas, and all errors."""

from .chat_log import ChatLog, read_conversations, write_conversations
from .conversation import Conversation, Turn, as_conversation
from .errors import AgentError, LogError, ModelError, ReplayMiss, TwinError, UsageError, UsertwinError, VerdictError
from .importers.sources import load_log
from .pairs import Pair, Split, split_pairs
from .persona import Persona

__all__ = [
    "AgentError",
    "ChatLog",
    "Conversation",
    "LogError",
    "ModelError",
    "Pair",
    "Persona",
    "ReplayMiss",
    "Split",
    "Turn",
    "TwinError",
    "UsageError",
    "UsertwinError",
    "VerdictError",
    "as_conversation",
    "load_log",
    "read_conversations",
    "split_pairs",
    "write_conversations",
]
