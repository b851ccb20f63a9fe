"""Writes a turn of the person: fits the prompt into the context, samples, and samples again what is no turn of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from usertwin.memory import ChatModel, Triple
from usertwin.memory.models.chat import Sample, sample
from usertwin.memory.models.token_limits import answer_tokens, token_limit
from usertwin.memory.text.transcript import single_line
from usertwin.personas import Pair, Persona, Turn

from .prompt_fit import FittedPrompt, fit_prompt
from .prompts import Messages, act_messages, shown_turns
from .turn_text import clean_turn, is_repetitive, no_turn_error

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

#: Attempts at a turn, if the model writes nothing, more than a turn, an earlier turn again, or repeats itself.
_MAX_ATTEMPTS = 4
#: Turns of at most this many words ("yes") may repeat an earlier turn.
_SHORT_WORDS = 3
#: The seeds of successive attempts differ by this prime.
_ATTEMPT_STEP = 1_000_003


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """A turn of the person.

    Attributes:
        text: the turn.
        sample: the completion that it is, with the usage of all attempts.
        prompt: what the model was shown, and what was left out.
        discarded: replies that were asked for again, since they were empty or not one turn of the person.
    """

    text: str
    sample: Sample
    prompt: FittedPrompt
    discarded: int


@dataclass(frozen=True, slots=True)
class TurnWriter:
    """Writes turns of one person with one model.

    Attributes:
        model: the model that acts.
        persona: the person.
        speaker: the person's name in the log.
        window: turns of the chat that a transcript shows; an instruction holds the whole conversation.
    """

    model: ChatModel
    persona: Persona
    speaker: str
    window: int

    async def write(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, seed: int, bypass_cache: bool,
        config: RunnableConfig | None = None,
    ) -> WrittenTurn:  # fmt: skip
        """Write the person's next turn.

        Raises:
            ModelError: the model does not answer.
            TwinError: the model writes no turn of the person in four attempts.
        """
        prompt = self.fitted(query, recalled, reasoning)
        [first] = await self._sample_once(prompt.messages, recalled, 1, seed, bypass_cache, config)
        reply, discarded = await self._retried(prompt.messages, recalled, first, seed, query.context, False, config)
        if not reply.text:
            raise no_turn_error(self.model, reply, _MAX_ATTEMPTS, self.max_tokens)
        return WrittenTurn(reply.text, reply, prompt, discarded)

    async def sample_action(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, seed: int, n: int = 1, bypass_cache: bool = True,
        config: RunnableConfig | None = None,
    ) -> list[Sample]:  # fmt: skip
        """Sample n turns of the person. Without `bypass_cache` the engine reuses its cache of the reasoning prompt."""
        messages = self.fitted(query, recalled, reasoning).messages
        return await self.complete(
            messages, recalled, n=n, seed=seed, bypass_cache=bypass_cache, context=query.context, config=config
        )

    async def complete(
        self, messages: Messages, recalled: Sequence[Triple] = (), *, n: int = 1, seed: int, bypass_cache: bool = True,
        context: Sequence[Turn] = (), config: RunnableConfig | None = None,
    ) -> list[Sample]:  # fmt: skip
        """Sample n turns for a prompt, with the attempts of a turn in a conversation; "" if none of them is a turn."""
        replies = await self._sample_once(messages, recalled, n, seed, bypass_cache, config)
        for index, reply in enumerate(replies):
            retried = self._retried(messages, recalled, reply, seed + index, context, bypass_cache, config)
            replies[index], _ = await retried
        return replies

    def fitted(self, query: Pair, recalled: Sequence[Triple], reasoning: str) -> FittedPrompt:
        """Return the prompt for a turn, within the context of the model."""
        style = self.model.style
        return fit_prompt(
            self.model, self.max_tokens, query=query, recalled=recalled,
            turns=shown_turns(style, query, self.window),
            build=lambda pair, triples, turns: act_messages(style, self.persona, pair, triples, reasoning, turns=turns),
        )  # fmt: skip

    @property
    def max_tokens(self) -> int:
        """The token limit of a turn; in transcripts, several times the person's typical words."""
        if self.model.style == "transcript":
            return min(answer_tokens("action", "transcript"), 32 + 4 * self.persona.typical_words)
        return token_limit("action", "instruction")

    async def _retried(
        self, messages: Messages, recalled: Sequence[Triple], reply: Sample, seed: int, context: Sequence[Turn],
        bypass_cache: bool, config: RunnableConfig | None,
    ) -> tuple[Sample, int]:  # fmt: skip
        """Return a new, not repetitive turn of at most four attempts, `reply` first, else the last turn; and the discarded."""
        earlier = {single_line(turn.text).casefold() for turn in context if len(turn.text.split()) > _SHORT_WORDS}
        usage, kept, discarded = reply.usage, reply, int(not reply.text)
        for attempt in range(1, _MAX_ATTEMPTS):
            if reply.text and single_line(reply.text).casefold() not in earlier and not is_repetitive(reply.text):
                break
            [reply] = await self._sample_once(messages, recalled, 1, seed + _ATTEMPT_STEP * attempt, bypass_cache, config)
            usage, discarded = usage + reply.usage, discarded + (not reply.text)
            kept = reply if reply.text or not kept.text else kept
        return replace(kept, usage=usage), discarded

    async def _sample_once(
        self, messages: Messages, recalled: Sequence[Triple], n: int, seed: int, bypass_cache: bool,
        config: RunnableConfig | None,
    ) -> list[Sample]:  # fmt: skip
        """Sample n turns once; one that is no turn of the person is "" and names its defect."""
        samples = await sample(
            self.model, messages, n=n, seed=seed, max_tokens=self.max_tokens, bypass_cache=bypass_cache, config=config,
            stop=["\n"] if self.model.style == "transcript" else [],
        )  # fmt: skip
        names = (self.persona.name, self.speaker)
        shown = [triple.pair.action for triple in recalled]
        return [clean_turn(reply, names, shown) for reply in samples]
