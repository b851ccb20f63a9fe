"""Encode the common prefix of a batch once in trl's training steps; the examples of a prompt are two thirds of its tokens.

Design: exact. The keys and values of the prefix stay in the graph, so loss and gradient equal those of a plain step within
float tolerance. Batches that cannot share a prefix take the plain path.

Source: prompts encoded once for all their continuations are in arXiv 2402.05099 (Hydragen), there without a gradient.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from usertwin.memory.models.transformers_scorer import MIN_SHARED_TOKENS, cache_argument, get_cache

_IGNORED = -100  # label of a token without loss, in torch and trl


@contextmanager
def shared_prefix_forward(model: Any) -> Generator[None]:
    """Patch a causal model so that trl's calls for log-probabilities of labels encode the common prefix once.

    Args:
        model: a base model, with or without an adapter inside, after a trainer of trl was built for it. Restored on exit.
    """
    plain_forward = model.forward

    @wraps(plain_forward)  # `generate` inspects the signature of forward
    def forward(*args: Any, **inputs: Any) -> Any:
        shared = 0 if args or not inputs.get("fused_lm_head") else _shared_length(model, inputs)
        return _forward(model, plain_forward, inputs, shared) if shared else plain_forward(*args, **inputs)

    model.forward = forward
    try:
        yield
    finally:
        model.forward = plain_forward


def _shared_length(model: Any, inputs: dict[str, Any]) -> int:
    """Return how many leading tokens all rows share, padding included, before the first label; 0 if too few to pay off."""
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if ids is None or mask is None or labels is None or len(ids) < 2 or inputs.get("output_router_logits"):
        return 0  # the load balancing of a mixture of experts depends on all tokens
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return 0  # gradient checkpointing keeps no keys and values
    differs = ((ids != ids[:1]) | (mask != mask[:1])).any(0)
    labelled = (labels != _IGNORED).any(0)
    # The first label is predicted from the token before it, which each row must encode itself.
    first_label = int(labelled.int().argmax()) if labelled.any() else 0
    shared = min(int(differs.int().argmax()) if differs.any() else ids.shape[1], first_label - 1)
    return shared if shared >= MIN_SHARED_TOKENS else 0


def _forward(model: Any, plain_forward: Any, inputs: dict[str, Any], shared: int) -> Any:
    """Return the model output for all rows, with the shared prefix encoded once; prefix positions are padded with zeros."""
    from torch.nn.functional import pad

    ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
    prefix = get_cache(model.base_model(input_ids=ids[:1, :shared], attention_mask=mask[:1, :shared], use_cache=True))
    prefix.batch_repeat_interleave(len(ids))
    rest = inputs | {"input_ids": ids[:, shared:], "labels": labels[:, shared:]} | cache_argument(prefix)
    output = plain_forward(**rest)
    columns = labels.shape[1] - shared - 1  # one for each token but the first, which nothing predicts
    for name, value in output.items():
        if getattr(value, "shape", ())[1:] == (columns,):
            output[name] = pad(value, (shared, 0))
    return output
