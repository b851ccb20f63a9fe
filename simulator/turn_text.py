"""The person's words in what a model wrote for them, and why a reply is not a turn of the person.

Design: a label or a control token in a reply is a fault of the model unless the person writes such text: then it is in the
turns of theirs that the model was shown. The labels of the prompt ("Me", "Them") and the person's name count wherever they
begin a line. Names of roles ("User", "AI") also begin the fields of forms and titles. They count only before a whole turn: four
words in a row, or a line that ends like a sentence, and no other field on the next line. "User: admin" is text.

Inside a line, the prompt's labels end the turn before them, and all other labels do so after the end of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from usertwin.memory.models.chat import ChatModel, Sample, limit_error
from usertwin.memory.text.sentences import breaks_off, up_to_last_sentence
from usertwin.memory.text.transcript import ME, THEM, markers
from usertwin.personas import ModelError, TwinError

_OWN_ROLES, _OTHER_ROLES = ("User", "Human"), ("Assistant", "Agent", "AI", "Bot", "System")
#: The line after a label, and a field of a form that is no label, such as "Password: x".
_LINE = re.compile(r"\s*([^\n]*)\n?")
_FIELD = re.compile(rf"[^\S\n]*(?!(?:{'|'.join((ME, THEM, *_OWN_ROLES, *_OTHER_ROLES))})\b)\w[\w -]{{0,30}}:(?:\s|$)")
_END_TOKENS = re.compile(
    r"(?<!\s)(?:\s*(?:<\|(?:im_end|eot_id|end|endoftext|end_of_text|return)\|>|</s>|<end_of_turn>|<eos>))+\s*$"
)
#: Ends of sentences; "" is one, since nothing follows where the model stopped.
_ENDINGS = ("", *".?!…。？！")
#: The defect of a turn that stopped at the limit of tokens before its first sentence ended.
UNFINISHED = "an unfinished sentence"
_CONTROL_TOKEN = re.compile(r"<\|\w+\|>|<(?:start|end)_of_turn>")


def clean_turn(reply: Sample, names: Sequence[str], shown: Sequence[str]) -> Sample:
    """Return a reply as the person's turn: without their own label in front, and without the turns that run on in its line.

    It is "" with a defect if it is not one whole turn. A turn that stopped at the limit of tokens is cut to its last sentence;
    without one it is whole, with the defect `UNFINISHED`. `names` are the person's names, `shown` the turns of theirs in the
    prompt.
    """
    text, known = _END_TOKENS.sub("", reply.text), "\n".join(shown)
    text = (reply.text if "<s>" in text else text).strip()  # there, "</s>" ends what is struck out
    roles = [*_OWN_ROLES, *(name for name in names if name.capitalize() in _OWN_ROLES)]
    own = [ME, *(name for name in names if name not in roles)]
    label = _label(own, roles, known)
    while (match := label.match(text)) and _names_a_speaker(match):
        text = text[match.end() :].lstrip()
    speakers, all_roles = [*own, THEM], [*roles, *_OTHER_ROLES]
    text = _up_to_label(text, _label(speakers, all_roles, known, inside=True))
    if defect := reply.defect or _defect(text, known, _label(speakers, all_roles, known)):
        return replace(reply, text="", defect=defect)
    if reply.at_limit and text and breaks_off(text):
        whole = up_to_last_sentence(text)
        return replace(reply, text=whole or text, defect="" if whole else UNFINISHED)
    return replace(reply, text=text)


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


def _up_to_label(text: str, label: re.Pattern[str]) -> str:
    """Return a text up to the first label inside a line that another turn runs on from."""
    for match in label.finditer(text):
        before = text[: match.start()].rstrip()
        is_prompts = match["role"] is None and match["name"] in {ME, THEM}
        if is_prompts or (before[-1:] in _ENDINGS and _names_a_speaker(match)):
            return before
    return text


def _defect(text: str, known: str, label: re.Pattern[str]) -> str:
    """Return why a text is not one turn of the person; "" if it is."""
    if markers(text) - markers(known):
        return "a thought"
    if any(map(_names_a_speaker, label.finditer(text))):
        return "another speaker's turn"
    token = _CONTROL_TOKEN.search(text)
    return "a control token" if token and token[0] not in known else ""


def _label(speakers: Sequence[str], roles: Sequence[str], known: str, *, inside: bool = False) -> re.Pattern[str]:
    """Return a pattern of a label, also in bold, at the start of a line or inside one; not of labels that the person writes."""
    speaker, role = (
        "|".join(re.escape(name) for name in names if name and f"{name}:" not in known) or "(?!)" for names in (speakers, roles)
    )
    start = r"(?<=\S)[^\S\n]+" if inside else r"^[^\S\n]*"
    return re.compile(
        rf"{start}[*_]{{0,2}}(?P<name>{speaker}|(?P<role>{role}))[*_]{{0,2}}[^\S\n]*:[*_]{{0,2}}(?=\s|\Z)", re.MULTILINE
    )


def _names_a_speaker(label: re.Match[str]) -> bool:
    """Return whether a label is one of the prompt's, or the name of a role before a whole turn."""
    line = cast("re.Match[str]", _LINE.match(label.string, label.end()))
    words = line[1].split()
    is_turn = line[1].rstrip(" \t\"'”’)*_")[-1:] in _ENDINGS or any(
        all(word[0].isalpha() for word in run) for run in zip(words, words[1:], words[2:], words[3:], strict=False)
    )  # nothing follows where the model stopped
    return label["role"] is None or (is_turn and not _FIELD.match(label.string, line.end()))
