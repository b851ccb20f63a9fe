"""Scenarios as data: who talks, what they want and know, how a conversation begins and ends, and the check of the twin."""

from .facts import Fact
from .from_real import check_held_out, from_conversation
from .judge import ajudge_twin, judge_twin
from .modifiers import MODIFIERS, ModifiedTurn, mixed_in_turn, modified_turn
from .read import expand, read_scenarios
from .scenario import Scenario
from .twin_faults import find_twin_faults

__all__ = [
    "MODIFIERS",
    "Fact",
    "ModifiedTurn",
    "Scenario",
    "ajudge_twin",
    "check_held_out",
    "expand",
    "find_twin_faults",
    "from_conversation",
    "judge_twin",
    "mixed_in_turn",
    "modified_turn",
    "read_scenarios",
]
