"""How fast real turns are scored, against the bare forward pass of the same weights: a part of `make bench`.

The one design choice: both sides are given the same sequences of tokens, and the bare one may put those of equal length into
one call where that is faster; so whatever the scorer loses by padding, by bookkeeping or by computing something twice is seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from usertwin.evals.cli.demo import SPEAKER
from usertwin.memory import Triple
from usertwin.memory.models.scoring import Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import split_pairs
from usertwin.personas.importers.chitchat import load_chitchat
from usertwin.simulator import load_scorer
from usertwin.simulator.prompts import act_transcript

from .figures import Figure, figure, in_turn, ratios, timed

#: How many past moments the prompts show, in turn, so that their lengths are mixed.
_SHOWN = (0, 1, 2, 4)


@dataclass(frozen=True, slots=True)
class EvalSizes:
    """How much is measured."""

    items: int = 48
    rounds: int = 3


FULL = EvalSizes()


def eval_part(sizes: EvalSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Useful tokens per second of scoring real held-out turns, against the bare model."""
    cached: Any = load_scorer("local")
    yield from scoring_figures(cached.scorer, _held_out(sizes.items), sizes.rounds)


def scoring_figures(scorer: TransformersScorer, items: Sequence[tuple[str, str]], rounds: int) -> Iterator[tuple[str, Figure]]:
    """The figures of one scorer on some (prompt, continuation) items."""
    _, tokenizer = scorer.loaded
    sequences = [
        (tokenizer(prompt).input_ids, tokenizer(continuation, add_special_tokens=False).input_ids)
        for prompt, continuation in items
    ]
    scorer.score(items[:1])  # the first call looks at the model
    found, told = list[Likelihood](), list[list[float]]()

    def ours(_: int) -> float:
        found.clear()
        return timed(lambda: found.extend(scorer.score(items)))

    def bare(_: int) -> float:
        seconds, told[:] = _bare(scorer.loaded[0], sequences)
        return seconds

    scoring, passing = in_turn(rounds, ours, bare)
    tokens = sum(len(before) + len(after) for before, after in sequences)
    lengths = sorted(len(before) + len(after) for before, after in sequences)
    which = f"{len(items)} sequences of {lengths[0]} to {lengths[-1]} tokens"
    yield "eval.scoring_vs_forward", figure(ratios(passing, scoring), "ratio", f"bare forward pass, {which} (bar: 0.9)")
    yield "eval.scoring_tokens_per_s", figure([tokens / seconds for seconds in scoring], "tokens/s", which)
    errors = [abs(x - y) for one, other in zip(found, told, strict=True) for x, y in zip(one.token_nats, other, strict=True)]
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
    """Prompts and actions of held-out moments of a real person, as turns are scored, with few and with many memories."""
    split = split_pairs(load_chitchat(), SPEAKER, window=6)
    past = [Triple(pair) for pair in split.corpus if not pair.abandoned]
    held_out = [pair for pair in (*split.validation, *split.test) if not pair.abandoned][:count]
    shown = [_SHOWN[number % len(_SHOWN)] for number in range(count)]
    recalled = [past[len(past) - sum(shown[: number + 1]) :][: shown[number]] for number in range(count)]
    return [(act_transcript(pair, near), action_completion(pair.action)) for pair, near in zip(held_out, recalled, strict=True)]


def _bare(model: Any, sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[float, list[list[float]]]:
    """Seconds in the model, and the nats of the continuation's tokens; equal lengths in one call where that is faster."""
    alike: dict[int, list[int]] = {}
    for number, (before, after) in enumerate(sequences):
        alike.setdefault(len(before) + len(after), []).append(number)
    nats: list[list[float]] = [[] for _ in sequences]
    total = 0.0
    for group in alike.values():
        single = sum(_forward(model, sequences, [number], nats) for number in group)
        total += min(single, _forward(model, sequences, group, nats)) if len(group) > 1 else single
    return total, nats


def _forward(
    model: Any, sequences: Sequence[tuple[list[int], list[int]]], group: Sequence[int], nats: list[list[float]]
) -> float:
    """Seconds that the logits of sequences of one length take; the nats of their continuations go into `nats`."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([[*sequences[number][0], *sequences[number][1]] for number in group], device=model.device)
        began = time.perf_counter()
        logits = model(ids, use_cache=False).logits
        seconds = time.perf_counter() - began
        for row, number in enumerate(group):
            before, after = sequences[number]
            told = logits[row, len(before) - 1 : -1].float().log_softmax(-1)
            nats[number] = told.gather(1, torch.tensor(after, device=model.device)[:, None])[:, 0].tolist()
    return seconds
