"""Log-probabilities of continuations under a transformers model."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, lru_cache
from math import fsum
from typing import Any

from usertwin.personas import ModelError

from .scoring import Likelihood, Precision

_LOG = logging.getLogger(__name__)
#: The most tokens of a batch on a CPU, and the fixed cost of a batch in tokens (the weights are read once). Padding is weighed
#: against that cost. On an accelerator both are multiplied by `_ACCELERATOR_FACTOR`.
_BATCH_TOKENS, _CALL_TOKENS = 1024, 32
_ACCELERATOR_FACTOR = 16
#: The most tokens whose keys and values are in memory at once, where the rows of a batch share a prefix.
_MAX_CACHED_TOKENS = 16384
#: The shortest shared prefix, in tokens, that is worth a separate forward pass.
MIN_SHARED_TOKENS = 32

#: Token ids of a prompt, token ids of a continuation, and the end of each continuation token in characters.
_Encoded = tuple[list[int], list[int], list[int]]


class TransformersScorer:
    """A causal language model of transformers as a scorer.

    Prefixes shared by prompts of one call, and prompts shared by several continuations, are computed once. Prompts longer than
    the model's context are truncated at the start. `load` returns (model, tokenizer) and is called on first use.

    `load_tokenizer` returns the tokenizer alone, so that texts are tokenized without loading weights.
    `dtype` is the data type of weights and activations; unless float32, it is appended to `name`. Softmax is always in float32.
    bfloat16 changes the built-in model's log-probabilities by 0.04 nats a token on average, in both directions.
    """

    def __init__(
        self, name: str, load: Callable[[], tuple[Any, Any]], dtype: Precision = "float32",
        load_tokenizer: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = name if dtype == "float32" else f"{name}, {dtype}"
        self._load, self._dtype, self._load_tokenizer = load, dtype, load_tokenizer
        self._lock = threading.Lock()

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, loaded on first use."""
        import torch

        model, tokenizer = self._load()
        return model.to(getattr(torch, self._dtype)).eval(), tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        return self.loaded[1] if self._load_tokenizer is None else self._load_tokenizer()

    @property
    def vocabulary_size(self) -> int:
        """See `Tokenizer.vocabulary_size`."""
        return len(self._tokenizer)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Tokenizer.tokenize`."""
        with self._lock:
            return _tokenized(self._tokenizer, list(texts)).input_ids if texts else []

    @cached_property
    def _plain_head(self) -> bool:
        """Whether the logits are the plain product with the output embeddings; some models also scale or cap them."""
        import torch

        model, _ = self.loaded
        with torch.inference_mode():
            ids = torch.arange(8, device=model.device)[None] % model.config.vocab_size
            plain = model.get_output_embeddings()(model.base_model(ids).last_hidden_state)
            return bool(torch.allclose(plain.float(), model(ids).logits.float(), atol=1e-3))

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        if not items:
            return []
        with self._lock:
            model, tokenizer = self.loaded
            limit = int(getattr(model.config, "max_position_embeddings", 2048))
            encoded = [_encode(tokenizer, prompt, continuation, limit) for prompt, continuation in items]
            if any(len(prompt_ids) + len(ids) >= limit for prompt_ids, ids, _ in encoded):
                _LOG.warning("the scorer %s reads %d tokens; longer prompts are scored without their start", self.name, limit)
            scores: dict[int, list[float]] = {}
            self._score_group(0, None, encoded, list(range(len(items))), scores)
        nats = (scores[index] for index in range(len(items)))
        return [Likelihood(fsum(n), len(n), tuple(n), tuple(ends)) for n, (_, _, ends) in zip(nats, encoded, strict=True)]

    def _score_group(
        self, start: int, past: Any, encoded: Sequence[_Encoded], group: Sequence[int], scores: dict[int, list[float]]
    ) -> None:
        """Write the token log-probabilities of the items in `group` to `scores`.

        Their prompts share the first `start` tokens, whose keys and values are in `past`. A longer shared prefix is computed
        first; then subgroups that share their next tokens are scored in the same way.
        """
        shared = shared_prefix_length([encoded[index][0] for index in group]) if len(group) > 1 else 0
        if shared - start >= MIN_SHARED_TOKENS:
            past, start = self._extend(past, encoded[group[0]][0][start:shared]), shared
        subgroups: dict[tuple[int, ...], list[int]] = {}
        for index in group:  # a prompt too short to share a prefix gets a key of its own
            prompt = encoded[index][0]
            long_enough = len(prompt) - 1 - start >= MIN_SHARED_TOKENS
            key = tuple(prompt[start : start + MIN_SHARED_TOKENS]) if long_enough else (-1 - index,)
            subgroups.setdefault(key, []).append(index)
        for subgroup in subgroups.values():
            if len(subgroup) > 1:
                self._score_group(start, past, encoded, subgroup, scores)
        singles = [subgroup[0] for subgroup in subgroups.values() if len(subgroup) == 1]
        lengths = [len(encoded[index][0]) + len(encoded[index][1][:-1]) - start for index in singles]
        factor = 1 if self.loaded[0].device.type == "cpu" else _ACCELERATOR_FACTOR
        for batch in _batches(lengths, start, max_tokens=factor * _BATCH_TOKENS, call_cost=factor * _CALL_TOKENS):
            members = [singles[position] for position in batch]
            rows = [(encoded[index][0][start:], encoded[index][1]) for index in members]
            scores |= dict(zip(members, self._score_batch(rows, past), strict=True))

    def _extend(self, past: Any, tokens: Sequence[int]) -> Any:
        """Return the keys and values of `past` followed by more tokens."""
        import torch

        model, _ = self.loaded
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=model.device)
            return get_cache(model.base_model(ids, use_cache=True, **cache_argument(copy.deepcopy(past))))

    def _score_batch(self, rows: Sequence[tuple[list[int], list[int]]], past: Any) -> list[list[float]]:
        """Return the log-probability of each continuation token, in nats, for rows of (prompt ids, continuation ids)."""
        import torch

        model, _ = self.loaded
        inputs = [prompt + continuation[:-1] for prompt, continuation in rows]  # no prediction after the last token
        ids = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, inputs)), batch_first=True).to(model.device)
        # The token at position t is predicted by the hidden state at t - 1.
        positions = [(row, len(p) + t - 1) for row, (p, c) in enumerate(rows) for t in range(len(c))]
        targets = torch.tensor([token for _, continuation in rows for token in continuation])
        with torch.inference_mode():
            cache = repeat_cache(past, len(rows))
            options = {**cache_argument(cache), "use_cache": cache is not None}
            picked = [row for row, _ in positions], [position for _, position in positions]
            if self._plain_head:  # the output head is a fifth of a small model's work, and few positions are needed
                hidden = model.base_model(ids, **options).last_hidden_state
                logits = model.get_output_embeddings()(hidden[picked]).float()
            else:
                logits = model(ids, **options).logits[picked].float()
            if not bool(torch.isfinite(logits).all()):
                raise ModelError(f'the model "{self.name}" returned logits that are not finite; its weights may be damaged')
            nats = logits.log_softmax(-1).gather(1, targets.to(logits.device)[:, None])[:, 0].cpu()
        pieces = nats.split([len(continuation) for _, continuation in rows])
        return [piece.double().tolist() for piece in pieces]


def _encode(tokenizer: Any, prompt: str, continuation: str, limit: int) -> _Encoded:
    """Return both texts as token ids of at most `limit` in total, and the ends of the continuation's tokens in characters.

    The texts are plain: a control token in them is read as characters.
    """
    prompt_ids: list[int] = tokenizer(prompt, split_special_tokens=True).input_ids or [tokenizer.eos_token_id]
    encoding = _tokenized(tokenizer, continuation, return_offsets_mapping=True)
    ids: list[int] = encoding.input_ids[: limit // 2]
    ends = [int(end) for _, end in encoding.offset_mapping[: len(ids)]]
    return prompt_ids[-(limit - len(ids)) :], ids, ends


def _tokenized(tokenizer: Any, text: str | list[str], **options: Any) -> Any:
    """Return the tokenizer's encoding of plain text, or of several."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)


def shared_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all prompts share, leaving at least one token of each; 0 below `MIN_SHARED_TOKENS`."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = max(0, min(map(len, prompts)) - 1)
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if shared >= MIN_SHARED_TOKENS else 0


@lru_cache(maxsize=1)
def _cache_name() -> str:
    """Return transformers' name for keys and values: "cache" since 5.24, which deprecates "past_key_values"."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"


def cache_argument(past: Any) -> dict[str, Any]:
    """Return the keyword argument that passes keys and values (or None) to a model or its `generate`."""
    return {_cache_name(): past}


def get_cache(output: Any) -> Any:
    """Return the keys and values in a model's output."""
    return getattr(output, _cache_name())


def repeat_cache(past: Any, rows: int) -> Any:
    """Return a copy of the keys and values, repeated for `rows` rows; None for None."""
    copied = copy.deepcopy(past)
    if copied is not None:
        copied.batch_repeat_interleave(rows)
    return copied


def _batches(lengths: Sequence[int], prefix: int, *, max_tokens: int, call_cost: int) -> list[list[int]]:
    """Return row indices in batches of similar length with the least total cost; all arguments are in tokens.

    A batch of several rows has at most `max_tokens` with its padding. `prefix` cached tokens are repeated for each of its rows.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    # best[end] is the least cost of the first `end` rows in this order, and the start of their last batch.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        rows = max(1, min(max_tokens // max(1, width), _MAX_CACHED_TOKENS // max(1, prefix + width)))
        best.append(min((best[end - n][0] + call_cost + n * width, end - n) for n in range(1, min(rows, end) + 1)))
    batches, end = list[list[int]](), len(order)
    while end:
        batches.append(order[best[end][1] : end])
        end = best[end][1]
    return batches[::-1]
