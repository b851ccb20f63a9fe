"""What learning a twin will take, before it begins: moments, calls, tokens, money.

The one design choice: the prompts are really filled and counted, four characters to a token, so that the plan is as long as the
log is; only what a model will write is guessed. Nothing is loaded and no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from usertwin.memory.models.chat import Price, PromptStyle, Usage
from usertwin.memory.recon.propose import prompt_for, written_tokens
from usertwin.memory.recon.synthesizer import ROUNDS
from usertwin.personas import ChatLog, Pair, split_pairs

from .recipe import Recipe

_CHARACTERS = 4
_VERDICT_TOKENS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """What learning will take, if no answer is kept from before.

    Attributes:
        triples: moments to remember.
        traces: moments to find traces for.
        calls: texts that models will write, if no guard rejects a proposal.
        most_calls: texts, if the guards reject every proposal.
        usage: tokens for `calls`, about.
        dollars: what they cost, about; None if the price is not known.
    """

    triples: int
    traces: int
    calls: int
    most_calls: int
    usage: Usage
    dollars: float | None


def estimate_cost(log: ChatLog, recipe: Recipe, *, style: PromptStyle, together: bool, price: Price | None) -> CostEstimate:
    """The plan of a learning.

    Args:
        log: the conversations.
        recipe: how to learn.
        style: how the proposing model is prompted.
        together: whether it writes several texts for one reading of the prompt.
        price: what it costs; other models of the recipe are taken to cost the same.

    Raises:
        LogError: the speaker is unknown or has too few turns.
        UsageError: a limit that makes no sense.
    """
    recipe.check()
    corpus = split_pairs(log, recipe.speaker, window=recipe.window).corpus
    pairs = corpus if recipe.max_triples is None else corpus[-recipe.max_triples :]
    traced = [] if recipe.method == "none" else [pair for pair in pairs if not pair.abandoned][::-1][: recipe.max_traces]
    proposals = (
        recipe.max_calls if recipe.proposal_mode == "search" else 1 if recipe.method == "backward" else recipe.candidates
    )
    rounds = 1 if recipe.proposal_mode == "search" else ROUNDS
    more = _judging(recipe, proposals)
    read = _read(traced, recipe, style, 1 if together else proposals) + len(traced) * more * _VERDICT_TOKENS * 3
    written = len(traced) * (proposals * written_tokens(style) + more * _VERDICT_TOKENS)
    usage = Usage(read, 0, written)
    return CostEstimate(
        triples=len(pairs),
        traces=len(traced),
        calls=len(traced) * (proposals + more),
        most_calls=len(traced) * (proposals * rounds + more),
        usage=usage,
        dollars=0.0 if not traced else None if price is None else price.cost_of(usage),
    )


def _judging(recipe: Recipe, proposals: int) -> int:
    """Texts that reconstruct and judge the proposals of one moment."""
    looks = int(recipe.method == "quality")
    if not recipe.scored:
        return looks
    return looks + {"judge": proposals + 1, "rank": proposals}.get(recipe.fidelity, 0)


def _read(pairs: Sequence[Pair], recipe: Recipe, style: PromptStyle, times: int) -> int:
    how = "backward" if recipe.proposal_mode == "search" else recipe.proposal_mode
    return times * sum(len(prompt_for(style, pair, recipe.speaker, how)) for pair in pairs) // _CHARACTERS
