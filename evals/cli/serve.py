"""The command `usertwin serve`: twins behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import click

from usertwin.memory.models.chat import PromptStyle
from usertwin.personas import UsageError

from .parts.options import (
    console_for,
    home_option,
    parse_price,
    price_option,
    progress_bars,
    seed_option,
    style_option,
    twins_argument,
)
from .parts.recipe_file import GroupedCommand
from .talk import acting_model_for, acting_model_option

#: Turns at a time with a model behind an endpoint, and with one on this machine.
_HOSTED, _LOCAL = 8, 1
_TOKEN_VARIABLE = "USERTWIN_SERVE_TOKEN"


@click.command(cls=GroupedCommand, common=("host", "port", "token", "model", "home", "seed"))
@twins_argument
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but a loopback one needs a token."
)
@click.option("--port", default=8711, show_default=True, help="Port to listen on; 0 for a free one.")
@click.option(
    "--token",
    envvar=_TOKEN_VARIABLE,
    show_envvar=True,
    help="What callers send as the API key; the variable keeps it out of the list of processes.  [default: none on a loopback "
    "address, else a new one, which is printed]",
)
@acting_model_option
@home_option
@seed_option
@click.option(
    "--turns-at-once",
    type=int,
    help=f"Turns that are written at a time.  [default: {_LOCAL} for a local model, else {_HOSTED}]",
)
@click.option("--waiting", default=100, show_default=True, help="Requests that may wait for their turn; more are refused.")
@click.option("--rate", default=600.0, show_default=True, help="Requests of one caller in a minute; inf for no limit.")
@click.option("--max-body", default=2**20, show_default=True, help="Bytes of a request.")
@click.option("--turn-timeout", default=300.0, show_default=True, help="Seconds that a turn may take; inf for no limit.")
@click.option("--grace", default=30.0, show_default=True, help="Seconds that running answers get at the end (Ctrl-C, SIGTERM).")
@price_option
@style_option
@click.option("--no-log", is_flag=True, help="Print no line for each request.")
def serve(
    names: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    model: str | None,
    home: Path | None,
    seed: int,
    turns_at_once: int | None,
    waiting: int,
    rate: float,
    max_body: int,
    turn_timeout: float,
    grace: float,
    price: str | None,
    style: PromptStyle | None,
    no_log: bool,
) -> None:
    """Answer as the twins NAME... at an OpenAI-compatible endpoint.

    The name of the model is that of a twin. Messages with the role "assistant" are the agent's, "user" messages are what the
    twin said, and system messages say what it wants. POST /v1/chat/completions and /v1/responses, GET /v1/models.
    """
    from usertwin.memory.event_loop import run_sync
    from usertwin.memory.twin.record import list_twins
    from usertwin.personas.printable import printable
    from usertwin.personas.secrets import remember
    from usertwin.simulator import load_model
    from usertwin.simulator.runs.local import Twins
    from usertwin.simulator.serving.app import TwinServer, is_loopback, warm_up
    from usertwin.simulator.serving.limits import Limits
    from usertwin.simulator.serving.server import bind, run

    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UsageError('serving needs two more packages; run: pip install "usertwin[serve]"')
    if not names:
        known = ", ".join(list_twins(home)) or "none yet; usertwin learn makes one"
        raise UsageError(f"no twin is named; name one or more to serve (there are: {known})")
    _check_numbers({"--turns-at-once": 1 if turns_at_once is None else turns_at_once, "--max-body": max_body})
    _check_numbers({"--rate": rate, "--turn-timeout": turn_timeout, "--grace": grace})
    if waiting < 0:
        raise UsageError(f"--waiting is {waiting}; it must be at least 0")
    if token is not None and (not token.isascii() or not token.isprintable() or len(token.strip()) < 8):
        raise UsageError("--token: it is too short or has characters that no header can hold; give at least 8 ASCII characters")
    console = console_for(stderr=True)
    with ExitStack() as stack:
        listener = stack.enter_context(bind(host, port))
        acting = acting_model_for(console, model, "")
        with progress_bars(console) as bars:
            chat_model = load_model(acting, style=style, price=parse_price(price), progress=bars.fetch)
        twins = stack.enter_context(Twins(home, chat_model))
        users = {name: run_sync(twins.open(name)) for name in dict.fromkeys(names)}
        for user in users.values():
            warm_up(user)
        given, token = token, token or ("" if is_loopback(host) else _new_token())
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
        click.echo(printable(f"serving {', '.join(users)} at {url}; Ctrl-C ends it"), err=True)
        if token and not given:
            click.echo(f"the token, which callers send as the API key: {token}", err=True)
        remember(token)
        if token and not is_loopback(host):
            click.echo("the connection is not encrypted; put a proxy with TLS before it where others can listen", err=True)
        limits = Limits(
            concurrency=turns_at_once or _default_concurrency(acting), waiting=waiting, per_minute=rate, body_bytes=max_body,
            turn_seconds=turn_timeout,
        )  # fmt: skip
        server = TwinServer(
            users,
            limits,
            seed=seed,
            token=token,
            log=(lambda line: None) if no_log else lambda line: click.echo(line, err=True),
        )
        run(server.app(), listener, grace=grace)
    click.echo("stopped", err=True)


def _new_token() -> str:
    from secrets import token_urlsafe

    return token_urlsafe(32)


def _check_numbers(numbers: dict[str, float]) -> None:
    for option, number in numbers.items():
        if not number > 0:
            raise UsageError(f"{option} is {number:g}; it must be above 0")


def _default_concurrency(model: str) -> int:
    from usertwin.simulator.backends.model_name import ModelName

    return _HOSTED if ModelName.parse(model).is_hosted else _LOCAL
