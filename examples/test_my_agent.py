"""A test of a chat agent with simulated users that were learned from real ones.

Learn a twin: usertwin learn robin --from chitchat --speaker 60576dcf-5b39-4420-a850-33ff7d108047 --traces none
Run it:       pytest examples/test_my_agent.py --usertwin-twin robin
"""

from collections.abc import Callable

import pytest

from usertwin.simulator import Simulation
from usertwin.simulator.agents.demo_agent import help_desk


@pytest.mark.usertwin(goal="Your parcel should have come on Monday. You want to know where it is.", max_turns=3)
@pytest.mark.parametrize("seed", range(2))
def test_the_help_desk_never_repeats_itself(simulate: Callable[..., Simulation], seed: int) -> None:
    conversation = simulate(help_desk, seed=seed, agent_first=True)
    replies = [message["content"] for message in conversation.messages if message["role"] == "assistant"]
    assert len(replies) == len(set(replies))
