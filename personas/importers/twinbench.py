"""Importer of TwinBench, the data of TwinVoice (arXiv 2510.25536): a person's utterances, each among other options.

The file of a setting is named as in https://github.com/TwinVoice/TwinBench, which states no licence (seen in November 2026), so
nothing of it is distributed with usertwin:

    narrative        dataset/dimension_3/choices.jsonl: utterances of characters in novels, after a narration
    interpersonal    dataset/dimension_2/conversation_data.jsonl: answers in chat groups, with earlier answers of the person
    social           dataset/dimension_1/*.jsonl: replies to posts, with earlier replies of the person

An utterance is a conversation of two turns, in the order of the novel or of the row. The role of the person is "user". The
other options of the benchmark are the `DISTRACTORS` of the person's turn, for the forced choice of a measurement. They are left
out where the text before the turn already quotes the utterance, since there is nothing to choose then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usertwin.personas.chat_log import BadLine, ChatLog
from usertwin.personas.conversation import DISTRACTORS, Conversation, Turn, replace_lone_surrogates
from usertwin.personas.errors import LogError
from usertwin.personas.reading import as_type, parse_json, reason

#: The prefix of the source's name, as in `--from twinbench:FILE`.
TWINBENCH = "twinbench:"
NARRATOR, OTHER = "Narrator", "Other"
#: Words in a row that count as a quotation; a shorter utterance counts whole, if it has a few words.
_QUOTED_WORDS, _FEW_WORDS = 5, 3
_HISTORY = re.compile(r"\s*(?:AnchorPost|Context)\s*[:：]\s*(.*?)\s*UserReply\s*[:：]\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    options: dict[str, str]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Utterance:
    """A row of the narrative setting."""

    chunk_id: str | int
    speaker: str
    speaker_match_key: str | None = None
    utterance: str
    context: str
    mcq: _Question
    source_novel: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """A row of the social or the interpersonal setting: "history" items are "Context: ... UserReply: ..."."""

    user_id: str | int | None = None
    anchor_post: str | None = None
    context: str | None = None
    choices: list[str]
    answer_idx: int
    history: list[str]


def read_twinbench(path: str | Path, *, skip_bad_lines: bool = False) -> ChatLog:
    """Read the file of a setting. With `skip_bad_lines`, rows that cannot be read are listed in `ChatLog.skipped`.

    Items of a history that hold no reply are left out and listed in `ChatLog.damaged`.

    Raises:
        LogError: the file cannot be read, or holds no utterance; the message names the file and the line.
    """
    path = Path(path)
    skipped: list[BadLine] = []
    damaged: list[BadLine] = []
    found: list[tuple[tuple[str, int], Conversation]] = []  # with a novel and a place in it
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = as_type(dict[str, Any], parse_json(line))
            if "mcq" in row:
                found.append(_narrative(as_type(_Utterance, row), number))
            else:
                found += ((("", 0), conversation) for conversation in _replies(as_type(_Reply, row), number, damaged))
        except ValueError as error:
            if not skip_bad_lines:
                raise LogError(f"{path}:{number}: {error}; fix this line, or pass --skip-bad-lines") from None
            skipped.append(BadLine(number, str(error)))
    if not found:
        raise LogError(f"{path}: no utterance in it; name a file of TwinBench, such as dataset/dimension_3/choices.jsonl")
    novels = list(dict.fromkeys(novel for (novel, _), _ in found))
    found.sort(key=lambda item: (novels.index(item[0][0]), item[0][1]))
    conversations = tuple(conversation for _, conversation in found)
    return ChatLog(conversations, str(path), tuple(skipped), damaged=tuple(damaged))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: is not UTF-8 text (byte {error.start}); fetch the file again") from None
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({reason(error)}); name a file of TwinBench") from None


def _narrative(row: _Utterance, number: int) -> tuple[tuple[str, int], Conversation]:
    """Return the novel of an utterance and its place there, and the conversation. ValueError for a wrong answer."""
    options, answer = row.mcq.options, row.mcq.answer
    if answer not in options:
        raise ValueError(f'the answer "{answer}" is not an option')
    others = [text for letter, text in options.items() if letter != answer]
    novel, chunk = row.source_novel or "", str(row.chunk_id)
    speaker = row.speaker_match_key or row.speaker
    turns = (Turn(NARRATOR, "narrator", row.context), _choice(speaker, row.utterance, row.context, others))
    return (novel, int(chunk) if chunk.isdecimal() else 0), _conversation(f"{novel}/{chunk}/{number}", turns)


def _replies(row: _Reply, number: int, damaged: list[BadLine]) -> Iterator[Conversation]:
    """Yield the earlier replies of a person, oldest first, and the one to be chosen. ValueError for a wrong answer."""
    choices, answer = row.choices, row.answer_idx
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer_idx is {answer}, and there are {len(choices)} choices")
    user = str(row.user_id or f"line {number}")
    for place, item in enumerate(row.history, 1):
        if (match := _HISTORY.fullmatch(item)) is None:
            damaged.append(BadLine(number, f'history item {place} is not "Context: ... UserReply: ..."'))
            continue
        turns = (Turn(OTHER, "other", match[1]), Turn(user, "user", match[2]))
        yield _conversation(f"{user}/{number}/{place}", turns)
    context = row.anchor_post or row.context or ""
    others = [*choices[:answer], *choices[answer + 1 :]]
    turns = (Turn(OTHER, "other", context), _choice(user, choices[answer], context, others))
    yield _conversation(f"{user}/{number}/choice", turns)


def _choice(speaker: str, utterance: str, context: str, others: Sequence[str]) -> Turn:
    """Return a turn with its distractors, unless the text before it quotes the utterance."""
    extra = {} if _quotes(context, utterance) else {DISTRACTORS: list(others)}
    return Turn(speaker, "user", utterance, extra=extra)


def _quotes(context: str, utterance: str) -> bool:
    words, text = re.findall(r"\w+", utterance.casefold()), re.findall(r"\w+", context.casefold())
    if len(words) < _FEW_WORDS:
        return False
    run = min(_QUOTED_WORDS, len(words))
    said = {tuple(text[start : start + run]) for start in range(len(text) - run + 1)}
    return any(tuple(words[start : start + run]) in said for start in range(len(words) - run + 1))


def _conversation(name: str, turns: Sequence[Turn]) -> Conversation:
    clean = (Turn(turn.speaker, turn.role, replace_lone_surrogates(turn.text), extra=turn.extra) for turn in turns)
    return Conversation(replace_lone_surrogates(name), tuple(turn for turn in clean if turn.text.strip()))
