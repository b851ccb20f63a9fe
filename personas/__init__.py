"""WHO: people and what they said. Turns, conversations, importers, pairs, splits, personas, and the errors of us all."""

from .chat_log import BadLine, ChatLog, read_conversations, write_conversations
from .conversation import PRIVATE_ROLES, Conversation, Turn, as_conversation
from .errors import AgentError, LogError, ModelError, TwinError, UsageError, UsertwinError, VerdictError
from .importers.chitchat import load_chitchat
from .importers.sources import load_log
from .pairs import Pair, Split, pairs_of, split_pairs
from .persona import Persona, draw_persona, read_persona

__all__ = [
    "PRIVATE_ROLES",
    "AgentError",
    "BadLine",
    "ChatLog",
    "Conversation",
    "LogError",
    "ModelError",
    "Pair",
    "Persona",
    "Split",
    "Turn",
    "TwinError",
    "UsageError",
    "UsertwinError",
    "VerdictError",
    "as_conversation",
    "draw_persona",
    "load_chitchat",
    "load_log",
    "pairs_of",
    "read_conversations",
    "read_persona",
    "split_pairs",
    "write_conversations",
]
