"""The speed of importing: turns a second of processor time from a million generated turns, and the memory it takes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..figures import Figure, single_figure

#: Turns of each generated log, and of a conversation in it.
TURNS, _LENGTH = 1_000_000, 10
_WORDS = tuple("the a tea please could you tell me what is my order number and when will it come thanks".split())  # noqa: SIM905
_MEASURE = """
import resource, sys, time
from pathlib import Path
from usertwin.personas.importers.read_logs import import_to_file
start = time.process_time()
summary = import_to_file([sys.argv[1]], Path(sys.argv[2]))
print(summary.turns, time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _own(number: int, texts: list[str]) -> Any:
    turns = [
        {"speaker": "desk" if place % 2 else f"user-{number % 50}", "role": "agent" if place % 2 else "user", "text": text,
         "time": f"2026-03-01T10:{place:02d}:00Z"}
        for place, text in enumerate(texts)
    ]  # fmt: skip
    return {"conversation_id": f"c{number}", "started_at": "2026-03-01T10:00:00Z", "turns": turns}


def _openai(number: int, texts: list[str]) -> Any:
    return {"messages": [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]}


def _sharegpt(number: int, texts: list[str]) -> Any:
    items = [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]
    return {"id": f"c{number}", "conversations": items}


_FORMATS: dict[str, Callable[[int, list[str]], Any]] = {"usertwin": _own, "openai": _openai, "sharegpt": _sharegpt}


def import_part() -> Iterator[tuple[str, Figure]]:
    """Yield the speed and the peak of memory of importing JSON lines, each in a process of its own."""
    for name, record in _FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            log, rng = Path(folder) / "log.jsonl", random.Random(0)
            with log.open("w") as file:
                for number in range(TURNS // _LENGTH):
                    texts = [" ".join(rng.choices(_WORDS, k=12)) for _ in range(_LENGTH)]
                    file.write(json.dumps(record(number, texts)) + "\n")
            command = [sys.executable, "-c", _MEASURE, str(log), f"{folder}/out.jsonl"]
            turns, seconds, kib = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        yield (
            f"import.{name}_turns_per_s",
            single_figure(int(turns) / float(seconds), "turns/s", "bar: 50000 a core", n=int(turns)),
        )
        yield f"import.{name}_peak_mib", single_figure(int(kib) / 1024, "MiB", "peak of the whole process", n=int(turns))
