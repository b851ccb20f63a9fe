"""The prompts of a run, built again from its conversations and its twins.

Design: a run does not hold its prompts, which would multiply its size and the private text in it. It holds a checksum of each
one. A prompt is built again from what the run recorded (messages, recalled triples, reasoning) and from the twin (persona and
style card), and it is shown only if its checksum is the same. So what is shown is what the model was sent, or a sentence says
why it cannot be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Self

from usertwin.evals.agent_tests import AgentRun
from usertwin.evals.agent_tests.transcript import messages_by_turn
from usertwin.memory import Settings, Triple, TripleStore, TwinRecord, existing_twin
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.twin.forget import open_memory
from usertwin.memory.twin.record import default_home, list_twins
from usertwin.personas import Pair, UsertwinError, as_conversation
from usertwin.personas.style_card import StyleCard
from usertwin.simulator import Scenario
from usertwin.simulator.prompt_fit import prompt_checksum
from usertwin.simulator.prompts import Messages, act_messages, reason_messages, shown_turns, with_shown_traces
from usertwin.simulator.reasoner import load_own_embedder
from usertwin.simulator.records import Exchange, Simulation
from usertwin.simulator.state import upcoming_turn
from usertwin.simulator.turn_checks import StyleCards

_STYLES: tuple[PromptStyle, ...] = ("transcript", "instruction")
_AUTHORED = "No model was asked: the scenario wrote this turn."
_LEFT = "No model was asked: the twin left without a word, as the person did at moments like this."
_NO_CHECKSUMS = "The run holds no checksums of its prompts: an earlier version of usertwin wrote it."
_CHANGED = (
    "This prompt cannot be built again: the twin, usertwin's prompts or the files of the run have changed since, or the "
    "message that it answers did not fit into the model's context."
)


@dataclass(frozen=True, slots=True)
class TurnPrompts:
    """The prompts of one turn of a twin.

    Attributes:
        prompts: the step ("reasoning" or "turn") and the messages of each prompt that could be built again.
        why_not: why one or all of them are missing; "" if none is.
    """

    prompts: tuple[tuple[Literal["reasoning", "turn"], Messages], ...] = ()
    why_not: str = ""


class PromptRebuilder:
    """Builds the prompts of a run again. Close it after use, since it opens the memories of twins.

    Args:
        run: the run.
        home: the folder of all twins; by default USERTWIN_HOME, else the user's data folder.

    Attributes:
        missing: for each twin that cannot be used, why not; known once a conversation of it was read.
    """

    def __init__(self, run: AgentRun, home: str | Path | None = None) -> None:
        self.missing: dict[str, str] = {}
        self._run, self._home = run, home
        self._stack = ExitStack()
        self._twins: dict[str, _Twin] = {}
        self._scenarios: dict[str, Scenario | None] = {}
        models: Any = run.manifest.get("models")
        style = models.get("style") if isinstance(models, dict) else None
        self._styles: tuple[PromptStyle, ...] = tuple(known for known in _STYLES if style in {known, None})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def prompts_of(self, simulation: Simulation) -> list[TurnPrompts]:
        """Return the prompts of each turn of the twin in a conversation."""
        blocks = messages_by_turn(simulation)
        before = accumulate(blocks[:-1])  # the messages before each turn
        return [self._of_turn(simulation, number, messages) for number, messages in enumerate(before)]

    def _of_turn(self, simulation: Simulation, number: int, messages: Sequence[Any]) -> TurnPrompts:
        exchange = simulation.exchanges[number]
        checksums = list(exchange.answer.prompts)
        if exchange.authored or not checksums:
            left = exchange.answer.done and not exchange.answer.action
            return TurnPrompts(why_not=_AUTHORED if exchange.authored else _LEFT if left else _NO_CHECKSUMS)
        twin = self._twin(simulation.twin)
        if twin is None:
            return TurnPrompts(why_not=self.missing[simulation.twin])
        built: list[tuple[Literal["reasoning", "turn"], Messages]] = []
        for style in self._styles:
            query = twin.query(messages, self._goal(simulation, number, messages, style))
            thoughts = twin.reasoning_prompts(style, query, exchange)
            if len(checksums) > 1 and not built and (thought := _same(thoughts, checksums[0])):
                built.append(("reasoning", thought))
            if turn := _same(twin.turn_prompts(style, query, exchange), checksums[-1]):
                built.append(("turn", turn))
                break
        return TurnPrompts(tuple(built), "" if len(built) == len(checksums) else twin.problem or _CHANGED)

    def _twin(self, name: str) -> _Twin | None:
        if name not in self._twins and name not in self.missing:
            if name not in list_twins(self._home):
                home = default_home() if self._home is None else self._home
                self.missing[name] = f'The twin "{name}" is not on this machine (in {home}), and prompts are built from it.'
                return None
            try:
                folder = existing_twin(name, self._home)
                self._twins[name] = _Twin(TwinRecord.load(folder), folder, self._stack)
            except UsertwinError as error:
                self.missing[name] = f"The twin cannot be read, and prompts are built from it: {error}."
        return self._twins.get(name)

    def _goal(self, simulation: Simulation, number: int, messages: Sequence[Any], style: PromptStyle) -> str:
        """Return the goal that the twin's prompt got in a turn."""
        scenario = self._scenario(simulation.scenario)
        return simulation.goal if scenario is None else scenario.goal_in_turn(number, messages, style=style)

    def _scenario(self, name: str) -> Scenario | None:
        """Return a scenario; None if the run holds none of this name, or one of another version."""
        if name not in self._scenarios:
            raw = self._run.scenarios.get(name)
            try:
                self._scenarios[name] = None if raw is None else Scenario.from_json(raw)
            except (ValueError, UsertwinError):
                self._scenarios[name] = None
        return self._scenarios[name]


