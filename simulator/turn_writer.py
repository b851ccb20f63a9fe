"""Writes a turn of the person: fits the prompt into the context, samples, and samples again what is no turn of theirs.

With a rule for the best of several candidates, the model writes several turns at once, and the rule chooses among those without
a defect and, if it says so, what the person answered in the recalled moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from usertwin.memory import ChatModel, Triple
from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import Sample, Usage, sample
from usertwin.memory.models.token_limits import answer_tokens, token_limit
from usertwin.memory.models.token_writer import NextToken
from usertwin.memory.text.speaker_sides import SpeakerSides
from usertwin.memory.text.transcript import unescaped_line
from usertwin.personas import Pair, Persona
from usertwin.personas.style_card import StyleCard

from .prompt_fit import FittedPrompt, fit_prompt
from .prompts import Messages, act_messages, shown_turns
from .reranking.reranker import BestOf
from .structured_reply import SCHEMA, UNREADABLE, read_structured, without_tags
from .turn_checks import TurnChecker, badness, usable_defect
from .turn_text import clean_turn, no_turn_error

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

#: Attempts at a turn, if the model writes nothing, more than a turn, or one with a defect (see turn_checks.py).
_MAX_ATTEMPTS = 4
#: The seeds of successive attempts differ by this prime.
_ATTEMPT_STEP = 1_000_003
#: No place in a conversation: neither a context nor a goal.
_NOWHERE = Pair(speaker="", context=(), action="", goal="", conversation_id="", position=0, when=0.0)
#: Builds the prompt for the reply alone; few turns need it.
PlainPrompt = Callable[[], Messages]
#: Unreadable JSON objects after which a model is asked for the reply alone, in plain text.
_MAX_UNREADABLE = 2


@dataclass(frozen=True, slots=True)
class Draft(Sample):
    """A completion read as a turn, with the thought behind it, and whether the model says that the person leaves with it."""

    thought: str = ""
    done: bool = False


@dataclass(frozen=True, slots=True)
class WrittenTurn:
    """A turn of the person.

    Attributes:
        text: the turn.
        sample: the completion that it is, with the usage of all attempts, and the thought in it.
        prompt: what the model was shown, and what was left out.
        discarded: replies that were asked for again, since they were empty, not one turn of the person, or had a defect.
        candidates: the turns that it was chosen among; 0 without a choice.
    """

    text: str
    sample: Draft
    prompt: FittedPrompt
    discarded: int
    _: KW_ONLY
    candidates: int = 0


@dataclass(frozen=True, slots=True)
class TurnWriter:
    """Writes turns of one person with one model.

    Attributes:
        model: the model that acts.
        persona: the person.
        speaker: the person's name in the log.
        window: turns of the chat that a transcript shows; an instruction holds the whole conversation.
        card: returns the person's style card at the time of a turn, for instructions.
        structured: whether the model writes its thoughts with the reply, in one JSON object (see structured_reply.py).
        sides: returns what each side of the person's conversations says; None if that is not known.
        next_token: mixes the person's own words into the model's probabilities; None for the model alone.
        best_of: chooses the best of several candidates; None for the first turn that the model writes.
    """

    model: ChatModel
    persona: Persona
    speaker: str
    window: int
    _: KW_ONLY
    card: Callable[[Pair], StyleCard | None] = lambda query: None
    structured: bool = False
    sides: Callable[[], SpeakerSides | None] = lambda: None
    next_token: NextToken | None = None
    best_of: BestOf | None = None

    async def write(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, seed: int, bypass_cache: bool,
        config: RunnableConfig | None = None,
    ) -> WrittenTurn:  # fmt: skip
        """Write the person's next turn.

        Raises:
            ModelError: the model does not answer.
            TwinError: the model writes no turn of the person in four attempts.
        """
        prompt, plain = self.fitted(query, recalled, reasoning), self._plain(query, recalled, reasoning)
        turn = await self._write(prompt, query, recalled, seed, bypass_cache, config, plain, cached_attempts=True)
        if not turn.text:
            raise no_turn_error(self.model, turn.sample, _MAX_ATTEMPTS, self.max_tokens)
        return turn

    async def drafts(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, seed: int, n: int, bypass_cache: bool = True
    ) -> list[Draft]:  # fmt: skip
        """Sample n turns once, each with the defect that it has at its place, as candidates for the best of several."""
        messages = self.fitted(query, recalled, reasoning).messages
        drafts = await self._sample_once(messages, recalled, n, seed, bypass_cache, None, self.structured)
        return [self._checked(draft, query, recalled) for draft in drafts]

    async def _write(
        self, prompt: FittedPrompt, query: Pair, recalled: Sequence[Triple], seed: int, bypass_cache: bool,
        config: RunnableConfig | None, plain: PlainPrompt | None, *, cached_attempts: bool,
    ) -> WrittenTurn:  # fmt: skip
        """Write a turn; it is "" if there is none after four attempts. Attempts after the first may use the prompt cache."""
        best_of, messages = self.best_of, prompt.messages
        samples = 1 if best_of is None else best_of.rule.samples
        first_seed = seed * samples % 2**31  # places have successive seeds, and each place uses several
        drafts = await self._sample_once(messages, recalled, samples, first_seed, bypass_cache, config, plain is not None)
        usage = sum((draft.usage for draft in drafts), Usage())
        if best_of is not None:
            drafts = [self._checked(draft, query, recalled) for draft in drafts]
            chosen, candidates = await to_thread(self._chosen, best_of, drafts, query, recalled)
            if chosen is not None:
                return WrittenTurn(chosen.text, replace(chosen, usage=usage), prompt, 0, candidates=candidates)
        first = replace(min(drafts, key=badness), usage=usage)
        bypass = bypass_cache and not cached_attempts
        reply, discarded = await self._retried(messages, recalled, first, seed, query, bypass, config, plain)
        return WrittenTurn(reply.text, reply, prompt, discarded + len(drafts) - 1)

    def _chosen(
        self, best_of: BestOf, drafts: Sequence[Draft], query: Pair, recalled: Sequence[Triple]
    ) -> tuple[Draft | None, int]:
        """Return the best turn without a defect, None if there is none, and the number of candidates.

        A quote has the thought of the first draft, and the person leaves with it if they leave with most drafts.
        """
        checker = TurnChecker(query, recalled, self.sides())
        written = {draft.text: draft for draft in reversed(drafts) if not badness(draft)}
        best, candidates = best_of.choose(
            [draft.text for draft in drafts if not badness(draft)], query, recalled, lambda text: not checker.defect(text)
        )
        if best is None:
            return None, 0
        leaves = 2 * sum(draft.done for draft in drafts) > len(drafts)
        return written.get(best.text, replace(drafts[0], text=best.text, done=leaves, defect="", at_limit=False)), candidates

    async def sample_action(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, seed: int, n: int = 1, bypass_cache: bool = True,
        config: RunnableConfig | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Sample n turns of the person. Without `bypass_cache` the engine reuses its cache of the reasoning prompt."""
        prompt, plain = self.fitted(query, recalled, reasoning), self._plain(query, recalled, reasoning)
        if self.best_of is None:
            return await self.complete(
                prompt.messages, recalled, n=n, seed=seed, bypass_cache=bypass_cache, query=query, config=config, plain=plain
            )
        seeds = [seed + number for number in range(n)]
        return [
            (await self._write(prompt, query, recalled, one, bypass_cache, config, plain, cached_attempts=False)).sample
            for one in seeds
        ]

    async def complete(
        self, messages: Messages, recalled: Sequence[Triple] = (), *, n: int = 1, seed: int, bypass_cache: bool = True,
        query: Pair = _NOWHERE, config: RunnableConfig | None = None, plain: PlainPrompt | None = None,
    ) -> list[Draft]:  # fmt: skip
        """Sample n turns for a prompt, with the attempts of a turn in a conversation; "" if none of them is a turn.

        `query` is the place in a conversation that the turns must fit, by default none.
        `plain` builds another prompt, for the reply alone, if this one asks for a JSON object.
        """
        replies = await self._sample_once(messages, recalled, n, seed, bypass_cache, config, plain is not None)
        for index, reply in enumerate(replies):
            retried = self._retried(messages, recalled, reply, seed + index, query, bypass_cache, config, plain)
            replies[index], _ = await retried
        return replies

    def fitted(
        self, query: Pair, recalled: Sequence[Triple], reasoning: str, *, structured: bool | None = None
    ) -> FittedPrompt:
        """Return the prompt for a turn, within the context of the model; by default structured as the writer is."""
        style, structured = self.model.style, self.structured if structured is None else structured
        card = self.card(query) if style == "instruction" else None
        return fit_prompt(
            self.model, self.max_tokens, query=query, recalled=recalled,
            turns=shown_turns(style, query, self.window),
            build=lambda pair, triples, turns: act_messages(
                style, self.persona, pair, triples, reasoning, turns=turns, card=card, structured=structured
            ),
        )  # fmt: skip

    def _plain(self, query: Pair, recalled: Sequence[Triple], reasoning: str) -> PlainPrompt | None:
        return (lambda: self.fitted(query, recalled, reasoning, structured=False).messages) if self.structured else None

    @property
    def max_tokens(self) -> int:
        """The token limit of a turn; in transcripts, several times the person's typical words."""
        if self.model.style == "transcript":
            return min(answer_tokens("action", "transcript"), 32 + 4 * self.persona.typical_words)
        return token_limit("action", "instruction")

    async def _retried(
        self, messages: Messages, recalled: Sequence[Triple], reply: Draft, seed: int, query: Pair,
        bypass_cache: bool, config: RunnableConfig | None, plain: PlainPrompt | None,
    ) -> tuple[Draft, int]:  # fmt: skip
        """Return the best of at most four attempts, `reply` first, and how many were discarded; of equals the last."""
        kept = reply = self._checked(reply, query, recalled)
        usage, attempts, unreadable = reply.usage, 1, int(reply.defect == UNREADABLE)
        while badness(reply) and attempts < _MAX_ATTEMPTS:
            structured = plain is not None and unreadable < _MAX_UNREADABLE
            [reply] = await self._sample_once(
                messages if structured or plain is None else plain(), recalled, 1, seed + _ATTEMPT_STEP * attempts,
                bypass_cache, config, structured,
            )  # fmt: skip
            reply, attempts = self._checked(reply, query, recalled), attempts + 1
            usage, unreadable = usage + reply.usage, unreadable + (reply.defect == UNREADABLE)
            kept = reply if badness(reply) <= badness(kept) else kept
        return replace(kept, usage=usage), attempts - 1

    def _checked(self, reply: Draft, query: Pair, recalled: Sequence[Triple]) -> Draft:
        """Return a reply with the defect that it has at its place."""
        if not reply.text:
            return reply
        return replace(reply, defect=usable_defect(reply.text, query, recalled, self.sides()) or reply.defect)

    async def _sample_once(
        self, messages: Messages, recalled: Sequence[Triple], n: int, seed: int, bypass_cache: bool,
        config: RunnableConfig | None, structured: bool,
    ) -> list[Draft]:  # fmt: skip
        """Sample n turns once; one that is no turn of the person is "" and names its defect."""
        samples = await sample(
            self.model, messages, n=n, seed=seed, max_tokens=self.max_tokens, bypass_cache=bypass_cache, config=config,
            stop=["\n"] if self.model.style == "transcript" else [], schema=SCHEMA if structured else None,
            readable=lambda text: not structured or read_structured(text) is not None,
            next_token=None if structured else self.next_token,
        )  # fmt: skip
        names = (self.persona.name, self.speaker)
        shown = [triple.pair.action for triple in recalled]
        drafts = [_read(completion, structured) for completion in samples]
        read = without_tags if self.model.style == "instruction" else unescaped_line
        drafts = [replace(draft, text=read(draft.text)) for draft in drafts]
        cleaned = [clean_turn(draft, names, shown) for draft in drafts]
        return [replace(draft, text=turn.text, defect=turn.defect) for draft, turn in zip(drafts, cleaned, strict=True)]


def _read(completion: Sample, structured: bool) -> Draft:
    """Return a completion as a draft: the reply in its JSON object; "" with a defect if there is none to read."""
    draft = Draft(completion.text, completion.usage, completion.at_limit, completion.defect)
    if not structured:
        return draft
    if (reply := read_structured(completion.text)) is not None:
        return replace(draft, text=reply.text, thought=reply.thought, done=reply.done)
    is_cut = completion.at_limit or not completion.text.strip()
    return replace(draft, text="", defect=draft.defect or ("" if is_cut else UNREADABLE))
