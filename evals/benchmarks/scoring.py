"""Benchmark of scoring real turns, against the bare forward pass of the same weights: a part of `make bench`.

Design: both sides score the same token sequences, and the bare side may batch those of equal length. So the ratio shows every
cost of the scorer: padding, bookkeeping, repeated work.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from usertwin.evals.cli.demo import ROBIN
from usertwin.memory import Triple
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import load_scorer
from usertwin.simulator.prompts import act_transcript

from .figures import Figure, figure, ratios, run_alternately, timed

#: Numbers of past pairs in successive prompts, so that their lengths differ.
_PAST_PAIRS = (0, 1, 2, 4)


@dataclass(frozen=True, slots=True)
class EvalSizes:
    """Number of scored items and of rounds."""

    items: int = 48
    rounds: int = 3


FULL = EvalSizes()


def eval_part(sizes: EvalSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of scoring held-out turns of a real person."""
    cached: Any = load_scorer("local")
    yield from scoring_figures(cached.scorer, _held_out(sizes.items), sizes.rounds)


def scoring_figures(scorer: TransformersScorer, items: Sequence[tuple[str, str]], rounds: int) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a scorer on (prompt, continuation) items."""
    _, tokenizer = scorer.loaded
    sequences = [
        (tokenizer(prompt).input_ids, tokenizer(continuation, add_special_tokens=False).input_ids)
        for prompt, continuation in items
    ]
    scorer.score(items[:1])  # the first call prepares the model
    scored, expected = list[Likelihood](), list[list[float]]()

    def ours(_: int) -> float:
        scored.clear()
        return timed(lambda: scored.extend(scorer.score(items)))

    def bare(_: int) -> float:
        seconds, expected[:] = _score_bare(scorer.loaded[0], sequences)
        return seconds

    ours_s, bare_s = run_alternately(rounds, ours, bare)
    tokens = sum(len(before) + len(after) for before, after in sequences)
    lengths = sorted(len(before) + len(after) for before, after in sequences)
    items_text = f"{len(items)} sequences of {lengths[0]} to {lengths[-1]} tokens"
    yield "eval.scoring_vs_forward", figure(ratios(bare_s, ours_s), "ratio", f"bare forward pass, {items_text} (bar: 0.9)")
    yield "eval.scoring_tokens_per_s", figure([tokens / seconds for seconds in ours_s], "tokens/s", items_text)
    errors = [
        abs(x - y)
        for likelihood, nats in zip(scored, expected, strict=True)
        for x, y in zip(likelihood.token_nats, nats, strict=True)
    ]
    error = Figure(
        value=max(errors),
        unit="nats/token",
        low=min(errors),
        high=max(errors),
        n=len(errors),
        against="bare forward pass (bar: 1e-3)",
    )
    yield "eval.scoring_max_abs_error", error


def _held_out(count: int) -> list[tuple[str, str]]:
    """Return prompts and actions of held-out pairs of a real person, with few and with many past pairs in the prompt."""
    split = split_pairs(load_chitchat(), ROBIN.speaker, window=6)
    past = [Triple(pair) for pair in split.corpus if not pair.abandoned]
    held_out = [pair for pair in (*split.validation, *split.test) if not pair.abandoned][:count]
    counts = [_PAST_PAIRS[number % len(_PAST_PAIRS)] for number in range(count)]
    examples = [past[len(past) - sum(counts[: number + 1]) :][: counts[number]] for number in range(count)]
    return [
        (act_transcript(pair, shown), action_completion(pair.action)) for pair, shown in zip(held_out, examples, strict=True)
    ]


def _score_bare(model: Any, sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[float, list[list[float]]]:
    """Return the seconds in the model and the nats of the continuation tokens; equal lengths share a call if that is faster."""
    by_length: dict[int, list[int]] = {}
    for number, (before, after) in enumerate(sequences):
        by_length.setdefault(len(before) + len(after), []).append(number)
    nats: list[list[float]] = [[] for _ in sequences]
    total = 0.0
    for group in by_length.values():
        single = sum(_forward(model, sequences, [number], nats) for number in group)
        total += min(single, _forward(model, sequences, group, nats)) if len(group) > 1 else single
    return total, nats


def _forward(
    model: Any, sequences: Sequence[tuple[list[int], list[int]]], group: Sequence[int], nats: list[list[float]]
) -> float:
    """Return the seconds of a forward pass over sequences of one length; write the nats of their continuations to `nats`."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([[*sequences[number][0], *sequences[number][1]] for number in group], device=model.device)
        start = time.perf_counter()
        logits = model(ids, use_cache=False).logits
        seconds = time.perf_counter() - start
        for row, number in enumerate(group):
            before, after = sequences[number]
            log_probabilities = logits[row, len(before) - 1 : -1].float().log_softmax(-1)
            nats[number] = log_probabilities.gather(1, torch.tensor(after, device=model.device)[:, None])[:, 0].tolist()
    return seconds
