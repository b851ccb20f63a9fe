"""The independent check of a finished conversation: what the twin did and its person would not, with this goal and these facts.

The check reads the conversation and the scenario, not the prompt. Turns that the scenario wrote are never charged. A rule
charges only what it can name. The rules were tuned on real conversations, so that few people would be charged (see
docs/scenarios.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from usertwin.memory.text.goal_words import mentions_goal
from usertwin.memory.text.sentences import size_in_words
from usertwin.memory.text.speaker_sides import SpeakerSides

from ..agents import Message
from ..records import Simulation, TwinFault
from ..structured_reply import says_farewell
from ..turn_checks import copies
from ..turn_text import is_repetitive
from .contradictions import contradicted_fact, contradicted_goal, says_value
from .facts import requests, visibility
from .literals import topic_stems
from .scenario import Scenario

#: What a service says and the person whom it serves does not.
_SERVICE = re.compile(
    r"\b(?:how (?:can|may) i (?:help|assist)|(?:what|is there anything(?: else)?) (?:can )?i can (?:do for|help|assist)"
    r"|i(?:'m| am) (?:an?|your) (?:\w+ ){0,2}(?:ai|assistant|chat ?bot|language model)\b|(?:^|[.!?] *)as an ai\b"
    r"|i(?:'m| am|'d be| would be| will be|'ll be) (?:happy|glad|here) to (?:help|assist) you"
    r"|(?:i can|i'll|i will|let me) (?:help|assist) you\b|let me (?:check|look into|look up) (?:that|this|it) for you"
    r"|(?:could|can|would) you (?:please )?(?:provide|confirm) (?:me (?:with )?)?your\b|sorry for (?:the|any) inconvenience"
    r"|thank(?:s| you) for (?:contacting|calling|reaching out|choosing)|i apologi[sz]e for (?:the|any) inconvenience"
    r"|your (?:\w+ ){1,3}(?:is|has been) (?:now )?(?:confirmed|booked|reserved|scheduled|submitted)"
    r"|(?:please )?let me know if you (?:have any|need any(?:thing)?)(?: \w+)? (?:questions|else|assistance|help)"
    r"|wie (?:kann|darf) ich (?:ihnen|dir)(?: \w+)? helfen|comment puis-je vous aider"
    r"|en qu[ée] puedo ayudar(?:le|te)|como posso (?:te |lhe )?ajudar|come posso aiutar(?:la|ti)"
    r"|чем (?:я )?могу (?:вам )?помочь)|有什么可以帮|どのようなご用件|무엇을 도와드릴",
    re.IGNORECASE,
)
#: Turns after the agent closed the conversation until the twin should have left, and free turns that must mention the goal.
_AFTER_CLOSE, _PURSUES, _WANDERS = 3, 2, 3
#: Words from which on a turn should not be said twice.
_REPEATED_WORDS = 4


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """A turn of the twin, with the messages before it; `number` is that of its exchange."""

    number: int
    text: str
    authored: bool
    before: tuple[Message, ...]


class _Conversation:
    """A finished conversation as the rules read it."""

    def __init__(self, simulation: Simulation, scenario: Scenario) -> None:
        self.simulation, self.scenario = simulation, scenario
        self.turns = said_turns(simulation)
        self.free = [turn for turn in self.turns if not turn.authored and turn.text.strip()]

    @cached_property
    def user_texts(self) -> list[str]:
        """All that was said on the twin's side, given and authored turns included."""
        return [text_of(message) for message in self.simulation.messages if message["role"] == "user"]

    @property
    def left(self) -> bool:
        """Whether the twin ended the conversation, with a turn that it wrote or without a word."""
        return self.simulation.stop_reason == "user_stop" and bool(self.turns) and not self.turns[-1].authored


def find_twin_faults(
    simulation: Simulation, scenario: Scenario, *, sides: SpeakerSides | None = None
) -> list[TwinFault]:  # fmt: skip
    """Return the faults of the twin in a finished conversation, at most one of a kind in a turn.

    Args:
        simulation: the record of the conversation.
        scenario: the scenario that it was run with.
        sides: what each side says in the person's own log; None if that is not known.
    """
    conversation = _Conversation(simulation, scenario)
    faults = [
        *_contradictions(conversation), *_early_reveals(conversation), *_lines_of_a_service(conversation, sides),
        *_repetitions(conversation), *_endings(conversation), *_pursuit(conversation),
    ]  # fmt: skip
    return sorted(faults, key=lambda fault: (fault.turn is None, fault.turn or 0))


def _contradictions(conversation: _Conversation) -> Iterator[TwinFault]:
    scenario = conversation.scenario
    given = [scenario.goal, scenario.private, *(fact.text for fact in scenario.facts)]
    authored = [turn.text for turn in conversation.turns if turn.authored]
    for turn in conversation.free:
        known = [*given, *authored, *(text_of(m) for m in turn.before if m["role"] != "user"), *_given_texts(conversation)]
        asked, latest = requests(_latest(turn.before)), [text_of(message) for message in _latest(turn.before)]
        for fact in scenario.facts:
            if said := contradicted_fact(fact, turn.text, asked, known):
                yield TwinFault("contradicts_fact", turn.number, f'the twin said "{said}"; its fact is: {fact.text}')
                break
        else:
            if pair := contradicted_goal(scenario.goal, turn.text, latest, known):
                yield TwinFault("contradicts_goal", turn.number, f'the twin said "{pair[0]}"; its goal says "{pair[1]}"')


