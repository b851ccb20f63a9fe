"""Options, the console and small helpers that several commands share, so that an option means the same everywhere."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from usertwin.memory import Recipe
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.personas import UsageError
from usertwin.personas.reading import reason
from usertwin.simulator.simulation import DEFAULT_AGENT_TIMEOUT

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.memory.models.chat import Price
    from usertwin.personas import ChatLog

    from .progress_bars import Bars

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The defaults of a twin's recipe, by field.
RECIPE_DEFAULTS = {field.name: field.default for field in fields(Recipe)}
_MAX_NAME = 200  # bytes of a file name: 255 at most, less what a partial file adds
file_path = click.Path(path_type=Path)


def complete_twins(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of the twins that begin with what is typed, for the completion of the shell."""
    from usertwin.memory import list_twins
    from usertwin.personas import UsertwinError

    try:
        return [name for name in list_twins(ctx.params.get("home")) if name.startswith(incomplete)]
    except (UsertwinError, OSError):
        return []  # an error in the middle of a line that is being typed helps nobody


twin_argument = click.argument("name", shell_complete=complete_twins)
twins_argument = click.argument("names", metavar="NAME...", nargs=-1, shell_complete=complete_twins)
home_option = click.option(
    "--home", type=file_path, envvar="USERTWIN_HOME", show_envvar=True, help="Folder that holds the twins."
)
seed_option = click.option(
    "--seed", default=0, show_default=True, help="Seed of sampling and of every random choice; hosted models may ignore it."
)
style_option = click.option(
    "--style", type=click.Choice(get_args(PromptStyle)), help="Prompt style of the model.  [default: by the model's name]"
)
MODEL_HELP = (
    "Model that writes: local, local:small, local:FILE.gguf, hf:OWNER/REPO/FILE.gguf, transformers:DIR, "
    "openai:NAME[@URL[#KEY_VARIABLE]] or scripted:FILE. Append +ADAPTER for a LoRA adapter."
)
model_option = click.option("--model", default="local", show_default=True, help=MODEL_HELP)
scorer_option = click.option(
    "--scorer", default="local", show_default=True, help="Model that computes log-probabilities of turns and traces; or fake:."
)
actor_option = click.option(
    "--actor", help="Model that reconstructs actions, for the fidelities judge and rank.  [default: the model that proposes]"
)
embedder_option = click.option(
    "--embedder",
    help="Sentence-transformers model or folder; append @bfloat16 to compute in bfloat16.  [default: all-MiniLM-L6-v2]",
)
price_option = click.option(
    "--price", metavar="INPUT/OUTPUT", help="Price of a hosted model in dollars per million tokens, such as 0.25/2."
)
fidelity_option = click.option(
    "--fidelity",
    type=click.Choice(get_args(FidelityName)),
    default=RECIPE_DEFAULTS["fidelity"],
    show_default=True,
    help="Score of a trace: gain in log-likelihood of the action, without copied words (guarded_gain) or with them (gain); a "
    "judge's rating (judge); a forced choice among actions (choice); the rank of reconstructions (rank); or the gain corrected "
    "for the prior (prior).",
)
candidates_option = click.option(
    "--candidates", default=4, show_default=True,
    help="Traces per pair that must pass the guards; up to three rounds replace rejected ones.",
)  # fmt: skip
concurrency_option = click.option(
    "--concurrency", type=int, help="Requests to the model at the same time.  [default: 1 for a local model, else 8]"
)
skip_bad_lines_option = click.option(
    "--skip-bad-lines", is_flag=True, help="Skip broken lines of the log and report them, instead of stopping."
)
gap_option = click.option(
    "--gap",
    metavar="TIME",
    help="Cut conversations at silences of this length, such as 4h or 2d; none for no cut.  [default: 4h for the channels of "
    "messengers, and for a log that has fewer than three conversations]",
)
json_option = click.option("--json", "json_file", type=file_path, help="Write all figures to this file; - for standard output.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Check the input, print the cost estimate and the effective recipe, and stop."
)


_LIMITS = {
    "--min-pass-rate": "Fail below this share of passed conversations, 0 to 1.",
    "--min-goal-rate": "Fail below this share of conversations in which the goal was reached.",
    "--max-agent-faults": "Fail above this share of errors and timeouts of the agent.",
    "--max-twin-faults": "Fail above this share of conversations that the twin spoiled.",
    "--max-reply-seconds": "Fail if fewer than 95% of the agent's replies come within this time.",
}
_THRESHOLD_OPTIONS = (
    *(
        click.option(name, type=float, metavar="SECONDS" if "seconds" in name else "SHARE", help=text)
        for name, text in _LIMITS.items()
    ),
    click.option(
        "--min-conversations", default=8, show_default=True, help="Usable conversations that a limit of the agent needs."
    ),
    click.option("--by-interval", is_flag=True, help="Hold the worse end of the 95% interval to the limits, not the share."),
)  # fmt: skip


