"""The twins that are open in a test session, and the recording of what their models say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from usertwin.memory import ChatModel
    from usertwin.memory.models.recording import Recording
    from usertwin.simulator import SimulatedUser

#: What becomes of a model call that the recording lacks: an error, a new entry, or a new entry for every call.
RECORD_MODES = ("none", "new", "all")
_AGAIN = "run the tests once with --usertwin-record-mode new"


def add_recording_options(group: Any, parser: pytest.Parser) -> None:
    """Add the options and ini keys of the recording, which hold for the whole session."""
    file = "SQLite file that holds what the models of the twins said, relative to the root folder"
    mode = (
        "none: only use what the file holds; new: record what it lacks; all: record anew (default: none if CI is set, else new)"
    )
    group.addoption("--usertwin-recording", default=None, metavar="FILE", help=file)
    group.addoption("--usertwin-record-mode", default=None, choices=RECORD_MODES, help=mode)
    parser.addini("usertwin_recording", f"{file} (as --usertwin-recording)", default=None)
    parser.addini("usertwin_record_mode", f"{mode} (as --usertwin-record-mode)", default=None)


def record_mode(config: pytest.Config) -> str:
    """Return the mode of the recording. pytest.UsageError if the ini file names no mode."""
    mode = config.getoption("usertwin_record_mode") or config.getini("usertwin_record_mode")
    if mode and mode not in RECORD_MODES:
        raise pytest.UsageError(f'usertwin_record_mode in the ini file is "{mode}"; it must be {", ".join(RECORD_MODES)}')
    return mode or ("none" if os.environ.get("CI", "").lower() not in ("", "0", "false") else "new")


def recording_file(config: pytest.Config) -> Path | None:
    """Return the file of the recording, if one is named."""
    named = config.getoption("usertwin_recording")
    if named:
        return config.invocation_params.dir / named
    written = config.getini("usertwin_recording")
    return config.rootpath / written if written else None


def begin_recording(config: pytest.Config) -> None:
    """Check the mode, and delete a recording that is to be made anew; with pytest-xdist its main process does that."""
    mode, file = record_mode(config), recording_file(config)
    if mode == "all" and file is not None and not hasattr(config, "workerinput"):
        file.unlink(missing_ok=True)


class OpenTwins:
    """The twins of a session, each loaded once; with a recording, their models are recorded or replayed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._recording = config, None
        self._recording: Recording | None
        self._users: dict[tuple[str, ...], SimulatedUser] = {}
        self._judges: dict[str, ChatModel] = {}

    def open(self, name: str, settings: Mapping[str, Any]) -> SimulatedUser:
        """Return the twin of this name with the settings' model. TwinError, ModelError, UsageError as `SimulatedUser.load`."""
        from usertwin.simulator import SimulatedUser
        from usertwin.simulator.backends.model_choice import acting_model
        from usertwin.simulator.recording import load_user

        key = (name, str(settings["home"] or ""), settings["model"] or "")
        if key not in self._users:
            recording = self._open_recording()
            if recording is None:
                user = SimulatedUser.load(name, home=settings["home"], model=acting_model(settings["model"]))
            else:
                model = self._recorded_model(recording, settings["model"])
                user = load_user(name, recording, home=settings["home"], model=model)
            self._users[key] = user
        return self._users[key]

    def judge(self, name: str) -> ChatModel:
        """Return the model that judges criteria, loaded once. ModelError, UsageError as `load_model`."""
        from usertwin.evals.agent_tests.criteria import JUDGE_PROMPT
        from usertwin.simulator import load_model
        from usertwin.simulator.recording import recorded_model, replayed_model

        if name not in self._judges:
            recording, prompts = self._open_recording(), {"judge": JUDGE_PROMPT.version}
            if recording is None:
                self._judges[name] = load_model(name)
            elif recording.is_replay:
                self._judges[name] = replayed_model(name, recording, prompts=prompts)
            else:
                self._judges[name] = recorded_model(load_model(name), recording, prompts=prompts)
        return self._judges[name]

    def close(self) -> None:
        """Close the twins and the recording."""
        for user in self._users.values():
            user.close()
        if self._recording is not None:
            self._recording.close()

    def _open_recording(self) -> Recording | None:
        from usertwin.memory.models.recording import Recording
        from usertwin.personas import UsageError

        file = recording_file(self._config)
        if self._recording is None and file is not None:
            replays = record_mode(self._config) == "none"
            if replays and not file.is_file():
                raise UsageError(f"{file}: there is no recording; {_AGAIN}")
            self._recording = Recording(file, "replay" if replays else "record", way_out=_AGAIN)
        return self._recording

    def _recorded_model(self, recording: Recording, named: str | None) -> str:
        """Return the model that acts; if none is named, that of the recording, since the choice depends on the machine."""
        from usertwin.simulator.backends.model_choice import acting_model

        question = ("setting", "the model that acts", None)
        known = named or recording.stored(*question)
        if known is None:
            known = acting_model(None)
            if not recording.is_replay:
                known = recording.keep(*question, known)
        return str(known)