def _early_reveals(conversation: _Conversation) -> Iterator[TwinFault]:
    scenario = conversation.scenario
    told = {number for number, fact in enumerate(scenario.facts) if says_value(fact, scenario.always_known)}
    for turn in conversation.turns:
        states = visibility(scenario.facts, turn.number, turn.before, scenario.always_known)
        for number, (fact, state) in enumerate(zip(scenario.facts, states, strict=True)):
            if number in told or any(says_value(fact, text_of(message)) for message in turn.before):
                told.add(number)
            elif says_value(fact, turn.text):
                told.add(number)
                if state == "hidden" and not turn.authored:
                    when = "the agent asked for it" if fact.reveal == "when asked" else f"turn {fact.reveal}"
                    yield TwinFault("reveals_early", turn.number, f"the twin told this before {when}: {fact.text}")


def _lines_of_a_service(conversation: _Conversation, sides: SpeakerSides | None) -> Iterator[TwinFault]:
    for turn in conversation.free:
        match = _SERVICE.search(turn.text.replace("’", "'"))
        line = match[0] if match else sides.of_the_other_side(turn.text) if sides is not None else ""
        if line:
            yield TwinFault("speaks_as_assistant", turn.number, f'the twin spoke as the agent does: "{line}"')


def _repetitions(conversation: _Conversation) -> Iterator[TwinFault]:
    for index, turn in enumerate(conversation.free):
        earlier = [other.text for other in conversation.free[:index]]
        if is_repetitive(turn.text):
            yield TwinFault("repeats_itself", turn.number, "the twin said the same words over and over")
        elif size_in_words(turn.text) >= _REPEATED_WORDS and copies(turn.text, earlier) and not _asked_again(turn):
            yield TwinFault("repeats_itself", turn.number, f'the twin said again: "{turn.text}"')


def _endings(conversation: _Conversation) -> Iterator[TwinFault]:
    scenario, turns = conversation.scenario, conversation.turns
    if conversation.left:
        if sum(bool(turn.text.strip()) for turn in turns) < scenario.min_turns:
            text = f"the twin left in turn {len(turns)} of at least {scenario.min_turns}"
            yield TwinFault("ends_early", turns[-1].number, text)
        elif scenario.goal and not _mentions(conversation):
            yield TwinFault("ends_early", turns[-1].number, "the twin left before it mentioned its goal")
    closed = 0
    for turn in turns:
        latest = [text_of(message) for message in _latest(turn.before)]
        closed = closed + (not turn.authored) if any(_closes(text, scenario) for text in latest) else 0
        if closed == _AFTER_CLOSE:
            yield TwinFault("never_ends", turn.number, f"the twin went on after the agent closed the chat {closed} times")


def _pursuit(conversation: _Conversation) -> Iterator[TwinFault]:
    if conversation.left or not conversation.scenario.goal or len(conversation.free) < _PURSUES:
        return
    if not _mentions(conversation):
        yield TwinFault("goal_not_pursued", None, f"in {len(conversation.free)} turns the twin never mentioned its goal")
    elif _wanders(conversation):
        yield TwinFault("goal_not_pursued", None, "no turn of the twin was about its goal or answered the agent")


def _wanders(conversation: _Conversation) -> bool:
    """Return whether no longer turn of the twin has a word of the goal, the facts, or what it answers."""
    scenario = conversation.scenario
    own = [scenario.goal, scenario.private, *(fact.text for fact in scenario.facts)]
    longer = [turn for turn in conversation.free if size_in_words(turn.text) >= _REPEATED_WORDS]
    return len(longer) >= _WANDERS and not any(
        topic_stems(turn.text) & topic_stems("\n".join([*own, *(text_of(message) for message in turn.before)]))
        for turn in longer
    )


def _mentions(conversation: _Conversation) -> bool:
    """Return whether the goal or a fact was mentioned on the twin's side."""
    scenario, texts = conversation.scenario, conversation.user_texts
    return mentions_goal(scenario.goal, texts) or any(says_value(fact, text) for fact in scenario.facts for text in texts)


def _closes(text: str, scenario: Scenario) -> bool:
    """Return whether the agent closes the conversation: a farewell without a question, or a phrase that ends it."""
    return (says_farewell(text) and "?" not in text) or any(phrase.casefold() in text.casefold() for phrase in scenario.until)


def _asked_again(turn: SaidTurn) -> bool:
    """Return whether the agent said something again before a turn, so that the person may, too."""
    latest = [text_of(message) for message in _latest(turn.before)]
    earlier = [text_of(m) for m in turn.before[: len(turn.before) - len(latest)] if m["role"] == "assistant"]
    return any(text in earlier or copies(text, earlier) for text in latest)


def _given_texts(conversation: _Conversation) -> list[str]:
    """Return the texts before the twin's first turn."""
    return [text_of(message) for message in (conversation.turns[0].before if conversation.turns else ())]


def _latest(messages: Sequence[Message]) -> list[Message]:
    """Return the agent's messages since the last turn of the person."""
    last = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return [message for message in messages[last + 1 :] if message["role"] == "assistant"]


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message; "" if it has none."""
    content = message.get("content")
    return content if isinstance(content, str) else ""


def said_turns(simulation: Simulation) -> list[SaidTurn]:
    """Return the turns of a conversation; a turn may be several messages, or none if the twin left without a word."""
    turns, end = list[SaidTurn](), len(simulation.messages)
    for number, exchange in reversed(list(enumerate(simulation.exchanges))):
        start = last = end - len(exchange.replies)
        while exchange.answer.action and start > 0 and simulation.messages[start - 1]["role"] == "user":
            start -= 1
        text = "\n".join(text_of(message) for message in simulation.messages[start:last])
        turns.append(SaidTurn(number, text, exchange.authored, tuple(simulation.messages[:start])))
        end = start
    return turns[::-1]
