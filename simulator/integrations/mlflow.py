"""A twin as the simulated user of MLflow's `ConversationSimulator`.

MLflow gives a simulated user no way to leave, and takes every failure for the end of a conversation. So the simulator here is a
subclass: a conversation ends when the twin leaves, and a failure of the twin is raised after all conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from usertwin.memory.event_loop import run_sync
from usertwin.personas import UsageError

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinTalk, TwinUser, third_party

_REQUIREMENT = "mlflow>=3.17"
#: MLflow's method that decides after each reply if a conversation goes on. It is private, so its absence is an error.
_GOAL_CHECK = "_check_goal_achieved"


def twin_simulator(
    twin: str | SimulatedUser, test_cases: Any, *, max_turns: int = 10, user_model: str | None = None,
    **options: Unpack[TwinOptions],
) -> Any:  # fmt: skip
    """Return a `ConversationSimulator` with a twin as its user, for `simulate` or `mlflow.genai.evaluate`.

    Args:
        twin: a learned twin, or its name.
        test_cases: MLflow's test cases. Without a goal of its own, the twin wants what the case's goal says; a persona is
            ignored, since the twin is a person.
        max_turns: the maximum number of turns of the twin.
        user_model: the model that MLflow asks after each reply if the goal is reached; by default nobody is asked.
        **options: as of `TwinUser`.

    Raises:
        UsageError: MLflow is not installed, or its version decides elsewhere when a conversation ends.
    """
    mlflow = third_party("mlflow.genai.simulators", _REQUIREMENT)
    if not hasattr(mlflow.ConversationSimulator, _GOAL_CHECK):
        raise UsageError(f"this version of MLflow has no {_GOAL_CHECK}; run: pip install '{_REQUIREMENT}'")
    user = TwinUser(twin, **options)
    failures, talks = list[Exception](), dict[int, TwinTalk]()

    def kept(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            failures.append(error)
            raise

    class Twin(mlflow.BaseSimulatedUserAgent):
        """The twin; MLflow makes one for each conversation."""

        def generate_message(self, context: Any) -> str:
            """Return the user's next message."""
            history = context.conversation_history
            if context.is_first_turn:
                talks[id(history)] = TwinTalk(user, goal=context.goal)
            return kept(lambda: run_sync(talks[id(history)].turn(history, "end the simulation there")).text)

    class TwinSimulator(mlflow.ConversationSimulator):
        """MLflow's simulator, which ends a conversation when the twin leaves, and raises the twin's failures."""

        def simulate(self, predict_fn: Callable[..., Any]) -> Any:
            """Run all conversations. The first failure of the twin is raised when all have ended."""
            failures.clear()
            traces = None
            try:
                traces = super().simulate(predict_fn)
            except Exception:  # MLflow's own, if no conversation got as far as a trace
                if not failures:
                    raise
            finally:
                talks.clear()
            if failures:
                raise failures[0]
            return traces

        def _check_goal_achieved(self, conversation_history: Sequence[Any], *args: Any, **facts: Any) -> bool:
            talk = talks[id(conversation_history)]
            if kept(lambda: run_sync(talk.stops(conversation_history))) is not None:
                return True
            return user_model is not None and super()._check_goal_achieved(conversation_history, *args, **facts)

    return TwinSimulator(test_cases, max_turns=max_turns, user_model=user_model, user_agent_class=Twin)
