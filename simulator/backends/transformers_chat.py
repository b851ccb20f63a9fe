"""A transformers model as a LangChain chat model: text is generated in this process, several answers to a prompt at once.

The one design choice: answers are drawn by adding Gumbel noise to the logits and taking the largest, which is sampling from
them; the noise comes from a generator of each answer's own, so that torch's global one is left alone, and what an answer says
depends on its seed and not on how many were asked for with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from usertwin.memory.models.chat import Style
from usertwin.memory.models.transformers_scorer import cache_of, with_cache
from usertwin.personas import ModelError

_TAIL = 4  # tokens of a prompt that are decoded with what follows, so that a first space is not lost


class TransformersChat(BaseChatModel):
    """Generates with a transformers model; one call at a time, in a thread where it is asked asynchronously.

    A text is sampled by the temperature alone, as training does it, without top-k, top-p or penalties; at temperature 0 it is
    the likeliest. Options of a call: n, seed (answer i has seed + i), max_tokens, temperature and stop; others are overlooked.

    Attributes:
        called: the model's name, for messages.
        load: loads the model and its tokenizer; called when the first text is asked for.
        style: "transcript" continues the messages' text, "instruction" writes them by the tokenizer's chat template.
        n: how many answers are given if a call does not say.
    """

    called: str
    load: Callable[[], tuple[Any, Any]]
    style: Style = "transcript"
    n: int = 1
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _held: tuple[Any, Any] | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer, loaded when first needed."""
        if self._held is None:
            self._held = self.load()
        return self._held

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        n: int | None = None,
        seed: int = 0,
        max_tokens: int = 100,
        temperature: float = 0.8,
        **kwargs: Any,
    ) -> ChatResult:
        with self._lock:
            _, tokenizer = self.loaded
            prompt = self._tokens(messages)
            rows = self._continued(prompt, max_tokens, temperature, [seed + i for i in range(n or self.n)], stop or [])
        written = sum(map(len, rows))
        usage = UsageMetadata(input_tokens=len(prompt), output_tokens=written, total_tokens=len(prompt) + written)
        return ChatResult(generations=[_answer(_text(tokenizer, prompt, row), stop or [], usage) for row in rows])

    def _tokens(self, messages: Sequence[BaseMessage]) -> list[int]:
        """The prompt's tokens."""
        _, tokenizer = self.loaded
        if self.style == "transcript":
            found: list[int] = tokenizer("".join(str(message.text) for message in messages)).input_ids
            return found or [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]
        if not tokenizer.chat_template:
            raise ModelError(f'the model "{self.called}" has no chat template; use --style transcript')
        roles = {"human": "user", "ai": "assistant"}
        chat = [{"role": roles.get(message.type, message.type), "content": str(message.text)} for message in messages]
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]

    def _continued(
        self, prompt: list[int], max_tokens: int, temperature: float, seeds: Sequence[int], stop: Sequence[str]
    ) -> list[list[int]]:
        """What is written after a prompt, a row of tokens for each seed, up to and with the token that ended it."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        model, tokenizer = self.loaded
        most = getattr(model.config, "max_position_embeddings", None)
        if most is not None and len(prompt) + max_tokens > most:
            raise ModelError(
                f'the model "{self.called}" holds {most} tokens, and the prompt takes {len(prompt)} beside the {max_tokens} to '
                "write; show it less"
            )
        told = model.generation_config.eos_token_id if model.generation_config is not None else None
        ends = {told} if isinstance(told, int) else set(cast("list[int]", told or []))
        ends |= set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        # None of the model's own settings is taken: it would be sampled in another way than was asked for.
        settings = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, use_cache=True, eos_token_id=sorted(ends) or None, pad_token_id=pad
        )
        ending = _Ending(tokenizer, len(prompt), len(seeds), stop)
        with torch.inference_mode():
            ids = torch.tensor([prompt] * len(seeds), device=model.device)
            written = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **with_cache(self._read(ids[:1, :-1], len(seeds))),
                generation_config=settings,
                logits_processor=LogitsProcessorList([_Noise(temperature, seeds, ids.device)] if temperature > 0 else []),
                stopping_criteria=StoppingCriteriaList([ending]),
            )
        rows: list[list[int]] = written[:, len(prompt) :].tolist()
        return [_until(row, ends, at) for row, at in zip(rows, ending.lengths, strict=True)]

    def _read(self, ids: Any, times: int) -> Any:
        """The keys and values of a prompt, computed once and repeated for each answer; None for a prompt of one token."""
        if ids.shape[1] == 0:
            return None
        model, _ = self.loaded
        cache = cache_of(model.base_model(ids, use_cache=True))
        if times > 1:
            cache.batch_repeat_interleave(times)
        return cache


class _Noise:
    """Divides logits by a temperature and adds the noise whose largest is a sample; a generator for each row."""

    def __init__(self, temperature: float, seeds: Sequence[int], device: Any) -> None:
        import torch

        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        # The negative logarithm of an exponential variable is a Gumbel one. In 32 bits one draw of 16 million is 0, which over
        # a vocabulary would now and then make any word certain.
        drawn = torch.empty_like(scores, dtype=torch.float64)
        for row, generator in zip(drawn, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.double() / self._temperature - drawn.clamp_min(1e-300).log()


class _Ending:
    """Ends each row as soon as what it wrote holds a stop, and remembers how many tokens that took."""

    def __init__(self, tokenizer: Any, start: int, rows: int, stop: Sequence[str]) -> None:
        self.lengths: list[int | None] = [None] * rows
        self._tokenizer, self._start, self._stop = tokenizer, start, [mark for mark in stop if mark]
        # A stop lies within so many of the last tokens: each but a special one holds at least one of its bytes.
        self._window = max((len(mark.encode()) for mark in self._stop), default=0) + 4

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        written = input_ids.shape[1] - self._start
        if self._stop:
            open_rows = [row for row, length in enumerate(self.lengths) if length is None]
            tails = input_ids[open_rows, max(self._start, input_ids.shape[1] - self._window) :].tolist()
            for row, tail in zip(open_rows, tails, strict=True):
                text = self._tokenizer.decode(tail, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                if any(mark in text for mark in self._stop):
                    self.lengths[row] = written
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def _until(row: list[int], ends: set[int], stopped: int | None) -> list[int]:
    """A row up to and with its end; what follows only fills it up."""
    row = row[:stopped]
    return row[: next((place + 1 for place, token in enumerate(row) if token in ends), len(row))]


def _text(tokenizer: Any, prompt: list[int], row: list[int]) -> str:
    """What a row says after its prompt."""

    def decoded(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    before = decoded(prompt[-_TAIL:])
    both = decoded(prompt[-_TAIL:] + row)
    return both[len(before) :] if both.startswith(before) else decoded(row)


def _answer(text: str, stop: Sequence[str], usage: UsageMetadata) -> ChatGeneration:
    found = [place for place in (text.find(mark) for mark in stop if mark) if place >= 0]
    return ChatGeneration(message=AIMessage(text[: min(found)] if found else text, usage_metadata=usage))
