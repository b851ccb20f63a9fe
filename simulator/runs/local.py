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
from usertwin.personas.secrets import take_logins

from ..agents import AgentCall
from ..backends.load import load_model, prompt_style_of
from ..conversation import TurnLimits, converse
from ..reasoner import load_own_embedder
from ..records import Exchange, Simulation
from ..user import SimulatedUser
from .jobs import Job, Spending


class Twins:
    """Twins by name. Each is opened when it is first needed, and all share the model that acts, and embedding models.

    Args:
        home: the folder of all twins; by default USERTWIN_HOME, else the user's data folder.
        model: the model that acts.
        style: how to prompt it, if not in its default style.
        opened: twins that are open already; they are not closed here.

    Attributes:
        home, given_model, given_style: as given.
    """

    def __init__(
        self, home: str | Path | None = None, model: str | ChatModel = "local", *, style: PromptStyle | None = None,
        opened: Mapping[str, SimulatedUser] | None = None,
    ) -> None:  # fmt: skip
        self.home, self.given_model = home, model
        self.given_style: PromptStyle | None = style
        self._model = model
        self._embedders: dict[str, Embedder] = {}
        self._users, self._speakers = dict(opened or {}), dict[str, str]()
        self._stack = ExitStack()
        self._lock = asyncio.Lock()

    @property
    def model(self) -> ChatModel:
        """The model that acts, loaded when it is first asked for."""
        if isinstance(self._model, str):
            self._model = load_model(self._model, style=self.given_style)
        return self._model

    @property
    def model_name(self) -> str:
        """The name of the model that acts, which is not loaded for it."""
        return take_logins(self._model) if isinstance(self._model, str) else self._model.name

    @property
    def style(self) -> PromptStyle:
        """How the model that acts is prompted; it is not loaded for it. UsageError or ModelError if that is unknown."""
        return prompt_style_of(self._model, self.given_style)[0] if isinstance(self._model, str) else self._model.style

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

    async def open(self, name: str) -> SimulatedUser:
        """Return a twin. TwinError, ModelError or UsageError as `SimulatedUser.load`."""
        async with self._lock:
            if name not in self._users:
                self._users[name] = await to_thread(self._load, name)
            return self._users[name]

    def _load(self, name: str) -> SimulatedUser:
        record = self.record(name)
        key = record.recipe.embedder
        if key not in self._embedders:
            self._embedders[key] = load_own_embedder(record, existing_twin(name, self.home))
        user = SimulatedUser.load(name, home=self.home, model=self.model, embedder=self._embedders[key])
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
        call: the agent, shared by all slots; None if each slot has one of its own.
        new_call: returns an agent for a slot, such as a process.
        limits: what bounds each turn.
    """

    twins: Twins
    call: AgentCall | None
    limits: TurnLimits
    new_call: Callable[[], AgentCall] | None = None

    def slot(self) -> LocalSlot:
        """Return a new place for conversations."""
        own = self.new_call() if self.call is None and self.new_call is not None else None
        call = own or self.call
        if call is None:
            raise ValueError("an executor needs an agent: call or new_call")
        return LocalSlot(self.twins, call, self.limits, own)


@dataclass(frozen=True, slots=True)
class LocalSlot:
    """A place for conversations in this process; `own` is the agent if it ends with the slot."""

    twins: Twins
    call: AgentCall
    limits: TurnLimits
    own: AgentCall | None

    async def run(
        self, job: Job, simulation: Simulation, spending: Spending, on_exchange: Callable[[Exchange], None]
    ) -> Simulation:
        """Return the finished conversation; see `Slot`."""
        user = await self.twins.open(job.twin)
        limits = replace(self.limits, stop=spending)
        return await converse(user, self.call, job.scenario, simulation=simulation, limits=limits, on_exchange=on_exchange)

    def price_of(self, job: Job, usage: Usage) -> float | None:
        """Return the US dollars that model calls cost; None if the price is unknown."""
        price = self.twins.model.price
        return None if price is None else price.cost_of(usage)

    def close(self) -> None:
        """End the agent if it is this slot's own."""
        if self.own is not None:
            self.own.close()
