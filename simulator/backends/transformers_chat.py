"""A transformers model as a LangChain chat model that samples several completions of a prompt in one batch, in this process.

Design: sampling adds Gumbel noise to the logits and takes the maximum, which equals sampling from the softmax. Each completion
has its own noise generator, so it depends on its seed alone, not on the batch, and torch's global generator is not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from usertwin.memory.concurrency import to_thread
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.token_writer import LIKELY_TOKENS, NextToken, WrittenTokens
from usertwin.memory.models.transformers_scorer import cache_argument, get_cache
from usertwin.memory.text.control_tokens import without_control_tokens
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import ModelError

_TAIL = 4  # prompt tokens that are decoded together with the completion, so that its first space is kept


class TransformersChat(BaseChatModel):
    """Generates with a transformers model, one call at a time; async calls run in a thread.

    Sampling uses the temperature only, as training does: no top-k, top-p or penalties. Temperature 0 is greedy decoding.
    Options of a call: n, seed (completion i has seed + i), max_tokens, temperature and stop; others are ignored.

    Attributes:
        model_name: the model's name, for error messages.
        load: returns the model and its tokenizer; called at the first request.
        style: "transcript" continues the messages' text, "instruction" applies the tokenizer's chat template.
        n: completions per call, unless the call sets n.
    """

    model_name: str
    load: Callable[[], tuple[Any, Any]]
    style: PromptStyle = "transcript"
    n: int = 1
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _loaded: tuple[Any, Any] | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, loaded when first needed."""
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None, *, n: int | None = None, seed: int = 0, max_tokens: int = 100,
        temperature: float = 0.8, **kwargs: Any,
    ) -> ChatResult:  # fmt: skip
        with self._lock:
            _, tokenizer = self.loaded
            prompt = self._tokenize(messages)
            rows = self._complete(prompt, max_tokens, temperature, [seed + i for i in range(n or self.n)], stop or [])
        output_tokens = sum(map(len, rows))
        total = len(prompt) + output_tokens
        usage = UsageMetadata(input_tokens=len(prompt), output_tokens=output_tokens, total_tokens=total)
        ends = self._end_tokens()
        return ChatResult(
            generations=[
                _generation(_decode(tokenizer, prompt, row), stop or [], usage, ended=bool(row) and row[-1] in ends)
                for row in rows
            ]
        )

    @property
    def vocabulary_size(self) -> int:
        """See `TokenWriter.vocabulary_size`."""
        return len(self.loaded[1])

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """See `TokenWriter.encode`."""
        _, tokenizer = self.loaded
        texts = list(map(action_completion, turns)) if self.style == "transcript" else list(turns)
        end = [] if self.style == "transcript" else [tokenizer.eos_token_id]
        return [[*tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, *end] for text in texts]

    async def write(
        self, messages: Sequence[tuple[str, str]], next_token: NextToken, *, n: int, seed: int, max_tokens: int,
        temperature: float, stop: Sequence[str], use_cache: bool,
    ) -> list[WrittenTokens]:  # fmt: skip
        """See `TokenWriter.write`; the prompt is always computed anew, once for all completions."""

        def write_all() -> list[WrittenTokens]:
            with self._lock:
                _, tokenizer = self.loaded
                prompt, seeds = self._tokenize(convert_to_messages(list(messages))), [seed + i for i in range(n)]
                rows = self._complete(prompt, max_tokens, temperature, seeds, stop, next_token)
            ends = self._end_tokens()
            return [
                _written(_decode(tokenizer, prompt, row), stop, len(prompt), len(row), ended=bool(row) and row[-1] in ends)
                for row in rows
            ]

        return await to_thread(write_all)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        _, tokenizer = self.loaded
        return len(tokenizer(text, split_special_tokens=True).input_ids)

    def _end_tokens(self) -> set[int]:
        """Return the tokens that end a completion."""
        model, tokenizer = self.loaded
        own = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = {own} if isinstance(own, int) else set(cast("list[int]", own or []))
        return ends | (set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id})

    def _tokenize(self, messages: Sequence[BaseMessage]) -> list[int]:
        """Return the prompt's tokens."""
        _, tokenizer = self.loaded
        if self.style == "transcript":
            text = "".join(str(message.text) for message in messages)
            tokens: list[int] = tokenizer(text, split_special_tokens=True).input_ids  # the text holds no control tokens of ours
            return tokens or [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]
        if not tokenizer.chat_template:
            raise ModelError(f'the model "{self.model_name}" has no chat template; use --style transcript')
        roles, control = {"human": "user", "ai": "assistant"}, control_tokens_of(tokenizer)
        texts = [without_control_tokens(str(message.text), control) for message in messages]
        chat = [
            {"role": roles.get(message.type, message.type), "content": t} for message, t in zip(messages, texts, strict=True)
        ]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]

    def _complete(
        self, prompt: list[int], max_tokens: int, temperature: float, seeds: Sequence[int], stop: Sequence[str],
        next_token: NextToken | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Return the tokens of one completion for each seed, up to and including the token that ends it."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        model, tokenizer = self.loaded
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None:
            reserved = min(max_tokens, context // 4)  # a limit with room for reasoning may be larger than the context
            if len(prompt) + reserved > context:
                raise ModelError(
                    f'the context of the model "{self.model_name}" is {context} tokens; the prompt has {len(prompt)}, and '
                    f"{reserved} are reserved for the reply; shorten the prompt"
                )
            max_tokens = min(max_tokens, context - len(prompt))
        ends = self._end_tokens()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        # Built from scratch: the model's own generation config would add its top-k, top-p and penalties.
        config = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, use_cache=True, eos_token_id=sorted(ends) or None, pad_token_id=pad
        )
        stopping = _StopTexts(tokenizer, len(prompt), len(seeds), stop)
        processors = LogitsProcessorList([] if next_token is None else [_OwnProbabilities(next_token, len(prompt))])
        if temperature > 0:
            processors.append(_GumbelNoise(temperature, seeds, model.device))
        with torch.inference_mode():
            ids = torch.tensor([prompt] * len(seeds), device=model.device)
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **cache_argument(self._encode_prompt(ids[:1, :-1], len(seeds))),
                generation_config=config,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stopping]),
            )
        rows: list[list[int]] = output[:, len(prompt) :].tolist()
        return [_trim(row, ends, length) for row, length in zip(rows, stopping.lengths, strict=True)]

    def _encode_prompt(self, ids: Any, times: int) -> Any:
        """Return the prompt's keys and values, computed once and repeated `times` times; None for a prompt of one token."""
        if ids.shape[1] == 0:
            return None
        model, _ = self.loaded
        cache = get_cache(model.base_model(ids, use_cache=True))
        if times > 1:
            cache.batch_repeat_interleave(times)
        return cache


