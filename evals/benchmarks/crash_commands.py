"""The commands that the crash benchmark stops: their inputs, their uninterrupted results, and what must hold after a kill.

Every command runs in a box of its own: a folder with the home of the twins, the run, the caches and the temporary files. The
models are scripted and answer from the prompt alone, so that an interrupted and an uninterrupted run can have equal results.
"""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usertwin.memory import Triple, TripleStore
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.recon.propose import TRACE_TOKENS
from usertwin.personas import Conversation, Turn, TwinError

from .file_operations import exit_code, fork

_DIMENSION = 64
MAX_TURNS = 2  #: turns of the twin in each simulated conversation
TWIN = "ann"
#: Words that only the turns of the forgotten days hold.
FORGOTTEN_WORDS = ("quixotic", "zephyrine")
_FROM_DAY, _TO_DAY = 14, 19  # of these, some are in the memory and some are held out
_CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Kyoto", "Quito", "Paris")
_FAKES = ("--model", "scripted:{inputs}/script.txt", "--scorer", "fake:")
_LEARN = (
    "learn", TWIN, "--from", "{inputs}/log.jsonl", "--speaker", "Ann", *_FAKES, "--embedder", f"fake:{_DIMENSION}",
    "--candidates", "2", "--max-traces", "3", "--tune-turns", "4", "--concurrency", "1",
)  # fmt: skip
#: The command after which no file of a twin holds `FORGOTTEN_WORDS`.
FORGET = ("memory", "forget", TWIN, "--after", f"2024-03-{_FROM_DAY}", "--before", f"2024-03-{_TO_DAY}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of `usertwin` to stop.

    Attributes:
        arguments: its arguments; {box} and {inputs} stand for folders.
        twin: whether it starts with a learned and measured twin.
        changes: what it may do to the triples of that twin: "nothing", "adds", "removes" or "replaces".
        real_models: whether it loads weights, of a tiny model.
    """

    arguments: tuple[str, ...]
    twin: bool = True
    changes: str = "nothing"
    real_models: bool = False


COMMANDS: dict[str, Command] = {
    "learn": Command(arguments=_LEARN, twin=False),
    "overwrite": Command(arguments=(*_LEARN, "--overwrite", "--window", "4"), changes="replaces"),
    "add": Command(
        arguments=("memory", "add", TWIN, "--from", "{inputs}/more.jsonl", "--max-traces", "2", *_FAKES), changes="adds"
    ),
    "forget": Command(arguments=FORGET, changes="removes"),
    "rebuild": Command(arguments=("memory", "rebuild", TWIN, "--index", "flat")),
    "simulate": Command(
        arguments=(
            "simulate", TWIN, "--agent", "demo", "--count", "3", "--max-turns", str(MAX_TURNS), "--out", "{box}/run",
            *_FAKES[:2],
        )
    ),
    "eval": Command(arguments=("eval", TWIN, *_FAKES, "--limit", "3", "--generate", "1")),
    "eval --out": Command(arguments=("eval", TWIN, *_FAKES, "--limit", "3", "--generate", "1", "--out", "{box}/run")),
    "tune": Command(arguments=("tune", TWIN, *_FAKES, "--limit", "3")),
    "suite": Command(arguments=("suite", "run", "{inputs}/suite.toml", "--out", "{box}/run"), twin=False),
    "train": Command(
        arguments=(
            "train", "{box}/run", "--from", "{inputs}/log.jsonl", "--base", "transformers:{inputs}/tiny", "--method=sft",
            "--scorer", "transformers:{inputs}/tiny", "--embedder", f"fake:{_DIMENSION}", "--role=user", "--people=1",
            "--unseen=1", "--train-pairs=16", "--validation-pairs=2", "--test-pairs=2", "--samples=1", "--group-size=2",
            "--batch-size=8", "--micro-batch-size=8", "--token-budget=600", "--rank=2", "--epochs=1", "--save-every=1",
            "--audit-every=8",
        ),
        twin=False, real_models=True,
    ),
}  # fmt: skip


# Inputs --------------------------------------------------------------------------------------------------------------


def _talk(number: int, speaker: str = "Ann") -> Conversation:
    """Return a conversation with a help desk on a day of March; every third ends without an answer."""
    city = _CITIES[number % len(_CITIES)]
    secret = f"{FORGOTTEN_WORDS[0]} and {FORGOTTEN_WORDS[1]} " if _FROM_DAY <= number < _TO_DAY - 1 else ""
    turns = [
        Turn("desk", "agent", f"Hello {speaker}, what can I do for you on day {number}?"),
        Turn(speaker, "user", f"hi, the {secret}weather in {city} please"),
        Turn("desk", "agent", f"Which {secret}day do you mean for {city}, number {number}?"),
        Turn(speaker, "user", f"tomorrow, {secret}day {number} please"),
        Turn("desk", "agent", "It will be sunny. Anything else?"),
    ]
    if number % 3:
        turns.append(Turn(speaker, "user", "no thats all thank you bye"))
    return Conversation(f"{speaker}-{number:02d}", tuple(turns), f"2024-03-{number + 1:02d}T10:00:00+00:00")


def _write_log(path: Path, conversations: Iterable[Conversation]) -> None:
    path.write_text("".join(json.dumps(talk.to_json()) + "\n" for talk in conversations), "utf-8")


def write_inputs(folder: Path, *, tiny_model: bool = False) -> None:
    """Write the logs, the script of the models and the suite, and for training a tiny model."""
    folder.mkdir(parents=True)
    days = range(24)
    _write_log(folder / "log.jsonl", [*map(_talk, days), *(_talk(day, "Bob") for day in days[::2])])
    _write_log(folder / "more.jsonl", map(_talk, range(24, 30)))
    rules = [{"when": city, "say": f"wants to see {city[::-1].lower()} again"} for city in _CITIES]
    script = [*map(json.dumps, rules), "is in a hurry today"]
    (folder / "script.txt").write_text("\n".join(script) + "\n", "utf-8")
    (folder / "suite.toml").write_text(_SUITE, "utf-8")
    if tiny_model:
        from .tiny_model import tiny_model as write_tiny_model

        write_tiny_model(folder / "tiny")


_SUITE = f"""\
name = "crash"
arms = ["no_memory", "other_person", "recon"]
turns = 3
replies = 2
samples = 1
k = 3
window = 4
concurrency = 1

[traces]
pairs = 2
candidates = 2

[models]
action = "scripted:script.txt"
scorer = "fake:"
proposer = "scripted:script.txt"
embedder = "fake:{_DIMENSION}"

[[corpora]]
name = "desk"
from = "log.jsonl"
people = ["Ann"]
"""


# Running -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Box:
    """The folder in which a command runs, and the folder of its inputs; the output is written beside the box."""

    folder: Path
    inputs: Path

    @property
    def home(self) -> Path:
        """The folder of all twins."""
        return self.folder / "home"

    @property
    def output(self) -> Path:
        """What the commands printed."""
        return self.folder.with_name(f"{self.folder.name}.output")

    @property
    def progress(self) -> Path:
        """The progress that the commands reported: a stage and a number a line."""
        return self.folder.with_name(f"{self.folder.name}.progress")

    def make(self, start: Box | None = None) -> Box:
        """Make the box anew, empty or as a copy of another one; return it."""
        self.clear()
        if start is None:
            for name in ("home", "cache", "tmp"):
                (self.folder / name).mkdir(parents=True)
        else:
            shutil.copytree(start.folder, self.folder, symlinks=True)
        return self

    def clear(self) -> None:
        """Remove the box and what was printed."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.output.unlink(missing_ok=True)
        self.progress.unlink(missing_ok=True)

    def run(self, *arguments: str) -> int:
        """Run `usertwin` in this process, in this box; return its exit code."""
        from usertwin.evals.cli.main import main

        with self.output.open("ab", buffering=0) as output:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - the process ends with the command
        try:
            main([word.format(box=self.folder, inputs=self.inputs) for word in arguments], prog_name="usertwin")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0

    def rehearse(self, *arguments: str, real_models: bool = False) -> int:
        """Run `usertwin` in a forked process, and import here what it imported; return its exit code.

        A process that is forked later then starts at once.
        """
        modules = self.folder.with_name(f"{self.folder.name}.modules")

        def work() -> None:
            self.enter(real_models=real_models)
            code = self.run(*arguments)
            modules.write_text(json.dumps(sorted(sys.modules)), "utf-8")
            sys.exit(code)

        code = exit_code(fork(work))
        for name in json.loads(modules.read_text("utf-8")) if modules.exists() else ():
            with suppress(ImportError):  # the names of some compiled modules are not those they are imported by
                importlib.import_module(name)
        return code

    def enter(self, *, real_models: bool = False) -> None:
        """Direct the home, the caches, the temporary files and the reports of progress of this process into the box."""
        from usertwin.evals.cli.parts.progress_bars import Bars

        cache = self.inputs / "cache" if real_models else self.folder / "cache"  # scores of weights are computed once
        os.environ |= {
            "USERTWIN_HOME": str(self.home), "USERTWIN_CACHE": str(cache), "TMPDIR": str(self.folder / "tmp"),
            "USERTWIN_ONLY_SCRIPTED": "" if real_models else "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "500",
        }  # fmt: skip
        if real_models:
            del os.environ["USERTWIN_ONLY_SCRIPTED"]
            TRACE_TOKENS.update(dict.fromkeys(TRACE_TOKENS, 12))  # a random model rarely ends a trace
        tempfile.tempdir = None
        logging.getLogger("usertwin.memory").addHandler(logging.NullHandler())  # what is repaired is not printed
        descriptor = os.open(self.progress, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def report(bars: Bars, stage: str, done: int, total: int) -> None:
            os.write(descriptor, f"{done} {stage}\n".encode())

        setattr(Bars, "__call__", report)  # noqa: B010 - type checkers refuse the assignment

    def acknowledged(self, stage: str) -> int:
        """Return the largest number that was reported for a stage."""
        lines = self.progress.read_text("utf-8").splitlines() if self.progress.exists() else []
        rows = [line.split(" ", 1) for line in lines]
        return max((int(done) for done, name in rows if name == stage), default=0)


# Results -------------------------------------------------------------------------------------------------------------

#: Keys of JSON objects that say when or how long something was done, or what it cost: an answer that was kept costs nothing.
_VOLATILE = {
    "learned_at", "measured_at", "started_at", "tuned_at", "generated_at", "seconds", "runtime", "cost", "usage", "thread_id",
    "num_tokens", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "step_time", "elapsed",
}  # fmt: skip
#: Locks, the names of their holders, and SQLite's log and shared memory: they may stay without harm until the next open.
_TRANSIENT = (".lock", ".record", ".writer", "-shm", "-wal")


def result_of(box: Box) -> dict[str, Any]:
    """Return the content of every file that a command leaves in a box, by its path, as JSON values without times and costs."""
    result: dict[str, Any] = {}
    for path in sorted(box.folder.rglob("*")):
        name = str(path.relative_to(box.folder))
        if path.is_dir() or path.name.endswith(_TRANSIENT) or name.startswith("cache"):
            continue
        if path.name == "memory.sqlite":
            result[name] = {t.id: _plain(asdict(t)) for t in triples_in(path.parent)}
        elif path.name.startswith("memory.") or path.suffix == ".sqlite" or path.name == "training_args.bin":  # holds paths
            result[name] = "present"
        elif path.suffix in (".json", ".jsonl"):
            result[name] = [_plain(json.loads(line)) for line in _values(path)]
        elif path.suffix == ".gz":
            result[name] = gzip.decompress(path.read_bytes()).decode()
        else:
            text = path.read_bytes().decode("utf-8", "surrogateescape")
            result[name] = re.sub(r"\d+", "#", text) if path.suffix in (".md", ".html") else text  # reports tell times
    return json.loads(json.dumps(result))


def _values(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _plain(value: Any) -> Any:
    """Return a JSON value without volatile keys."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in _VOLATILE and not key.endswith("_seconds")}
    if isinstance(value, list):  # trl's summary row is of the process that ended a training
        return [_plain(item) for item in value if not (isinstance(item, dict) and "train_runtime" in item)]
    return value


def difference(result: Any, expected: Any, name: str = "") -> str | None:
    """Return where two results differ, in a few words; None if they are equal."""
    if isinstance(result, dict) and isinstance(expected, dict):
        for key in sorted({*result, *expected}, key=str):
            place = f"{name}/{key}".lstrip("/")
            if key not in result:
                return f"{place} is missing"
            if key not in expected:
                return f"{place} should not be there"
            if (found := difference(result[key], expected[key], place)) is not None:
                return found
        return None
    if isinstance(result, list) and isinstance(expected, list) and len(result) == len(expected):
        rows = (difference(a, b, f"{name}[{n}]") for n, (a, b) in enumerate(zip(result, expected, strict=True)))
        return next((found for found in rows if found is not None), None)
    return None if result == expected else f"{name}: {str(result)[:80]} instead of {str(expected)[:80]}"


def triples_in(folder: Path) -> list[Triple]:
    """Return the triples of the memory in a folder."""
    with TripleStore(folder, FakeEmbedder(_DIMENSION), create=False) as store:
        return list(store.triples())


def newest_triples(box: Box) -> list[Triple]:
    """Return the triples of the twin that is being learned: in the hidden folder beside it, or in its own."""
    for folder in (box.home / f".{TWIN}.partial", box.home / TWIN):
        with suppress(TwinError):
            return triples_in(folder)
    return []


def fingerprints(box: Box) -> dict[str, str]:
    """Return, for each triple of the twin, whether a trace was tried, and which was selected."""
    with suppress(TwinError):
        triples = triples_in(box.home / TWIN)
        return {t.id: f"{'tried' if t.provenance else 'plain'} {t.reasoning}" for t in triples}
    return {}


def bytes_with(words: Sequence[str], folder: Path) -> list[str]:
    """Return the files below a folder that hold one of the words, also compressed."""
    found = list[str]()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".gz":
                content += zlib.decompressobj(wbits=31).decompress(content)  # also of a file that was not written to its end
            found += [str(path.relative_to(folder))] * any(word.encode() in content for word in words)
    return found


def last_line(box: Box) -> str:
    """Return the last line that the commands in a box printed."""
    lines = box.output.read_text("utf-8", "replace").split("\n") if box.output.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
