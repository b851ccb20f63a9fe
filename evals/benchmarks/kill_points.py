"""Crash benchmark of the commands, `make bench ONLY=crash`: kill -9 and a full disk at every file operation, and random kills.

After each, the twins are opened in a copy of the files, and the same command runs again on the files as the kill left them.

Design: a command runs in a process forked from one that has imported everything and holds no thread of ours, so a run costs a
fraction of a second.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from usertwin.memory import list_twins

from .crash_commands import (
    COMMANDS,
    FORGOTTEN_WORDS,
    MAX_TURNS,
    TWIN,
    Box,
    Command,
    bytes_with,
    difference,
    fingerprints,
    last_line,
    newest_triples,
    result_of,
    write_inputs,
)
from .figures import Figure, run_in_subprocess, single_figure
from .file_operations import Decision, FileOperation, exit_code, fork, supervise

#: Where the boxes lie: in memory if the system has such a folder, because syncing to a disk takes most of the time of a run.
_FAST = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashSizes:
    """Sizes of the benchmark.

    Attributes:
        commands: the commands to stop.
        every: stop at every n-th file operation of each command.
        full_every: fill the disk at every n-th file operation that takes space.
        random_kills: kills at random moments, over all commands.
        seed: of the moments, and of which operations are chosen.
    """

    commands: tuple[str, ...] = tuple(COMMANDS)
    every: int = 1
    full_every: int = 1
    random_kills: int = 300
    seed: int = 0


FULL = CrashSizes()


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was counted over some kills, or some full disks, of a command.

    Attributes:
        stops: number of kills or full disks.
        acknowledged: acknowledged items that were looked for: triples, traces, conversations, measured people.
        lost: those that were not found.
        unopened: for each twin that did not open or is damaged, where it was stopped and what was wrong.
        wrong: the same for each repeated command that failed or had another result, and for each wrong report of a full disk.
    """

    stops: int = 0
    acknowledged: int = 0
    lost: int = 0
    unopened: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])

    def add(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.stops += other.stops
        self.acknowledged += other.acknowledged
        self.lost += other.lost
        self.unopened += other.unopened
        self.wrong += other.wrong


def crash_part(sizes: CrashSizes = FULL) -> Iterator[tuple[str, Figure]]:
    """Yield the numbers of kills and full disks, and of what was lost, did not open, or was wrong after the same command."""
    numbers = (sizes.every, sizes.full_every, sizes.random_kills, sizes.seed)
    tallies = run_in_subprocess(crashes, list(sizes.commands), *numbers)
    counted = {name: [Tally(**tally) for tally in pair] for name, pair in tallies.items()}
    kills, full = Tally(), Tally()
    for name, (killed, filled) in counted.items():
        kills.add(killed)
        full.add(filled)
        yield f"crash.kills.{name.replace(' ', '_')}", single_figure(killed.stops, "kills", _first(killed), killed.stops)
    for name, tally in (("crash", kills), ("crash.full_disk", full)):
        yield f"{name}.kills" if tally is kills else f"{name}.stops", single_figure(tally.stops, "stops", ", ".join(counted))
        yield f"{name}.acknowledged_lost", single_figure(tally.lost, "items", "limit: 0", tally.acknowledged)
        yield f"{name}.would_not_open", single_figure(len(tally.unopened), "opens", _sample(tally.unopened), tally.stops)
        yield f"{name}.wrong_after_repeat", single_figure(len(tally.wrong), "repeats", _sample(tally.wrong), tally.stops)


def _first(tally: Tally) -> str:
    return _sample([*tally.unopened, *tally.wrong])


def _sample(problems: Sequence[str]) -> str:
    return "; ".join(["limit: 0", *problems[:2]])


def crashes(
    commands: Sequence[str], every: int, full_every: int, random_kills: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the tallies of the kills and of the full disks of each command, as JSON objects; see `CrashSizes`."""
    rng = random.Random(seed)
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=_FAST if _FAST.is_dir() else None) as folder:
        bench = CrashBench(Path(folder), commands)
        for name in commands:
            trial = bench.trial(name)
            killed, filled = Tally(), Tally()
            for point in range(rng.randrange(every), trial.points, every):
                killed.add(trial.kill_at(point, half=False))
                if trial.operations[point].can_be_half:
                    killed.add(trial.kill_at(point, half=True))
            for _ in range(random_kills // len(commands)):
                killed.add(trial.kill_after(rng.random()))
            for point in range(rng.randrange(full_every), trial.space_points, full_every):
                filled.add(trial.fill_disk_at(point))
            results[name] = [asdict(killed), asdict(filled)]
    return results


class CrashBench:
    """The inputs, a learned twin, and everything imported that the commands import.

    Args:
        folder: an empty folder.
        commands: the commands that will be stopped.
    """

    def __init__(self, folder: Path, commands: Sequence[str]) -> None:
        self.folder = folder.resolve()
        self._inputs = self.folder / "inputs"
        weights = any(COMMANDS[name].real_models for name in commands)
        exit_code(fork(lambda: write_inputs(self._inputs, tiny_model=weights)))  # in a fork: computing starts threads
        self._learned = self.box("learned").make()
        for name in ("learn", "eval"):
            self._uninterrupted(COMMANDS[name], self._learned)

    def box(self, name: str) -> Box:
        """Return a box in the folder."""
        return Box(self.folder / name.replace(" ", ""), self._inputs)

    def trial(self, name: str) -> Trial:
        """Return the trial of a command: it runs twice without being stopped, and imports what it imports."""
        command = COMMANDS[name]
        box = self.box(name).make(self._start(command))
        self._uninterrupted(command, box)
        gc.collect()
        gc.freeze()  # a collection in a forked process would copy all memory
        return Trial(name, command, self._start(command), box)

    def _start(self, command: Command) -> Box | None:
        return self._learned if command.twin else None

    def _uninterrupted(self, command: Command, box: Box) -> None:
        """Run a command. RuntimeError if it fails."""
        if code := box.rehearse(*command.arguments, real_models=command.real_models):
            raise RuntimeError(f"{command.arguments[0]} failed without being stopped ({code}): {last_line(box)}")


class Trial:
    """A command that is stopped again and again.

    Args:
        name: its name, for the problems.
        command: the command.
        start: the box it starts from; None for an empty one.
        done: the box of an uninterrupted run.

    Attributes:
        operations: the file operations of an uninterrupted run that change a file.
    """

    def __init__(self, name: str, command: Command, start: Box | None, done: Box) -> None:
        self.name, self.command, self._start = name, command, start
        self._expected = _in_fork(lambda: result_of(done))
        self._box = Box(done.folder.with_name("killed"), done.inputs)
        self._copy = Box(done.folder.with_name("killed_copy"), done.inputs)
        self._after = _in_fork(lambda: fingerprints(done))
        self._before = {} if start is None else _in_fork(lambda: fingerprints(start))
        self.operations: list[FileOperation] = []
        started = time.perf_counter()
        status = self._stopped(self._record)
        self.seconds = time.perf_counter() - started
        if status:
            raise RuntimeError(f"{name} failed under supervision ({status}): {last_line(self._box)}")

    @property
    def points(self) -> int:
        """The number of operations at which it can be stopped."""
        return len(self.operations)

    @property
    def space_points(self) -> int:
        """The number of operations at which the disk can be full."""
        return sum(operation.takes_space for operation in self.operations)

    def _record(self, operation: FileOperation) -> Decision:
        if operation.changes:
            self.operations.append(operation)
        return "go on"

    # Stopping ----------------------------------------------------------------------------------------------------------

    def _stopped(self, decide: Callable[[FileOperation], Decision]) -> int:
        """Run the command in a new box with its file operations decided; return its wait status."""
        self._box.make(self._start)
        return supervise(self._work, self._box.folder, decide)

    def _work(self) -> None:
        self._box.enter(real_models=self.command.real_models)
        sys.exit(self._box.run(*self.command.arguments))

    def kill_at(self, point: int, *, half: bool) -> Tally:
        """Kill it before a file operation, or after half of the bytes of a write."""
        left, where = point, ""

        def decide(operation: FileOperation) -> Decision:
            nonlocal left, where
            left -= operation.changes
            if left >= 0:
                return "go on"
            where = f"{self.name}: killed {'in' if half else 'before'} {operation} ({point})"
            return "kill in half" if half and operation.can_be_half else "kill"

        return self._judged(self._stopped(decide), where)

    def kill_after(self, share: float) -> Tally:
        """Kill it after a share of its usual time."""
        self._box.make(self._start)
        process = fork(self._work)
        time.sleep(share * self.seconds)
        os.kill(process, signal.SIGKILL)
        return self._judged(os.waitpid(process, 0)[1], f"{self.name}: killed after {share:.0%} of its time")

    def _judged(self, status: int, where: str) -> Tally:
        """Look at what a kill left, run the command again, and return what was wrong; nothing if it had ended before."""
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return Tally()
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return Tally(stops=1, wrong=[f"{where}: ended by itself ({status}): {last_line(self._box)}"])
        tally = self._looked_at(where)
        tally.wrong += [f"{where}: {problem}" for problem in self._repeated()]
        return tally

    def fill_disk_at(self, point: int) -> Tally:
        """Let every file operation that takes space fail from a point on; then free the disk and run the command again."""
        left, where = point, ""

        def decide(operation: FileOperation) -> Decision:
            nonlocal left, where
            left -= operation.takes_space and operation.changes
            if left >= 0 or not operation.takes_space:
                return "go on"
            where = where or f"{self.name}: disk full at {operation} ({point})"
            return errno.ENOSPC

        status = self._stopped(decide)
        if not where:  # it ended before
            return Tally()
        text = self._box.output.read_text("utf-8", "replace")
        code = os.waitstatus_to_exitcode(status)
        wrong = list[str]()
        if code == 0:
            wrong = self._different(self._box)
        elif code != 2 or "Traceback" in text or not last_line(self._box).startswith("usertwin: "):
            wrong = [f"exit {code}, {last_line(self._box)}"]
        elif "othing was changed" in text and self._start is not None and fingerprints(self._box) != self._before:
            wrong = [f"something was changed: {last_line(self._box)}"]
        tally = self._looked_at(where)
        tally.wrong += [f"{where}: {problem}" for problem in (*wrong, *self._repeated())]
        return tally

    # Looking -----------------------------------------------------------------------------------------------------------

    def _looked_at(self, where: str) -> Tally:
        """Open every twin of a copy of the box, and count what is missing."""
        self._copy.clear()
        shutil.copytree(self._box.folder, self._copy.folder)
        found = _in_fork(lambda: self._look(self._copy))
        if found is None:
            return Tally(stops=1, unopened=[f"{where}: the look failed"])
        found["unopened"] = [f"{where}: {problem}" for problem in found["unopened"]]
        return Tally(stops=1, **found)

    def _look(self, box: Box) -> dict[str, Any]:
        box.enter()
        unopened = list[str]()
        for name in list_twins(box.home) or ([TWIN] if self.command.twin else []):
            for words in (("show", name), ("memory", "check", name)):
                if code := box.run(*words):
                    unopened.append(f"{' '.join(words)} ends with {code}: {last_line(box)}")
        held = fingerprints(box)
        if self.command.changes == "removes" and held != self._before and (files := bytes_with(FORGOTTEN_WORDS, box.home)):
            unopened.append(f"half forgotten: {', '.join(files)}")
        acknowledged, missing = self._missing(held)
        more, absent = self._missing_progress(box)
        return {"acknowledged": acknowledged + more, "lost": missing + absent, "unopened": unopened}

    def _missing(self, held: dict[str, str]) -> tuple[int, int]:
        """Return how many triples of the twin must have survived, and how many have not."""
        choices = [self._before]
        if self.command.changes == "removes":
            choices = [{name: value for name, value in self._before.items() if name in self._after}]
        elif self.command.changes == "replaces":
            choices.append(self._after)  # the old twin or the new one
        lost = min(sum(held.get(name) != value for name, value in choice.items()) for choice in choices)
        return len(choices[0]), lost

    def _missing_progress(self, box: Box) -> tuple[int, int]:
        """Return how many items this run had acknowledged before it was stopped, and how many of them are missing."""
        pairs = [(self._box.acknowledged("people"), len(list(box.folder.glob("run/people/*.json"))))]
        if self.name in ("learn", "overwrite", "add"):
            triples = newest_triples(box)
            known = len(self._before) if self.command.changes == "adds" else 0
            tried = [triple for triple in triples if triple.provenance is not None]
            traced = sum(value.startswith("tried") for value in self._before.values()) if known else 0
            pairs.append((self._box.acknowledged("memories"), len(triples) - known))
            pairs.append((self._box.acknowledged("traces"), len(tried) - traced))
        elif self.name == "simulate":
            file = box.folder / "run" / "conversations.jsonl"
            lines = file.read_bytes().count(b"\n") if file.exists() else 0
            pairs.append((max(0, self._box.acknowledged("talking") - 1) // MAX_TURNS, lines))
        return sum(count for count, _ in pairs), sum(max(0, count - there) for count, there in pairs)

    def _repeated(self) -> list[str]:
        """Run the command again where it was stopped; return what is wrong with the result."""
        self._box.output.unlink(missing_ok=True)
        code = exit_code(fork(self._work))
        different = self._different(self._box)
        if code and different:  # a command that had done all its work may say so
            return [f"the same command ends with {code}: {last_line(self._box)}"]
        return different

    def _different(self, box: Box) -> list[str]:
        """Return how the result in a box differs from that of an uninterrupted run; empty if it does not."""
        files = bytes_with(FORGOTTEN_WORDS, box.folder) if self.command.changes == "removes" else []
        if files:
            return [f"not forgotten in {', '.join(files)}"]
        found = _in_fork(lambda: difference(result_of(box), self._expected) or "")
        return [] if found == "" else [str(found)]


def _in_fork(work: Callable[[], Any]) -> Any:
    """Return the JSON value of a function that runs in a forked process; None if it failed, its traceback on standard error."""
    readable, writable = os.pipe()

    def send() -> None:
        content = json.dumps(work()).encode()
        with os.fdopen(writable, "wb") as pipe:
            pipe.write(content)

    process = fork(send)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        content = pipe.read()
    os.waitpid(process, 0)
    return json.loads(content) if content else None
