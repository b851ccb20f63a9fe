"""What all texts of a batch begin with is read once: the examples of a prompt are two thirds of what a training step reads.

The one design choice: nothing is approximated. The keys and values of what is shared stay in the graph, so that the loss and
its gradient are those of a step that reads every text from its start, within float tolerance; what cannot be shared so is read
as ever.

Source: prompts are read once for all their continuations in arXiv 2402.05099 (Hydragen), there without a gradient.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from usertwin.memory.models.transformers_scorer import LEAST_SHARED, cache_of, with_cache

_NO_LABEL = -100  # of a token that no loss is told of, in torch and trl


@contextmanager
def shared_prefix_forward(model: Any) -> Generator[None]:
    """A causal model that, where trl asks it for the log-probabilities of labels, reads once what its rows begin with.

    Args:
        model: a base, after a trainer of trl was made for it; with its adapter inside, if it has one. As it was when this ends.
    """
    own = model.forward

    @wraps(own)  # `generate` looks at what a forward takes
    def forward(*args: Any, **told: Any) -> Any:
        shared = 0 if args or not told.get("fused_lm_head") else _shared(model, told)
        return _continued(model, own, told, shared) if shared else own(*args, **told)

    model.forward = forward
    try:
        yield
    finally:
        model.forward = own


def _shared(model: Any, told: dict[str, Any]) -> int:
    """How many first tokens all rows share, padding included, that no label is of, nor of what follows; 0 if too few."""
    ids, read, labels = (told.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if ids is None or read is None or labels is None or len(ids) < 2 or told.get("output_router_logits"):
        return 0  # a mixture's balance is told of all tokens
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return 0  # where activations are computed anew, keys and values are not kept
    differs = ((ids != ids[:1]) | (read != read[:1])).any(0)
    labelled = (labels != _NO_LABEL).any(0)
    # The first label is foretold from the token before it, which is to be among those that each row reads.
    first_label = int(labelled.int().argmax()) if labelled.any() else 0
    shared = min(int(differs.int().argmax()) if differs.any() else ids.shape[1], first_label - 1)
    return shared if shared >= LEAST_SHARED else 0


def _continued(model: Any, own: Any, told: dict[str, Any], shared: int) -> Any:
    """What the model gives for all rows after it has read once what they share; of the tokens of that nothing is told."""
    from torch.nn.functional import pad

    ids, read, labels = told["input_ids"], told["attention_mask"], told["labels"]
    begun = cache_of(model.base_model(input_ids=ids[:1, :shared], attention_mask=read[:1, :shared], use_cache=True))
    begun.batch_repeat_interleave(len(ids))
    rest = told | {"input_ids": ids[:, shared:], "labels": labels[:, shared:]} | with_cache(begun)
    given = own(**rest)
    columns = labels.shape[1] - shared - 1  # of each token but the first, which nothing foretells
    for name, told_of in given.items():
        if getattr(told_of, "shape", ())[1:] == (columns,):
            given[name] = pad(told_of, (shared, 0))
    return given
