"""The conversations of one run, or of two beside each other, as an HTML page to filter and to read."""

from .page import write_view
from .rebuilt_prompts import PromptRebuilder, TurnPrompts

__all__ = ["PromptRebuilder", "TurnPrompts", "write_view"]
