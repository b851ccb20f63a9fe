"""Control tokens of a tokenizer in text from outside, such as "<|im_end|>": made inert before the text becomes a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

#: Control tokens of common chat templates, for endpoints whose vocabulary is unknown.
COMMON = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]",
    "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


def without_control_tokens(text: str, tokens: Sequence[str]) -> str:
    """Return the text with a space after the first character of each control token, so that it is read as characters."""
    if not tokens:
        return text
    pattern = _pattern(tuple(tokens))
    while (inert := pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = inert  # the rest of a token may be a token itself
    return text


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