class _Twin:
    """What a twin's prompts are made of: its record, and the style card of its memory, which is opened if it is needed.

    Attributes:
        problem: why the memory cannot be opened; "" if it could be, or was not needed.
    """

    def __init__(self, record: TwinRecord, folder: Path, stack: ExitStack) -> None:
        self.record, self.problem = record, ""
        self._settings = record.settings or Settings()
        self._folder, self._stack = folder, stack
        self._cards: StyleCards | None = None

    def query(self, messages: Sequence[Any], goal: str) -> Pair:
        """Return the turn that is to be written after these messages."""
        return upcoming_turn(as_conversation(list(messages)).turns, goal, self.record.recipe.speaker)

    def reasoning_prompts(self, acting: PromptStyle, query: Pair, exchange: Exchange) -> Iterator[Messages]:
        """Yield the prompts that the reasoner may have got: whole, and cut as that of the turn; then in another style."""
        recalled, answer = self._shown(exchange), exchange.answer
        for style in sorted(_STYLES, key=lambda known: known != acting):
            whole = (len(recalled), shown_turns(style, query, self._settings.window))
            cut = (len(recalled) - answer.cut_recalled, len(query.context) - answer.cut_turns)
            for card in self._cards_for(style, query):
                for count, turns in dict.fromkeys((whole, cut)):
                    yield reason_messages(style, self.record.persona, query, recalled[:count], turns=turns, card=card)

    def turn_prompts(self, style: PromptStyle, query: Pair, exchange: Exchange) -> Iterator[Messages]:
        """Yield the prompts that the acting model may have got: an instruction may have asked for a JSON object."""
        answer = exchange.answer
        shown = self._shown(exchange)
        kept = shown[: len(shown) - answer.cut_recalled]
        reasoning = answer.reasoning if len(answer.prompts) > 1 else ""  # else it was written with the reply
        turns = len(query.context) - answer.cut_turns
        for card in self._cards_for(style, query):
            for structured in (False, True) if style == "instruction" else (False,):
                yield act_messages(
                    style, self.record.persona, query, kept, reasoning, turns=turns, card=card, structured=structured
                )

    def _cards_for(self, style: PromptStyle, query: Pair) -> list[StyleCard | None]:
        """Return the style card in a prompt, None in a transcript; nothing if the memory cannot be opened."""
        if style == "transcript":
            return [None]
        cards = self._style_cards()
        return [] if cards is None else [cards(query)]

    def _style_cards(self) -> StyleCards | None:
        if self._cards is None and not self.problem:
            try:
                store: TripleStore = open_memory(self._folder, load_own_embedder(self.record, self._folder))
                self._cards = StyleCards(self._stack.enter_context(store))
            except UsertwinError as error:
                self.problem = f"The twin's memory cannot be opened, and prompts are built from it: {error}."
        return self._cards

    def _shown(self, exchange: Exchange) -> list[Triple]:
        """Return the recalled triples as the model saw them; the run may name another speaker."""
        speaker = self.record.recipe.speaker
        recalled = [replace(m.triple, pair=replace(m.triple.pair, speaker=speaker)) for m in exchange.answer.recalled]
        return with_shown_traces(recalled, "none") if self._settings.traces == "none" else recalled


def _same(prompts: Iterator[Messages], checksum: str) -> Messages | None:
    """Return the prompt with this checksum; None if none has it."""
    return next((messages for messages in prompts if prompt_checksum(messages) == checksum), None)
