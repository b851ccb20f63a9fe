"""What a training will take, before it begins: people, pairs, steps, tokens, memory.

The one design choice: it is reckoned from the lessons as they are and from the sizes of the weights on disk; no model is loaded
or fetched for it, and what is a guess says "about".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usertwin.memory.recon.propose import TRACE_TOKENS, prompt_for, written_tokens
from usertwin.memory.training.adapter_merge import PARTS
from usertwin.memory.training.config import TrainingConfig
from usertwin.memory.training.dataset import DatasetSplit, TrainingExample
from usertwin.simulator.backends.weights import known_weights

if TYPE_CHECKING:
    from .run import TrainingPlan

_CHARACTERS = 4
_BYTES = {"float32": 4, "bfloat16": 2}
#: Bytes of activations of a layer for each token and unit of width, in 16 bits, without recomputing (arXiv 2205.05198).
_ACTIVATIONS = 34


def plan_of_training(order: TrainingPlan, lessons: DatasetSplit) -> list[str]:
    """What an order will take, a sentence each."""
    people, plan = lessons.people, order.config
    said = [
        f"{len(lessons.train):,} pairs of {len(people['seen'])} people to train on, {len(lessons.validation)} watched; "
        f"measured on {len(lessons.seen):,} later pairs of theirs and {len(lessons.unseen):,} of {len(people['unseen'])} "
        "people who are held out with every conversation they took part in"
    ]
    said += [_method(replace(plan, method=method), lessons) for method in order.methods]
    by = order.measured_by or order.scorer
    said.append(
        f"rewards and audits by {order.scorer}; measured by {by}"
        + ("" if by != order.scorer else ", which is in the reward, too")
    )
    said.append(_memory(order, lessons.train))
    return said


def _method(plan: TrainingConfig, lessons: DatasetSplit) -> str:
    each = written_tokens(plan.style)
    if plan.online:
        steps = max(1, plan.token_budget // (plan.batch_size * each))
        return (
            f"{plan.method}: about {steps:,} steps of {plan.batch_size // plan.group_size} pairs with {plan.group_size} traces each, until "
            f"{plan.token_budget:,} tokens are generated"
        )
    pairs = min(len(lessons.train), max(1, plan.token_budget // (plan.group_size * each)))
    steps = ceil(plan.epochs * ceil(pairs / plan.batch_size)) * (len(PARTS) if plan.method == "soup" else 1)
    return (
        f"{plan.method}: {plan.group_size} traces of the base for each of about {pairs:,} pairs, until {plan.token_budget:,} tokens are "
        f"generated; then at most {steps:,} steps of {plan.batch_size} rows"
    )


def _memory(order: TrainingPlan, train: Sequence[TrainingExample]) -> str:
    """About what training needs at once: weights, adapter with its moments, and what the steps back need of the steps there."""
    plan = order.config
    folder, size = known_weights(plan.base)
    if folder is None:
        return f"memory: not known until the weights of {plan.base} are here (they are fetched, or made, when training begins)"
    shape = _shape(folder)
    of_scorer = known_weights(order.scorer)[1]
    weights = size * _BYTES[plan.precision] // 4 + of_scorer * _BYTES[order.scorer_precision] // 4
    longest = (
        max((len(prompt_for(plan.style, one.pair, "the person", plan.proposal_mode)) for one in train), default=0)
        // _CHARACTERS
    )
    tokens = plan.micro_batch_size * (longest + TRACE_TOKENS[plan.style]) * (2 if {"dpo", "soup"} & {*order.methods} else 1)
    width = _BYTES[plan.precision]
    activations = tokens * shape["layers"] * shape["hidden"] * _ACTIVATIONS * width // 2
    logits = 3 * 4 * tokens * shape["vocabulary"]
    total = (weights + activations + logits) / 2**30
    return (
        f"memory: about {total:.1f} GiB ({weights / 2**30:.1f} of weights, the rest for {plan.micro_batch_size} at once of up to "
        f"{longest + TRACE_TOKENS[plan.style]:,} tokens)"
    )


def _shape(folder: Path) -> dict[str, int]:
    config: Any = json.loads((folder / "config.json").read_text("utf-8"))
    config = config.get("text_config", config)
    return {
        "layers": int(config.get("num_hidden_layers", 0)),
        "hidden": int(config.get("hidden_size", 0)),
        "vocabulary": int(config.get("vocab_size", 0)),
    }
