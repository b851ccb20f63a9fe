"""What a model writes besides its answer: reasoning in tags and channels. And the JSON objects in an answer.

Design: people write about XML, HTML and code, and must not lose what they wrote. So only the control forms of reasoning models
count, where models put them. Tags that XML may have too (`<reasoning>`) count at the start of a completion only, unless the
prompt holds the tag. Tags such as `<think>` count everywhere but in quotes, in code, and inside a line if the prompt holds
the tag: an agent must never see the reasoning behind a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_TAG = re.compile(
    r"(?P<open><\s*(?:seed:)?think(?:ing)?\s*>|◁\s*think\s*▷|(?-i:\[THINK\])|<\|(?:begin_of_thought|start_thinking)\|>"
    r"|<\|channel>\w*)"
    r"|<\s*/\s*(?:seed:)?think(?:ing)?\s*>|◁\s*/\s*think\s*▷|(?-i:\[/THINK\])|<\|(?:end_of_thought|end_thinking)\|>|<channel\|>",
    re.IGNORECASE,
)
#: A block of reasoning at the start, in a tag that XML may have too, to its end or to that of the completion.
_LEADING_BLOCK = re.compile(
    r"\s*<\s*(?P<name>thoughts?|reasoning|scratchpad)\s*>(?:.*?(?P<close><\s*/\s*(?P=name)\s*>)|.*)", re.IGNORECASE | re.DOTALL
)
#: OpenAI's harmony format: the answer is in the channel "final". Its tokens may be gone while their names remain.
_HARMONY = re.compile(
    r"<\|channel\|>\s*(\w+)(?:(?!<\|message\|>).)*<\|message\|>(.*?)(?=<\|(?:end|return|call|start|channel)\|>|$)", re.DOTALL
)
_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant\s*)?<\|channel\|>\s*(?:analysis|commentary|final)\b")
_BARE_HARMONY = re.compile(  # "analysis(x)" and "analysisResult" alone are code
    r"\s*(?:analysis|commentary)"
    r"(?:(?=[A-Z\"'(]).*?assistantfinal(?P<final>.*)|(?=(?:The|User|We|I|They|It|Need|Let|So|Okay)\b['’ ]))",
    re.DOTALL,
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
    """Return the answer in a completion: the text beside its reasoning, or the final channel.

    A closing tag alone ends reasoning that the chat template opened. A completion without reasoning is returned unchanged.
    `prompt` is what the model was asked; see the design note of this file.
    """
    if _CHANNEL.match(completion):
        final = [text for channel, text in _HARMONY.findall(completion) if channel == "final"]
        return Answered(final[-1].strip()) if final else Answered("", ONLY_REASONING)
    if bare := _BARE_HARMONY.match(completion):
        final = (bare["final"] or "").strip()
        return Answered(final, "" if final else ONLY_REASONING)
    mentioned = prompt.casefold()
    start, is_open, passages = 0, False, list[str]()
    block = _LEADING_BLOCK.match(completion)
    if block and f"<{block['name'].casefold()}" not in mentioned:
        start, is_open = block.end(), block["close"] is None
    for tag in _TAG.finditer(completion, start):
        if not is_open and _is_mention(completion, start, tag, mentioned):
            continue
        if tag["open"] is None:  # what precedes it is reasoning, whether or not a tag opened that
            start, is_open = tag.end(), False
        elif not is_open:
            passages.append(completion[start : tag.start()])
            start, is_open = tag.end(), True
    if not start:
        return Answered(completion)
    passages += [] if is_open else [completion[start:]]
    texts = [text for passage in passages if (text := _unwrapped(passage.strip()))]
    defect = UNCLOSED if is_open else MIXED if len(texts) > 1 else "" if texts else ONLY_REASONING
    return Answered(texts[-1] if texts else "", defect)


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


def _unwrapped(text: str) -> str:
    wrapped = _WRAPPER.fullmatch(text)
    return (wrapped[1] or wrapped[2] or "").strip() if wrapped else text


def _is_mention(text: str, start: int, tag: re.Match[str], mentioned: str) -> bool:
    """Return whether a tag is text that the writer talks about, in the answer that begins at `start`."""
    before, after = text[start : tag.start()], text[tag.end() :]
    if before and after and before[-1] in _QUOTES and after[0] in _QUOTES:
        return True
    line, rest = before.rpartition("\n")[2], after.partition("\n")[0]
    if before.count("```") % 2 or (line.count("`") % 2 and "`" in rest):  # in a block or a span of code
        return True
    return tag[0].casefold() in mentioned and bool(line.strip()) and bool(rest.strip())
