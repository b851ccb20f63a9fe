"""What a model writes besides its answer: reasoning in tags and channels. And the JSON objects in an answer.

Design: a tag that the prompt itself holds, in the middle of a line, is text that the writer talks about, and so is a quoted
tag. Every other tag is markup: a person's turn has no use for it, and an agent must never see the reasoning behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_NAMES = r"(?:think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|analysis|seed:think)"
_OPEN = re.compile(
    rf"<\s*{_NAMES}(?:\s[^<>\n]{{0,60}})?>|◁\s*{_NAMES}\s*▷|\[THINK\]|<\|(?:begin_of_thought|start_thinking)\|>|<\|channel>\w*",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"<\s*/\s*{_NAMES}\s*>|◁\s*/\s*{_NAMES}\s*▷|\[/THINK\]|<\|(?:end_of_thought|end_thinking)\|>|<channel\|>", re.IGNORECASE
)
#: OpenAI's harmony format: the answer is in the channel "final". Its tokens may be gone while their names remain.
_HARMONY = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|$)", re.DOTALL
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary|final)\b")
_BARE_HARMONY = re.compile(  # "analysis(x)" alone is code
    r"\s*(?:analysis|commentary)(?:(?=[A-Z\"'(]).*?assistantfinal(?P<final>.*)|(?=[A-Z\"']))", re.DOTALL
)
#: What some models write around the answer that follows their reasoning.
_WRAPPER = re.compile(r"<answer>(.*)</answer>|<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>)?", re.DOTALL)
_QUOTES = "\"'`“”‘’«»"

#: Why a completion is not one answer.
MIXED, UNCLOSED, ONLY_REASONING = "reasoning in the middle", "unfinished reasoning", "nothing but reasoning"


class Answered(NamedTuple):
    """A completion without its reasoning, and why it is not one whole answer ("" if it is)."""

    text: str
    defect: str = ""


def without_reasoning(completion: str, prompt: str = "") -> Answered:
    """Return the answer in a completion: the text after the last closing tag, or the final channel.

    A closing tag alone ends reasoning that the chat template opened. A completion without reasoning is returned unchanged.
    `prompt` is what the model was asked; see the design note of this file.
    """
    if _CHANNEL.search(completion):
        final = [text for channel, text in _HARMONY.findall(completion) if channel == "final"]
        return Answered(final[-1].strip()) if final else Answered("", ONLY_REASONING)
    if bare := _BARE_HARMONY.match(completion):
        final = (bare["final"] or "").strip()
        return Answered(final, "" if final else ONLY_REASONING)
    mentioned = prompt.casefold()
    opened = [tag for tag in _OPEN.finditer(completion) if not _is_mention(completion, tag, mentioned)]
    first = opened[0].start() if opened else len(completion)  # what follows an opening tag may close it
    closed = [t for t in _CLOSE.finditer(completion) if t.start() > first or not _is_mention(completion, t, mentioned)]
    if not opened and not closed:
        return Answered(completion)
    end = closed[-1].end() if closed else 0
    unclosed = next((tag.start() for tag in opened if tag.start() >= end), None)
    before = completion[: opened[0].start()].strip() if opened and opened[0].start() < end else ""
    after = completion[end:unclosed].strip()
    if wrapped := _WRAPPER.fullmatch(after):
        after = (wrapped[1] or wrapped[2] or "").strip()
    if unclosed is not None:
        return Answered(after or before, UNCLOSED)
    return Answered(after or before, MIXED if after and before else "" if after or before else ONLY_REASONING)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text, in order; those inside another one are not yielded."""
    decoder, start = json.JSONDecoder(), 0
    while (start := text.find("{", start)) >= 0:
        try:
            raw, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        yield raw


def _is_mention(text: str, tag: re.Match[str], mentioned: str) -> bool:
    """Return whether a tag is text that the writer talks about."""
    before, after = text[: tag.start()], text[tag.end() :]
    if before and after and before[-1] in _QUOTES and after[0] in _QUOTES:
        return True
    return (
        tag[0].casefold() in mentioned and bool(before.rpartition("\n")[2].strip()) and bool(after.partition("\n")[0].strip())
    )
