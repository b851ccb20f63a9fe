"""The console of all commands, which shows no control character, and its progress bars.

One object serves as the progress callback of every lower layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from usertwin.personas.printable import printable

#: What a bar says, by the name of the stage that reports progress.
_TITLES = {
    "memories": "storing pairs",
    "traces": "selecting reasoning traces",
    "tuning": "scoring validation turns under each setting",
    "control traces": "writing control traces",
    "control scores": "scoring control traces",
    "downstream": "scoring validation turns with each trace",
    "people": "people of the suite",
    "judging": "judging pairs of replies",
    "drifting": "free-running conversations",
    "recalling": "recalling pairs for held-out turns",
    "scoring": "scoring real turns under each arm",
    "rows": "writing the twin's prompts at remembered moments",
    "adapting": "training the adapter (steps)",
    "validating": "scoring validation turns without the adapter and with it",
    "fitting": "fine-tuning user models (steps)",
    "proposals": "proposals of the base model (tokens)",
    "steps": "training (steps)",
    "tokens": "training (tokens generated)",
    "writing traces": "traces for held-out pairs",
    "measuring": "measuring held-out traces",
    "user models": "scoring real turns under user models",
    "talking": "talking (turns of the twin, at most)",
    "guessing": "writing the twin's replies",
    "writing": "writing replies under each arm",
}


class SafeConsole(Console):
    """A console that makes every text printable: control characters in it are shown, and only the console's own take effect."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render a value into segments of printable text and control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class Bars:
    """Progress bars on a console; a call reports a stage, the steps done, and the total."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage."""
        title = _TITLES.get(stage, stage)
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total)
        self._progress.update(self._tasks[title], completed=done, total=total)

    def fetch(self, model: str, done: int, total: int) -> None:
        """Show the progress of a download, given in bytes."""
        self(f"downloading the model {model} (MB)", done // 1_000_000, max(1, total // 1_000_000))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
