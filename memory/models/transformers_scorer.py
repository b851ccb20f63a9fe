"""Log-probabilities of continuations under a transformers model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, lru_cache
from math import fsum
from typing import Any

from usertwin.personas import ModelError

from .scoring import Likelihood, Precision

#: A batch of so many tokens keeps a processor busy; more only crowd its caches. One call costs about as much as so many tokens
#: more (the weights are read once), which is what padding is weighed against. An accelerator wants several times both.
_BATCH_TOKENS, _CALL_TOKENS = 1024, 32


_ACCELERATED = 16


#: The most tokens whose keys and values are held at once, where rows of a batch share what was computed before.
_HELD_TOKENS = 16384


#: Fewer tokens than these are read again sooner than they are read apart.
MIN_SHARED_TOKENS = 32


#: The tokens of a prompt, those of a continuation, and where in the continuation each of its own ends.
_Encoded = tuple[list[int], list[int], list[int]]


class TransformersScorer:
    """A causal language model of transformers as a scorer.

    What all prompts of one call begin with is computed once, and so is a prompt that several continuations of the call share.
    Prompts that do not fit the model lose their beginning.

    Args:
        name: what to call the model.
        load: gives (model, tokenizer); called when first needed.
        dtype: what the model reckons in; another than float32 is told in `name`. Probabilities are always made of its
            logits in float32. In bfloat16 those of the built-in model are off by 0.04 nats a token on average, to both sides.
    """

    def __init__(self, name: str, load: Callable[[], tuple[Any, Any]], dtype: Precision = "float32") -> None:
        self.name = name if dtype == "float32" else f"{name}, {dtype}"
        self._load, self._dtype = load, dtype
        self._lock = threading.Lock()

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, loaded when first needed."""
        import torch

        model, tokenizer = self._load()
        return model.to(getattr(torch, self._dtype)).eval(), tokenizer

    @cached_property
    def _plain_head(self) -> bool:
        """Whether the logits are the output embeddings' alone; some models scale or cap them further on their way out."""
        import torch

        model, _ = self.loaded
        with torch.inference_mode():
            ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
            ours = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
            return bool(torch.allclose(ours.float(), model(ids).logits.float(), atol=1e-3))

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        if not items:
            return []
        with self._lock:
            model, tokenizer = self.loaded
            limit = int(getattr(model.config, "max_position_embeddings", 2048))
            encoded = [_encode(tokenizer, prompt, continuation, limit) for prompt, continuation in items]
            found: dict[int, list[float]] = {}
            self._score_from(0, None, encoded, list(range(len(items))), found)
        return [_likelihood(found[index], encoded[index][2]) for index in range(len(items))]

    def _score_from(
        self, start: int, past: Any, encoded: Sequence[_Encoded], which: Sequence[int], found: dict[int, list[float]]
    ) -> None:
        """Score items whose prompts share their first `start` tokens, which `past` holds, into `found`.

        What they share beyond that is computed first, then likewise for those that share their next tokens.
        """
        shared = shared_prefix_length([encoded[index][0] for index in which]) if len(which) > 1 else 0
        if shared - start >= MIN_SHARED_TOKENS:
            past, start = self._continued(past, encoded[which[0]][0][start:shared]), shared
        alike: dict[tuple[int, ...], list[int]] = {}
        for index in which:  # a prompt that is too short to share anything is alone, by a key that only it has
            prompt = encoded[index][0]
            enough = len(prompt) - 1 - start >= MIN_SHARED_TOKENS
            alike.setdefault(tuple(prompt[start : start + MIN_SHARED_TOKENS]) if enough else (-1 - index,), []).append(index)
        alone: list[int] = []
        for group in alike.values():
            if len(group) > 1:
                self._score_from(start, past, encoded, group, found)
            else:
                alone += group
        for batch in self._batches([len(encoded[index][0]) + len(encoded[index][1][:-1]) - start for index in alone], start):
            members = [alone[place] for place in batch]
            rows = [(encoded[index][0][start:], encoded[index][1]) for index in members]
            found |= dict(zip(members, self._score_batch(rows, past), strict=True))

    def _batches(self, lengths: Sequence[int], held: int) -> list[list[int]]:
        faster = 1 if self.loaded[0].device.type == "cpu" else _ACCELERATED
        return _batches(lengths, held, most=faster * _BATCH_TOKENS, call=faster * _CALL_TOKENS)

    def _continued(self, past: Any, tokens: Sequence[int]) -> Any:
        """The keys and values of what came before and some tokens more."""
        import torch

        model, _ = self.loaded
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=model.device)
            return get_cache(model.base_model(ids, use_cache=True, **cache_argument(copy.deepcopy(past))))

    def _score_batch(self, rows: Sequence[tuple[list[int], list[int]]], past: Any) -> list[list[float]]:
        """The nats of each token of rows of (prompt ids, continuation ids), padded on the right, where nothing is read."""
        import torch

        model, _ = self.loaded
        read = [prompt + continuation[:-1] for prompt, continuation in rows]  # after the last token nothing is asked
        ids = torch.zeros((len(rows), max(map(len, read))), dtype=torch.long)
        for row, tokens in enumerate(read):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        # The token at place t is predicted by the hidden state at t - 1.
        where = [(row, len(p) + t - 1) for row, (p, c) in enumerate(rows) for t in range(len(c))]
        wanted = torch.tensor([token for _, continuation in rows for token in continuation])
        with torch.inference_mode():
            cache = repeat_cache(past, len(rows))
            options = {**cache_argument(cache), "use_cache": cache is not None}
            picked = [row for row, _ in where], [place for _, place in where]
            if self._plain_head:  # the head is a fifth of a small model's work, and only few places are needed
                logits = model.get_output_embeddings()(
                    model.base_model(ids.to(model.device), **options).last_hidden_state[picked]
                )
            else:
                logits = model(ids.to(model.device), **options).logits[picked]
            logits = logits.float()
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(f'the model "{self.name}" gave something that is not a number; its weights may be damaged')
            nats = logits.log_softmax(-1).gather(1, wanted.to(logits.device)[:, None])[:, 0].cpu()
        pieces = nats.split([len(continuation) for _, continuation in rows])
        return [piece.double().tolist() for piece in pieces]


