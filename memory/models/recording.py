"""Record and replay: every answer of a model, an embedder and an agent in one file, by the content of the question.

A recorded run looks an answer up, and else asks and stores it. A replayed run only looks up, so it needs no model and no
network, and what is missing ends it with a `ReplayMiss`.

Design: the first stored answer to a question counts for all who ask it, also for those who asked at the same time. So the
order in which conversations run does not matter. `ChatModel.recording` holds the recording, and `sample` uses it: unlike a
context variable, a field reaches every thread and event loop in which the model is used, and two runs in one process stay
apart.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from usertwin.personas import ModelError, ReplayMiss, UsageError

from .completion_cache import CompletionCache, request_key

Mode = Literal["record", "replay"]
#: A stored failure is an object with this one key, and an answer an object with the other.
_ERROR, _VALUE = "error", "value"
#: Characters of a fact that a message shows.
_MAX_SHOWN = 60
_RECORD_AGAIN = "record the run again with --record, or replay with the same --model, --agent and other options"


class _RecordingFile(CompletionCache):
    _NAME, _WAY_OUT = "the recording", "name another file"

    def close(self) -> None:
        """Close the file, without a write-ahead log unless another process uses it: a replay may lie in a read-only folder."""
        with self._lock, suppress(sqlite3.Error):  # closed, locked, or read-only
            self._database.execute("PRAGMA busy_timeout=0")
            self._database.execute("PRAGMA journal_mode=DELETE")
        super().close()


class Recording:
    """A recording in a SQLite file, which threads and processes may share; a kill loses at most the running calls.

    The file holds answers and hashes of questions, not the questions.

    Args:
        path: the file; `record` creates it if it is missing.
        mode: "record" asks for what is missing, "replay" refuses it.
        way_out: what to do about a missing answer, for messages.

    Attributes:
        missing: the first `ReplayMiss` of this object; None if there was none. Code of an agent may swallow one, so a run calls
            `check` after each conversation.

    Raises:
        UsageError: there is no recording to replay.
        ModelError: the file cannot be read or written.
    """

    def __init__(self, path: str | Path, mode: Mode, *, way_out: str = _RECORD_AGAIN) -> None:
        if mode not in get_args(Mode):
            raise UsageError(f'"{mode}" is not a mode of a recording; use {" or ".join(get_args(Mode))}')
        self.path, self.mode, self.missing, self._way_out = Path(path), mode, None, way_out
        self.missing: ReplayMiss | None
        if self.is_replay and not self.path.is_file():
            raise UsageError(f"{path}: there is no recording; make one with --record {path}")
        self._file = _RecordingFile(path, read_only=self.is_replay)

    @property
    def is_replay(self) -> bool:
        """Whether nothing is asked, only looked up."""
        return self.mode == "replay"

    def find(self, kind: str, name: str, question: object) -> Any:
        """Return the recorded answer to a question as its JSON value; None if there is none and the mode is "record".

        Args:
            kind: what kind of question it is, such as "completion".
            name: who is asked.
            question: all that determines the answer, as a JSON value.

        Raises:
            ReplayMiss: the recording does not hold it, and the mode is "replay".
        """
        stored = self._file.get([kind, name, question])
        if stored is not None and _VALUE in stored:
            return stored[_VALUE]
        if not self.is_replay:
            return None  # a question that failed is asked again
        if stored is not None:
            raise ModelError(str(stored[_ERROR]))
        raise self.miss(kind, name, question)

    def keep(self, kind: str, name: str, question: object, answer: object) -> Any:
        """Store an answer (not None) unless the question has one, and return the one that is stored, as its JSON value."""
        request = [kind, name, question]
        stored = self._file.put_first(request, {_VALUE: answer})
        if _VALUE not in stored:  # it failed before
            self._file.put(request, {_VALUE: answer})
            stored = self._file.get(request)
        return stored[_VALUE]

    async def ask(self, kind: str, name: str, question: object, ask: Callable[[], Awaitable[object]]) -> tuple[Any, bool]:
        """Return the recorded answer to a question and True, or what `ask` returns and False; a ModelError is recorded too.

        Raises:
            ReplayMiss: the recording does not hold it, and the mode is "replay".
            ModelError: that of `ask`, now or when it was recorded.
        """
        if (known := self.find(kind, name, question)) is not None:
            return known, True
        try:
            answer = await ask()
        except ModelError as error:
            stored = self._file.put_first([kind, name, question], {_ERROR: str(error)})
            if _VALUE in stored:  # the same question was answered meanwhile
                return stored[_VALUE], True
            raise
        return self.keep(kind, name, question, answer), False

    def stored(self, kind: str, name: str, question: object) -> Any:
        """Return the recorded answer to a question as its JSON value, in both modes; None if there is none."""
        stored = self._file.get([kind, name, question])
        return None if stored is None else stored.get(_VALUE)

    def replace(self, kind: str, name: str, question: object, answer: object) -> None:
        """Store an answer in place of the one that the question has."""
        self._file.put([kind, name, question], {_VALUE: answer})

    def require_equal(self, kind: str, name: str, question: object, facts: Mapping[str, Any]) -> None:
        """Store facts that hold for the whole recording, or refuse others than the stored ones.

        Raises:
            UsageError: the recording holds other facts; the message names those that differ.
            ReplayMiss: it holds none, and the mode is "replay".
        """
        given = json.loads(json.dumps(facts))
        known = self.find(kind, name, question)
        known = self.keep(kind, name, question, given) if known is None else known
        if differing := _differing(known, given):
            raise UsageError(
                f'{self.path}: the {kind} "{name}" was recorded with another {" and another ".join(differing)}; '
                "record the run again to another file, or use what it was recorded with"
            )

    def check(self) -> None:
        """Raise the first `ReplayMiss` again, if there was one."""
        if self.missing is not None:
            raise self.missing

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def miss(self, kind: str, name: str, question: object) -> ReplayMiss:
        """Return the error for a question whose answer is not recorded, and remember it for `check`."""
        digest = request_key([kind, name, question]).hex()[:8]
        miss = ReplayMiss(f'{self.path}: the recording has no {kind} of "{name}" for this question ({digest}); {self._way_out}')
        self.missing = self.missing or miss
        return miss


def _differing(known: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Return the names of facts that differ, with both values if they are short texts."""
    names = list[str]()
    for key in sorted({*known, *given}):
        old, new = known.get(key), given.get(key)
        if old != new:
            are_short = all(isinstance(value, str) and 0 < len(value) <= _MAX_SHOWN for value in (old, new))
            names.append(f"{key} ({old}, now {new})" if are_short else key)
    return names


@dataclass(frozen=True, slots=True)
class ModelRecording:
    """What `ChatModel.recording` holds: the recording, and the versions of the prompts that the model gets, by name."""

    recording: Recording
    prompts: Mapping[str, str]
