"""The person's words in what a model wrote for them, and why a reply is not a turn of the person.

Design: a label or a control token in a reply is a fault of the model unless the person writes such text: then it is in the
turns of theirs that the model was shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from usertwin.memory.models.chat import ChatModel, Sample, limit_error
from usertwin.memory.text.transcript import ME, THEM, markers
from usertwin.personas import ModelError, TwinError

_OWN_LABELS, _OTHER_LABELS = (ME, "User", "Human"), (THEM, "Assistant", "Agent", "AI", "Bot", "System")
_END_TOKENS = re.compile(r"(?:\s*(?:<\|(?:im_end|eot_id|end|endoftext|end_of_text|return)\|>|</s>|<end_of_turn>|<eos>))+\s*$")
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>")


def clean_turn(reply: Sample, names: Sequence[str], shown: Sequence[str]) -> Sample:
    """Return a reply as the person's turn: without their own label in front; "" with a defect if it is not one whole turn.

    `names` are the person's names, `shown` the turns of theirs in the prompt.
    """
    text, known = _END_TOKENS.sub("", reply.text), "\n".join(shown)
    text = (reply.text if "<s>" in text else text).strip()  # there, "</s>" ends what is struck out
    own = _labels([label for label in (*_OWN_LABELS, *names) if label and f"{label}:" not in known])
    while match := own.match(text):
        text = text[match.end() :].lstrip()
    defect = reply.defect or _defect(text, known, [*_OWN_LABELS, *names, *_OTHER_LABELS])
    return replace(reply, text="" if defect else text, defect=defect)


def no_turn_error(model: ChatModel, reply: Sample, attempts: int, max_tokens: int) -> TwinError | ModelError:
    """Return the error for a model that wrote no turn in any attempt; `reply` is the last."""
    if reply.at_limit and not reply.defect:
        return limit_error(model, max_tokens)
    written = f"{reply.defect} instead of a turn" if reply.defect else "nothing"
    return TwinError(f'the twin\'s model "{model.name}" wrote {written} {attempts} times in a row')


def is_repetitive(text: str) -> bool:
    """Return whether fewer than half of a text's word trigrams are distinct, as in the loops of small models."""
    words = text.casefold().split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(trigrams) > 6 and len(set(trigrams)) < len(trigrams) / 2


def _defect(text: str, known: str, labels: Sequence[str]) -> str:
    """Return why a text is not one turn of the person; "" if it is."""
    if markers(text) - markers(known):
        return "a thought"
    other = _labels([label for label in labels if label and f"{label}:" not in known])
    if any(other.match(line) for line in text.splitlines()):
        return "another speaker's turn"
    token = _CONTROL_TOKEN.search(text)
    return "a control token" if token and token[0] not in known else ""


def _labels(labels: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern of a label at the start of a line, also in bold."""
    return re.compile(rf"\s*[*_]{{0,2}}(?:{'|'.join(map(re.escape, labels)) or '(?!)'})[*_]{{0,2}}\s*:[*_]{{0,2}}(?=\s|$)\s*")
