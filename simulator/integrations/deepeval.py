"""A twin as the user of DeepEval's `ConversationSimulator`: a simulation graph of one node, and its stopping controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from usertwin.personas import UsageError

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinTalk, TwinUser, third_party

_REQUIREMENT = "deepeval>=4.3"
_WAY_OUT = "give the simulator stopping_controller=user.stop"


class DeepEvalUser(TwinUser):
    """A twin for DeepEval: give `graph` as `simulation_graph`, `stop` as `stopping_controller`, `model` as `simulator_model`.

    Without a goal of its own, the twin wants what the golden's scenario says. Golden number i has the seed plus i.

    Attributes:
        graph: the simulation graph.
        model: a stand-in for the simulator model, which DeepEval demands and the twin never asks.
    """

    def __init__(self, twin: str | SimulatedUser, **options: Unpack[TwinOptions]) -> None:
        super().__init__(twin, **options)
        graphs = third_party("deepeval.simulator.simulation_graph", _REQUIREMENT)
        self.graph: Any = graphs.SimulationNode(action=self._say, name=f"twin:{self.name}")
        self.model: Any = _no_model(self.name)
        self._end: Any = third_party("deepeval.simulator.controller", _REQUIREMENT)
        self._talks = dict[str, TwinTalk]()

    async def stop(self, turns: Sequence[Any], golden: Any, thread_id: str, index: int) -> Any:
        """Return DeepEval's decision whether the conversation ends here."""
        talk = self._talks.setdefault(thread_id, TwinTalk(self, goal=golden.scenario or "", seed=self.seed + index))
        if turns and turns[-1].role == "user" and talk.stop is None:
            return self._end.proceed()  # the golden ends with the user, so the agent is next
        reason = await talk.stops(turns)
        return self._end.proceed() if reason is None else self._end.end(reason=reason)

    async def _say(self, turns: Sequence[Any], golden: Any, thread_id: str) -> str:
        talk = self._talks.setdefault(thread_id, TwinTalk(self, goal=golden.scenario or ""))
        return (await talk.turn(turns, _WAY_OUT)).text


def _no_model(name: str) -> Any:
    """Return a model of DeepEval that answers nothing."""
    models = third_party("deepeval.models", _REQUIREMENT)

    class NoModel(models.DeepEvalBaseLLM):
        """Stands for the simulator model."""

        def load_model(self, *_: Any, **__: Any) -> None:
            """Load nothing."""

        def get_model_name(self, *_: Any, **__: Any) -> str:
            """Return the name that DeepEval shows."""
            return f"twin:{name}"

        def generate(self, *_: Any, **__: Any) -> Any:
            """Raise UsageError."""
            raise UsageError("this simulation asks a model, and has only a twin; give it a simulator_model")

        async def a_generate(self, *_: Any, **__: Any) -> Any:
            """Raise UsageError."""
            return self.generate()

    return NoModel()


def twin_user(twin: str | SimulatedUser, **options: Unpack[TwinOptions]) -> DeepEvalUser:
    """Return a twin for DeepEval; the arguments are those of `TwinUser`.

    Raises:
        UsageError: DeepEval is not installed.
    """
    return DeepEvalUser(twin, **options)
