"""evals/benchmarks/kill_points.py, file_operations.py: commands that are killed, or find a full disk, at a file operation."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from kill_writer import run_in_child

from usertwin.evals.benchmarks.crash_commands import difference
from usertwin.evals.benchmarks.file_operations import Decision, FileOperation, supervise
from usertwin.evals.benchmarks.kill_points import CrashSizes, crash_part

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can hold the file operations of a process")

COMMANDS = ("overwrite", "add", "forget", "simulate", "eval --out")


def test_a_command_that_was_stopped_loses_nothing_and_ends_right_when_it_is_repeated() -> None:
    sizes = CrashSizes(commands=COMMANDS, every=90, full_every=120, random_kills=0, seed=1)
    figures = dict(crash_part(sizes))
    for kind in ("crash", "crash.full_disk"):
        lost, unopened, wrong = (
            figures[f"{kind}.{what}"] for what in ("acknowledged_lost", "would_not_open", "wrong_after_repeat")
        )
        assert lost.n > 0
        assert (lost.value, unopened.value, wrong.value) == (0, 0, 0), f"{unopened.against}; {wrong.against}"
    assert figures["crash.kills"].value >= 5


# The supervision of a process ------------------------------------------------------------------------------------------


def changed(folder: str, at: int | None, decision: Decision) -> tuple[int, list[str]]:
    """Write a file twice, rename it, and use a database; return the wait status, and the operations up to the chosen one."""
    place, calls = Path(folder), list[str]()

    def work() -> None:
        with (place / "lines").open("a") as file:
            for line in ("first\n", "second\n"):
                file.write(line)
                file.flush()
        os.rename(place / "lines", place / "renamed")
        with sqlite3.connect(place / "database") as connection:
            connection.execute("CREATE TABLE numbers (value)")

    def decide(operation: FileOperation) -> Decision:
        calls.append(str(operation))
        return decision if len(calls) - 1 == at else "go on"

    return supervise(work, place, decide), calls


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8", "replace") for path in folder.iterdir()}


def test_every_operation_is_seen_those_of_compiled_libraries_too(tmp_path: Path) -> None:
    status, calls = run_in_child(changed, str(tmp_path), None, "go on")
    assert status == 0
    assert calls[:4] == ["openat lines", "write lines", "write lines", "rename lines"]
    assert "pwrite64 database" in calls
    assert sorted(contents(tmp_path)) == ["database", "renamed"]


@pytest.mark.parametrize(
    ("at", "decision", "left"),
    [
        (0, "kill", {}),
        (1, "kill", {"lines": ""}),
        (2, "kill", {"lines": "first\n"}),
        (2, "kill in half", {"lines": "first\nsec"}),
        (3, "kill", {"lines": "first\nsecond\n"}),
    ],
)
def test_a_process_is_killed_before_or_within_an_operation(
    tmp_path: Path, at: int, decision: Decision, left: dict[str, str]
) -> None:
    status, _ = run_in_child(changed, str(tmp_path), at, decision)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert contents(tmp_path) == left


def test_an_operation_can_fail_like_on_a_full_disk(tmp_path: Path) -> None:
    status, calls = run_in_child(changed, str(tmp_path), 0, errno.ENOSPC)
    assert os.waitstatus_to_exitcode(status) == 70  # an unhandled error
    assert (calls, contents(tmp_path)) == (["openat lines"], {})


@pytest.mark.parametrize(
    ("result", "expected", "where"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, None),
        ({"a": 1}, {"a": 1, "b": 2}, "b is missing"),
        ({"a": 1, "x.partial": ""}, {"a": 1}, "x.partial should not be there"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a[1]/b: 2 instead of 3"),
        ({"a": [1]}, {"a": [1, 2]}, "a: [1] instead of [1, 2]"),
    ],
)
def test_the_difference_of_two_results_is_named(result: Any, expected: Any, where: str | None) -> None:
    assert difference(result, expected) == where
