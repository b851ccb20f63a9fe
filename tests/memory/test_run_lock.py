"""memory/run_lock.py: one process works on a run at a time, and finds no files that a killed one was replacing."""

from __future__ import annotations

from pathlib import Path

import pytest

from usertwin.memory.run_lock import exclusive_run
from usertwin.personas import UsageError


def test_files_that_a_killed_process_was_replacing_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    staged = run / "twins" / ".p00.partial"  # a folder that is continued
    staged.mkdir(parents=True)
    for path in (run / ".result.json.a1b2.partial", run / "twins" / "p01" / ".twin.json.c3.partial", staged / "twin.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", "utf-8")
    with exclusive_run(run):
        assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == [
            "run.lock",
            "twins/.p00.partial/twin.json",
        ]


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with exclusive_run(tmp_path / "run"), pytest.raises(UsageError, match="another process works"):
        exclusive_run(tmp_path / "run").__enter__()
    with exclusive_run(tmp_path / "run"):
        pass
