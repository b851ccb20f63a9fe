"""When a fact may be told: at once, from a turn on, or after the agent asked for it.

Design: a model that sees a secret says it too early, and one that lacks an answer invents it. So a fact stays out of the
prompt until the agent asks with words of the fact. If the agent asks for something that no fact and no goal mentions, it may
mean a fact in other words: then every fact that waits for a question is shown, marked as to be told only when asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from usertwin.memory.text.goal_words import mentions_goal
from usertwin.memory.text.sentences import sentences

from ..agents import Message

#: When a person may tell a fact; a number is a turn of theirs, 0 for the first.
Reveal = Literal["at once", "when asked"] | int

#: A sentence that asks for something, in some languages; in others a question mark has to do.
_ASKS = re.compile(
    r"[?？؟]|^\W*(?:what|which|when|where|who|whose|how|may i|can i|could i|tell|give|enter|provide|send|share|specify|state)\b"
    r"|\b(?:please|i(?:'ll)? need|we(?:'ll)? need|provide|specify|enter your|tell me|give me|let me know"
    r"|bitte|nennen sie|por favor|indique|s'il vous pla[iî]t|veuillez|per favore|пожалуйста|укажите)\b|请|提供|ください|教えて",
    re.IGNORECASE,
)
#: A question that offers help asks for no fact.
_OFFERS = re.compile(
    r"\b(?:help|assist|assistance|anything else|something else|do for you|helfen|ayudar\w*|aider|aiutar\w*|помочь)\b|帮|手伝",
    re.IGNORECASE,
)
#: Whether a fact cannot be told yet, may be told when the agent asks for it, or was asked for.
Visibility = Literal["hidden", "if asked", "known"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that the person knows.

    Attributes:
        text: a sentence to the person, such as "Your order number is 4711."
        reveal: when the person may tell it: at once, when the agent asked for it, or from this turn of theirs on.
        value: the part that must not be said earlier, such as "4711"; "" for the fact's distinctive words.
    """

    text: str
    reveal: Reveal = "when asked"
    value: str = ""

    @property
    def topic(self) -> str:
        """The fact without its value: what an agent that asks for it talks about."""
        if not self.value:
            return self.text
        return re.sub(re.escape(self.value), " ", self.text, flags=re.IGNORECASE)


def requests(messages: Iterable[Message]) -> list[str]:
    """Return the sentences of the agent that ask for something."""
    texts = (text for m in messages if m["role"] == "assistant" and isinstance(text := m.get("content"), str))
    return [sentence for text in texts for sentence in sentences(text.replace("’", "'")) if _ASKS.search(sentence)]


def visibility(facts: Sequence[Fact], turn: int, messages: Iterable[Message], known: str = "") -> list[Visibility]:
    """Return for each fact whether the person may tell it in this turn of theirs, after these messages.

    `known` is the goal and whatever else the person may speak of at any time.
    """
    asked = requests(messages)
    topics = [known, *(fact.topic for fact in facts)]
    in_other_words = any(
        not _OFFERS.search(request) and not any(topic and mentions_goal(topic, [request]) for topic in topics)
        for request in asked
    )
    return [_visibility(fact, turn, asked, in_other_words) for fact in facts]


def _visibility(fact: Fact, turn: int, asked: Sequence[str], in_other_words: bool) -> Visibility:
    if fact.reveal == "at once":
        return "known"
    if fact.reveal != "when asked":
        return "known" if turn >= fact.reveal else "hidden"
    if asked and mentions_goal(fact.topic, asked):
        return "known"
    return "if asked" if in_other_words else "hidden"
