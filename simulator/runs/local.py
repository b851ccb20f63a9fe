"""Conversations in this process: the twins of a run, opened once each, and the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from usertwin.memory import ChatModel, Embedder, Settings, TwinRecord, existing_twin
from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import PromptStyle, Usage
from usertwin.memory.models.recording import Recording
from usertwin.personas.secrets import take_logins

from ..agents import AgentCall
from ..backends.load import load_model, prompt_style_of
from ..conversation import TurnLimits, converse
from ..reasoner import load_own_embedder, reasoner_name
from ..recording import RecordedEmbedder, load_user, recorded_agent, recorded_model, replayed_model
from ..records import Exchange, Simulation
from ..user import SimulatedUser
from .jobs import Job, Spending


class Twins:
    """Twins by name. Each is opened when it is first needed, and all share the model that acts, and embedding models.

    Args:
        home: the folder of all twins; by default USERTWIN_HOME, else the user's data folder.
        model: the model that acts.
        style: how to prompt it, if not in its default style.
        opened: twins that are open already; they are not closed here, and not recorded.
        recording: records the models, or replays them.

    Attributes:
        home, given_model, given_style, recording: as given.
    """

    def __init__(
        self, home: str | Path | None = None, model: str | ChatModel = "local", *, style: PromptStyle | None = None,
        opened: Mapping[str, SimulatedUser] | None = None, recording: Recording | None = None,
    ) -> None:  # fmt: skip
        self.home, self.given_model, self.recording = home, model, recording
        self.given_style: PromptStyle | None = style
        self._model = model
        self._embedders: dict[str, Embedder] = {}
        self._users, self._speakers = dict(opened or {}), dict[str, str]()
        self._stack = ExitStack()
        self._lock = asyncio.Lock()

    @property
    def model(self) -> ChatModel:
        """The model that acts, loaded when it is first asked for."""
        recording = self.recording
        if isinstance(self._model, str):
            if recording is not None and recording.is_replay:
                self._model = replayed_model(self._model, recording, self.given_style)
            else:
                self._model = load_model(self._model, style=self.given_style)
        if recording is not None and self._model.recording is None:
            self._model = recorded_model(self._model, recording)
        return self._model

    @property
    def model_name(self) -> str:
        """The name of the model that acts, which is not loaded for it."""
        return take_logins(self._model) if isinstance(self._model, str) else self._model.name

    @property
    def style(self) -> PromptStyle:
        """How the model that acts is prompted. UsageError or ModelError if that is unknown.

        The model is not loaded for it. A replayed one is, since the recording knows its style.
        """
        if isinstance(self._model, str) and self.recording is None:
            return prompt_style_of(self._model, self.given_style)[0]
        return self.model.style

    @property
    def has_opened(self) -> bool:
        """Whether a twin is open."""
        return bool(self._users)

    def speaker(self, name: str) -> str:
        """Return the speaker in the log whom a twin was learned from. TwinError if there is no such twin."""
        if name not in self._speakers:
            self._speakers[name] = self.record(name).recipe.speaker
        return self._speakers[name]

    def record(self, name: str) -> TwinRecord:
        """Return a twin's record, without opening its memory. TwinError if there is no such twin."""
        return self._users[name].record if name in self._users else TwinRecord.load(existing_twin(name, self.home))

    def k_of(self, name: str) -> int:
        """Return the number of triples that a twin recalls for a turn."""
        return self._users[name].k if name in self._users else (self.record(name).settings or Settings()).k

    def reasoner_of(self, name: str) -> str | None:
        """Return the name of the model that reasons for a twin; None if it is the one that acts."""
        if name in self._users:
            user = self._users[name]
            return None if user.reasoner is user.model else user.reasoner.name
        return reasoner_name(self.record(name), self.model_name)

    async def open(self, name: str) -> SimulatedUser:
        """Return a twin. TwinError, ModelError or UsageError as `SimulatedUser.load`."""
        async with self._lock:
            if name not in self._users:
                self._users[name] = await to_thread(self._load, name)
            return self._users[name]

    def _load(self, name: str) -> SimulatedUser:
        record = self.record(name)
        key, recording = record.recipe.embedder, self.recording
        if key not in self._embedders and (recording is None or not recording.is_replay):
            embedder = load_own_embedder(record, existing_twin(name, self.home))
            self._embedders[key] = embedder if recording is None else RecordedEmbedder(embedder, recording)
        embedder = self._embedders.get(key)
        if recording is None:
            user = SimulatedUser.load(name, home=self.home, model=self.model, embedder=embedder)
        else:
            user = load_user(name, recording, home=self.home, model=self.model, embedder=embedder)
        return self._stack.enter_context(user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExecutor:
    """Runs conversations in this process.

    Attributes:
        twins: the twins.
        new_call: returns the agent for a slot, such as a process of its own; None in a replay.
        owns_call: whether the agent ends with its slot.
        limits: what bounds each turn.
        recording: the recording of the run, if there is one; `spec` names the agent in it.
        spec: the agent's name.
    """

    twins: Twins
    new_call: Callable[[], AgentCall | None]
    owns_call: bool
    limits: TurnLimits
    recording: Recording | None = None
    spec: str = ""

    def slot(self) -> LocalSlot:
        """Return a new place for conversations."""
        return LocalSlot(self, self.new_call())


@dataclass(frozen=True, slots=True)
class LocalSlot:
    """A place for conversations in this process, with its agent."""

    executor: LocalExecutor
    call: AgentCall | None

    async def run(
        self, job: Job, simulation: Simulation, spending: Spending, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        """Return the finished conversation; see `Slot`."""
        executor, call = self.executor, self.call
        user = await executor.twins.open(job.twin)
        limits = replace(executor.limits, stop=spending)
        if executor.recording is not None:
            call = recorded_agent(call, executor.recording, executor.spec, conversation=f"{job.id}, seed {job.seed}")
        if call is None:
            raise ValueError("only a replay has no agent")
        result = await converse(user, call, job.scenario, simulation=simulation, limits=limits, on_exchange=on_exchange)
        if executor.recording is not None:
            executor.recording.check()
        return result

    def price_of(self, job: Job, usage: Usage) -> float | None:
        """Return the US dollars that model calls cost; None if the price is unknown."""
        price = self.executor.twins.model.price
        return None if price is None else price.cost_of(usage)

    def close(self) -> None:
        """End the agent if it is this slot's own."""
        if self.executor.owns_call and self.call is not None:
            self.call.close()