def _likelihood(each: Sequence[float], ends: Sequence[int]) -> Likelihood:
    return Likelihood(fsum(each), len(each), tuple(each), tuple(ends))


def _encode(tokenizer: Any, prompt: str, continuation: str, limit: int) -> _Encoded:
    """The tokens of prompt and continuation, and where in the continuation each of its own ends."""
    before: list[int] = tokenizer(prompt).input_ids or [tokenizer.eos_token_id]
    found = tokenizer(continuation, add_special_tokens=False, return_offsets_mapping=True)
    after: list[int] = found.input_ids[: limit // 2]
    ends = [int(end) for _, end in found.offset_mapping[: len(after)]]
    return before[-(limit - len(after)) :], after, ends


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts share, leaving each at least one of its own; 0 if too few to be computed apart."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = max(0, min(map(len, prompts)) - 1)
    shared = next((i for i in range(most) if first[i] != last[i]), most)
    return shared if shared >= MIN_SHARED_TOKENS else 0


@lru_cache(maxsize=1)
def _cache_word() -> str:
    """What transformers calls keys and values that are kept: "cache" from 5.24 on, where it warns of the older name."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in {one.name for one in fields(BaseModelOutputWithPast)} else "past_key_values"


def cache_argument(past: Any) -> dict[str, Any]:
    """The argument by which a model, or its `generate`, is given keys and values; None for none."""
    return {_cache_word(): past}


def get_cache(output: Any) -> Any:
    """The keys and values in what a model gave."""
    return getattr(output, _cache_word())


def repeat_cache(past: Any, rows: int) -> Any:
    """Keys and values for so many rows, apart from those that are kept; None for none."""
    if past is None:
        return None
    own = copy.deepcopy(past)
    own.batch_repeat_interleave(rows)
    return own


def _batches(lengths: Sequence[int], held: int, *, most: int, call: int) -> list[list[int]]:
    """Indices in groups of similar length that together cost the least.

    Args:
        lengths: of the rows, in tokens.
        held: tokens before each row whose keys and values are repeated for it.
        most: the most tokens of a group of several rows, padding included.
        call: what a group costs beside its tokens, in tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    # For the first so many of the order: the least cost, and where the last group begins.
    least: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        rows = max(1, min(most // max(1, width), _HELD_TOKENS // max(1, held + width)))
        least.append(min((least[end - n][0] + call + n * width, end - n) for n in range(1, min(rows, end) + 1)))
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[least[end][1] : end])
        end = least[end][1]
    return groups[::-1]