def threshold_options(command: _Command) -> _Command:
    """Add the options of limits to a command, which gets them as the argument `thresholds`."""

    @wraps(command)
    def with_thresholds(**arguments: Any) -> Any:
        from usertwin.evals.agent_tests.thresholds import Thresholds

        limits = {field.name: arguments.pop(field.name) for field in fields(Thresholds)}
        return command(**arguments, thresholds=Thresholds(**limits))

    for option in reversed(_THRESHOLD_OPTIONS):
        option(with_thresholds)
    return with_thresholds  # pyright: ignore[reportReturnType] - click calls it by name


agent_option = click.option(
    "--agent",
    required=True,
    help='The agent: module:attribute, "demo", a model (see --model), http:FILE.toml, or command:PROGRAM.',
)
_AGENT_OPTIONS = (
    click.option("--agent-first", is_flag=True, help="Let the agent open the conversation."),
    click.option(
        "--agent-timeout",
        default=DEFAULT_AGENT_TIMEOUT,
        show_default=True,
        help="Seconds that the agent may take for a reply; inf for no limit.",
    ),
)


def agent_options(command: _Command) -> _Command:
    """Add the options of how the agent takes its turns to a command."""
    for option in reversed(_AGENT_OPTIONS):
        command = option(command)
    return command


quiet_option = click.option("--quiet", is_flag=True, help="Of conversations with an agent, print one line and broken limits.")


def parse_price(text: str | None) -> Price | None:
    """Return the price that "INPUT/OUTPUT" gives in dollars per million tokens. UsageError for anything else."""
    if text is None:
        return None
    from usertwin.memory.models.chat import Price

    try:
        input_price, output_price = (float(part) for part in text.split("/"))
    except ValueError:
        input_price = output_price = -1.0
    if not (0 <= input_price < float("inf") and 0 <= output_price < float("inf")):
        raise UsageError(
            f'--price: "{text}" is not a price; give dollars per million input and output tokens, such as --price 0.25/2'
        )
    return Price(input_price, output_price)


def is_standard_output(path: Path | None) -> bool:
    """Return whether --json names standard output ("-"). UsageError if it names a file that cannot be written."""
    if path is None or str(path) == "-":
        return path is not None
    if os.path.isdir(path) or not os.path.isdir(path.parent) or len(os.fsencode(path.name)) > _MAX_NAME:
        raise UsageError(f"--json: {path} cannot be written; name a file in an existing folder")
    check_writable(path.parent, "--json")
    return False


def write_json(path: Path | None, value: object) -> None:
    """Write figures to a file, or to standard output for "-"; do nothing for None."""
    from usertwin.evals.records.run_folder import write_atomically

    if path is None:
        return
    if str(path) == "-":
        click.echo(json.dumps(value, indent=1))  # ASCII, which every terminal can show
    else:
        write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def check_concurrency(concurrency: int | None) -> None:
    """Raise UsageError if --concurrency is below 1."""
    if concurrency is not None and concurrency < 1:
        raise UsageError(f"--concurrency is {concurrency}; it must be at least 1")


def console_for(*, stderr: bool = False) -> Console:
    """Return the console that a command prints on."""
    from .progress_bars import SafeConsole

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of libraries would break ours
    return SafeConsole(stderr=stderr, highlight=False, emoji=False)


def check_writable(folder: Path, option: str) -> None:
    """Raise UsageError, before long work begins, if no file can be written into a folder, which need not exist yet.

    The message names the option that chooses the folder. An output (any option but --home) may not lie in the folder of a twin:
    forgetting does not search what else is put there.
    """
    from usertwin.memory.twin.record import enclosing_twin

    twin = enclosing_twin(folder)
    if twin is not None and option != "--home":
        raise UsageError(f"{folder}: lies in the folder of the twin {twin.name}; name another folder with {option}")
    try:
        present = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=present):
            pass
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({reason(error)}); name another folder with {option}") from None


def print_notes(console: Console, log: ChatLog) -> None:
    """Print what was left out of a chat log and what was assumed about it."""
    for note in log.notes():
        console.print(note, style="yellow", markup=False)


@contextmanager
def progress_bars(console: Console) -> Generator[Bars]:
    """Progress bars on the console while the block runs; they disappear at its end."""
    from .progress_bars import Bars

    with Bars(console) as bars:
        yield bars


@contextmanager
def own_output(console: Console) -> Generator[None]:
    """Let a console write to standard output even if an agent closes or replaces it; put it back at the end."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor
        options: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors}
        console.file = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, **options)
    with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):
        yield
