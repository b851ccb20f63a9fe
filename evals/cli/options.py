"""What the commands share: options, the console, progress bars.

The one design choice: an option that several commands have is written once, so that it means and says the same everywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from usertwin.personas import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory.models.chat import Price

    from .progress_bars import Bars

Style = Literal["transcript", "instruction"]
_Command = TypeVar("_Command", bound=Callable[..., Any])

home_option = click.option(
    "--home", type=click.Path(path_type=Path), envvar="USERTWIN_HOME", show_envvar=True, help="Where twins live."
)
seed_option = click.option("--seed", default=0, show_default=True, help="Fixes what is sampled, with a local model.")
style_option = click.option(
    "--style", type=click.Choice(["transcript", "instruction"]), help="How to prompt the model, if not in its usual way."
)
model_option = click.option(
    "--model",
    default="local",
    show_default=True,
    help='"local", "local:small", "local:/path.gguf", "hf:OWNER/REPO/FILE.gguf" or "transformers:DIR", each perhaps with '
    '"+ADAPTER"; "openai:NAME[@URL]" or "scripted:FILE".',
)


price_option = click.option(
    "--price", metavar="READ/WRITTEN", help="What a hosted model costs, in dollars for a million tokens, such as 0.25/2."
)


embedder_option = click.option(
    "--embedder", help="A sentence-transformers model or folder, or fake:.  [default: all-MiniLM-L6-v2]"
)


def fidelity_option(says: str) -> Callable[[_Command], _Command]:
    """--fidelity, with what it says it is for."""
    names = ["novel", "gain", "judge", "choice", "rank", "prior"]
    return click.option("--fidelity", type=click.Choice(names), default="novel", show_default=True, help=says)


concurrency_option = click.option(
    "--concurrency", type=int, help="Moments that may wait for a model at once.  [default: 1 if local, else 8]"
)


def price_of(text: str | None) -> Price | None:
    """A price as it is written on the command line. UsageError if it is none."""
    if text is None:
        return None
    from usertwin.memory.models.chat import Price

    try:
        read, written = (float(part) for part in text.split("/"))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < float("inf") and 0 <= written < float("inf")):
        raise UsageError(f'"{text}" is no price; write dollars for a million tokens read and written, such as --price 0.25/2')
    return Price(read, written)


def json_path(path: Path | None) -> bool:
    """Whether figures are to be written to the screen ("-"). UsageError if they are to go where no file can be written."""
    if path is None or str(path) == "-":
        return path is not None
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path}: no file can be written there; name one in a folder that exists with --json")
    return False


def write_json(path: Path | None, value: object) -> None:
    """Write figures to a file or, for "-", to the screen; nothing for None."""
    if path is None:
        return
    text = json.dumps(value, indent=1, ensure_ascii=False)
    if str(path) == "-":
        click.echo(text)
    else:
        path.write_text(text + "\n", "utf-8")


def concurrency_of(told: int | None, model: str) -> int:
    """How many moments may wait for a model at once: as told, else 1 for a local model and 8 for others.

    UsageError if fewer than one may.
    """
    if told is not None and told < 1:
        raise UsageError(f"{told} moments at once: at least one must be")
    return told or (1 if model.startswith(("local", "hf:", "transformers:")) else 8)


def console_for(*, stderr: bool = False) -> Console:
    """The console that everything is printed on."""
    from rich.console import Console

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # what libraries draw while they load would break our bars
    return Console(stderr=stderr, highlight=False)


@contextmanager
def progress_bars(console: Console) -> Generator[Bars]:
    """Bars for whatever takes longer than a moment; gone when it is done."""
    from .progress_bars import Bars

    with Bars(console) as bars:
        yield bars