def control_tokens_of(tokenizer: Any) -> tuple[str, ...]:
    """Return the control tokens of a tokenizer."""
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


class _OwnProbabilities:
    """A logits processor that replaces the model's probabilities by those of a function of them."""

    def __init__(self, next_token: NextToken, start: int) -> None:
        self._next_token, self._start = next_token, start

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        likely = scores.float().softmax(-1).topk(min(LIKELY_TOKENS, scores.shape[-1]), dim=-1)
        changed = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        rows = zip(input_ids[:, self._start :].tolist(), likely.indices.tolist(), likely.values.tolist(), strict=True)
        for row, (written, tokens, probabilities) in enumerate(rows):
            mixed = self._next_token(written, dict(zip(tokens, probabilities, strict=True)))
            kept = {token: probability for token, probability in mixed.items() if probability > 0}
            changed[row, list(kept)] = torch.tensor(list(kept.values()), device=scores.device).log()
        return changed


class _GumbelNoise:
    """A logits processor that divides by the temperature and adds Gumbel noise, with a generator for each row."""

    def __init__(self, temperature: float, seeds: Sequence[int], device: Any) -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        # -log of an exponential variable is a Gumbel variable. float64, because one float32 draw in 16 million is 0, which
        # would make a token certain.
        noise = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.double() / self._temperature - noise.clamp_min(1e-300).log()


class _StopTexts:
    """A stopping criterion that ends each row once it contains a stop text, and records its length."""

    def __init__(self, tokenizer: Any, start: int, rows: int, stop: Sequence[str]) -> None:
        self.lengths: list[int | None] = [None] * rows
        self._tokenizer, self._start, self._stop = tokenizer, start, [text for text in stop if text]
        # A stop text lies within this many last tokens, since every token but a special one holds at least one byte.
        self._window = max((len(text.encode()) for text in self._stop), default=0) + 4

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        length = input_ids.shape[1] - self._start
        if self._stop:
            open_rows = [row for row, end in enumerate(self.lengths) if end is None]
            tails = input_ids[open_rows, max(self._start, input_ids.shape[1] - self._window) :].tolist()
            for row, tail in zip(open_rows, tails, strict=True):
                text = self._tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                if any(stop in text for stop in self._stop):
                    self.lengths[row] = length
        return torch.tensor([end is not None for end in self.lengths], device=input_ids.device)


def _trim(row: list[int], ends: set[int], length: int | None) -> list[int]:
    """Return a row without the padding after its stop text (at `length`) or its first end token."""
    row = row[:length]
    return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]


def _decode(tokenizer: Any, prompt: list[int], row: list[int]) -> str:
    """Return the text of a completion."""

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    tail = decode(prompt[-_TAIL:])
    text = decode(prompt[-_TAIL:] + row)
    return text[len(tail) :] if text.startswith(tail) else decode(row)


def _written(text: str, stop: Sequence[str], prompt_tokens: int, tokens: int, *, ended: bool) -> WrittenTokens:
    """Return a completion, cut at its first stop text."""
    places = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    cut = text[: min(places)] if places else text
    return WrittenTokens(cut, input_tokens=prompt_tokens, cached_tokens=0, output_tokens=tokens, at_limit=not (ended or places))


def _generation(text: str, stop: Sequence[str], usage: UsageMetadata, *, ended: bool) -> ChatGeneration:
    """Return a completion, cut at its first stop text; one without a stop text or an end token ended at its token limit."""
    places = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    reason = {"finish_reason": "stop" if ended or places else "length"}
    message = AIMessage(text[: min(places)] if places else text, usage_metadata=usage, response_metadata=reason)
    return ChatGeneration(message=message)
