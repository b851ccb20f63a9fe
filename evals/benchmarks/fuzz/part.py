"""Fuzz every reader with mutated inputs, and count what a user would see as a traceback or a hang.

    python -m usertwin.evals.benchmarks.fuzz.part --inputs 20000 --only "chat log"

An input may be read, or refused with an error of usertwin's tree (or of click, for options). Anything else counts.
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click

from usertwin.personas import UsertwinError

from ..crash_safety import quiet
from ..figures import Figure, single_figure
from .input_readers import log_readers, model_readers, settings_readers, text_readers
from .reader import Reader
from .stored_readers import run_readers, twin_readers

#: Inputs of the benchmark.
INPUTS = 200_000
#: A reader hangs after these seconds of processor time, or by the clock: a busy machine may stop a process for long.
_HANG, _WAIT = 5.0, 60.0
_SHM = Path("/dev/shm")


def all_readers(folder: Path) -> list[Reader]:
    """Return every reader; its files are in the folder, which is made ready here."""
    return [
        *log_readers(folder),
        *settings_readers(folder),
        *twin_readers(folder),
        *run_readers(folder),
        *model_readers(folder),
        *text_readers(),
    ]


class HungError(BaseException):
    """A reader took too long; no reader can catch it by mistake."""


@dataclass(kw_only=True)
class Tally:
    """What became of the inputs.

    Attributes:
        inputs: number of inputs.
        refused: inputs that were refused with a sentence.
        outside: exceptions outside the error tree, by reader and place, with an input for each.
        hangs: readers and inputs that took too long.
        seconds: time by reader.
    """

    inputs: int = 0
    refused: int = 0
    outside: Counter[str] = field(default_factory=Counter[str])
    hangs: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])
    examples: dict[str, bytes] = field(default_factory=dict[str, bytes])
    seconds: dict[str, float] = field(default_factory=dict[str, float])


def _give_up(_: int, frame: FrameType | None) -> None:
    raise HungError


def fuzz(readers: Sequence[Reader], inputs: int, seed: int = 0) -> Tally:
    """Give mutated inputs to readers, in proportion to their weights; the same seed gives the same inputs."""
    rng, tally = random.Random(seed), Tally()
    weights = [reader.weight for reader in readers]
    previous = [(number, signal.signal(number, _give_up)) for number in (signal.SIGALRM, signal.SIGPROF)]
    try:
        for _ in range(inputs):
            [reader] = rng.choices(readers, weights)
            content = reader.mutate(rng.choice(reader.inputs), rng)
            start = time.perf_counter()
            _try(reader, content, tally)
            tally.seconds[reader.name] = tally.seconds.get(reader.name, 0.0) + time.perf_counter() - start
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
    return tally


def _try(reader: Reader, content: bytes, tally: Tally) -> None:
    tally.inputs += 1
    signal.setitimer(signal.ITIMER_PROF, _HANG)
    signal.setitimer(signal.ITIMER_REAL, _WAIT)
    try:
        reader.read(content)
    except (UsertwinError, click.ClickException):
        tally.refused += 1
    except HungError:
        tally.hangs.append((reader.name, content))
    except BaseException as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "benchmarks" not in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        own = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours) if "site-packages" not in f.filename), "?")
        key = f"{reader.name}: {type(error).__name__} at {place} (from {own}): {str(error)[:80]}"
        tally.outside[key] += 1
        tally.examples.setdefault(key, content)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz_part() -> Iterator[tuple[str, Figure]]:
    """Yield the number of inputs, of exceptions outside the error tree, and of hangs."""
    with quiet(), tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder:
        tally = fuzz(all_readers(Path(folder)), INPUTS)
    refused = f"inputs of every reader; {tally.refused:,} were refused with a sentence"
    yield "fuzz.inputs", single_figure(tally.inputs, "inputs", refused, tally.inputs)
    yield "fuzz.outside_error_tree", single_figure(sum(tally.outside.values()), "inputs", "bar: 0", tally.inputs)
    yield "fuzz.hangs", single_figure(len(tally.hangs), "inputs", f"over {_HANG:g} s of processor time; bar: 0", tally.inputs)


@click.command()
@click.option("--inputs", default=20_000, show_default=True, help="Number of inputs.")
@click.option("--seed", default=0, show_default=True, help="Seed of the mutations.")
@click.option("--only", multiple=True, help="Name of a reader; may be repeated.")
@click.option("--show", default=0, help="Bytes of an input to print for each failure.")
def main(inputs: int, seed: int, only: tuple[str, ...], show: int) -> None:
    """Fuzz the readers and print what failed."""
    with quiet(), tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder:
        readers = [reader for reader in all_readers(Path(folder)) if not only or reader.name in only]
        tally = fuzz(readers, inputs, seed)
    click.echo(
        f"{tally.inputs} inputs, {tally.refused} refused, {sum(tally.outside.values())} outside, {len(tally.hangs)} hangs"
    )
    for key, count in tally.outside.most_common():
        click.echo(f"{count:6} {key}")
        if show:
            click.echo(repr(tally.examples[key][:show]))
    for name, content in tally.hangs:
        click.echo(f"hang: {name}: {content[:show]!r}")
    for name, seconds in sorted(tally.seconds.items(), key=lambda item: -item[1])[:12]:
        click.echo(f"{seconds:8.2f} s {name}")


if __name__ == "__main__":
    main()
