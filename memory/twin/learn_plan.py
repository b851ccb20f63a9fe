"""Estimate the cost of learning a twin: triples, traces, completions, tokens and dollars.

Design: the real prompts are built and measured at four characters a token; only the length of completions is assumed. No model
is loaded or called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from usertwin.memory.models.chat import Price, PromptStyle, Usage
from usertwin.memory.recon.judged_fidelity import ORDERS
from usertwin.memory.recon.propose import expected_trace_tokens, proposal_prompt
from usertwin.memory.recon.synthesizer import MAX_ROUNDS
from usertwin.personas import ChatLog, Pair, split_pairs

from .recipe import Recipe

_CHARACTERS_PER_TOKEN = 4
_VERDICT_TOKENS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """The cost of learning with an empty completion cache.

    Attributes:
        triples: number of triples.
        traces: number of triples that get traces.
        calls: number of completions, if no guard rejects a proposal.
        max_calls: number of completions, if the guards reject every proposal.
        usage: approximate tokens of `calls`.
        dollars: approximate price of `usage`; None if the price is unknown.
    """

    triples: int
    traces: int
    calls: int
    max_calls: int
    usage: Usage
    dollars: float | None


def estimate_cost(
    log: ChatLog, recipe: Recipe, *, style: PromptStyle, shares_prompt: bool, price: Price | None
) -> CostEstimate:
    """Return the cost of learning from a log with a recipe.

    Args:
        log: the conversations.
        recipe: the settings.
        style: prompt style of the proposing model.
        shares_prompt: whether the proposing model samples several completions for one reading of the prompt.
        price: price of the proposing model; the recipe's other models are assumed to cost the same.

    Raises:
        LogError: the speaker is unknown or has too few turns.
        UsageError: a setting of the recipe is invalid.
    """
    recipe.check()
    corpus = split_pairs(log, recipe.speaker, window=recipe.window).corpus
    pairs = corpus if recipe.max_triples is None else corpus[-recipe.max_triples :]
    traced = [] if recipe.method == "none" else [pair for pair in pairs if not pair.abandoned][::-1][: recipe.max_traces]
    searches = recipe.proposal_mode == "search"
    proposals = recipe.max_calls if searches else 1 if recipe.method == "backward" else recipe.candidates
    verdicts = _verdict_calls(recipe, proposals)
    input_tokens = _prompt_tokens(traced, recipe, style, readings=1 if shares_prompt else proposals)
    input_tokens += len(traced) * verdicts * _VERDICT_TOKENS * 3
    output_tokens = len(traced) * (proposals * expected_trace_tokens(style) + verdicts * _VERDICT_TOKENS)
    usage = Usage(input_tokens, 0, output_tokens)
    return CostEstimate(
        triples=len(pairs),
        traces=len(traced),
        calls=len(traced) * (proposals + verdicts),
        max_calls=len(traced) * (proposals * (1 if searches else MAX_ROUNDS) + verdicts),
        usage=usage,
        dollars=0.0 if not traced else None if price is None else price.cost_of(usage),
    )


def _verdict_calls(recipe: Recipe, proposals: int) -> int:
    """Return the number of reconstructions and verdicts for the proposals of one pair."""
    calls = int(recipe.method == "quality")
    if not recipe.scored:
        return calls
    return calls + {"judge": proposals + ORDERS, "rank": proposals}.get(recipe.fidelity, 0)


def _prompt_tokens(pairs: Sequence[Pair], recipe: Recipe, style: PromptStyle, readings: int) -> int:
    """Return the approximate number of tokens in the proposal prompts of the pairs, each read `readings` times."""
    mode = "backward" if recipe.proposal_mode == "search" else recipe.proposal_mode
    characters = sum(len(proposal_prompt(style, pair, recipe.speaker, mode)) for pair in pairs)
    return readings * characters // _CHARACTERS_PER_TOKEN
