"""Recipe files: the options of `usertwin learn` and `usertwin train` as TOML, and the command class that reads and prints them.

    from = "support.jsonl"     # a key is an option's name with underscores
    speaker = "ann"
    max_traces = 200

An option's default gives way to the recipe file, and the file to the command line. Paths in a file are relative to the
working directory, as on the command line.

Design: the schema of a file is derived from the command's own options, so no option is described twice.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import click

from usertwin.personas import UsageError
from usertwin.personas.conversation import replace_lone_surrogates
from usertwin.personas.printable import escaped, printable
from usertwin.personas.reading import decoded, parse_toml, read_file, shown
from usertwin.personas.secrets import take_logins

from .options import file_path

ADVANCED = "Advanced options (also settable in a recipe file)"
#: Options of one invocation; a recipe holds what decides the result.
_COMMAND_LINE_ONLY = {"recipe", "dry_run", "overwrite", "home", "help"}


class GroupedCommand(click.Command):
    """A command that shows its help in two groups.

    Args:
        common: the names of the options to list first, without dashes; --help lists all others as advanced.
    """

    #: The heading of the second group.
    advanced = "Advanced options"

    def __init__(self, *args: Any, common: Collection[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._common = {*common, "help"}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the common options, then the advanced ones."""
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], self.advanced: []}
        for option in (param for param in self.get_params(ctx) if isinstance(param, click.Option)):
            if (row := option.get_help_record(ctx)) is not None:
                groups["Options" if _option_name(option) in self._common else self.advanced].append(row)
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


class RecipeCommand(GroupedCommand):
    """A command that reads its advanced options, and others, from a recipe file."""

    advanced = ADVANCED


def _use_recipe(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Make the values of a recipe file the defaults of the options that are parsed after --recipe."""
    if path is not None:
        params = {_key(option): option.name for option in _recipe_options(ctx.command)}
        ctx.default_map = {str(params[key]): value for key, value in read_recipe(path, ctx.command).items()}


recipe_option = click.option(
    "--recipe",
    type=file_path,
    is_eager=True,
    expose_value=False,
    callback=_use_recipe,
    help="TOML file with options, as --dry-run prints it. The command line takes precedence.",
)


def read_recipe(path: Path, command: click.Command) -> dict[str, Any]:
    """Return the options in a recipe file, by key. UsageError, naming file and key, for an unknown key or a wrong type."""
    from pydantic import ConfigDict, ValidationError, create_model

    options = {_key(option): option for option in _recipe_options(command)}
    fields: dict[str, Any] = {key: (_type(option), None) for key, option in options.items()}
    schema = create_model("RecipeFile", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
    way_out = "name a recipe file with --recipe, as --dry-run prints it"
    raw = read_file(path, lambda content: parse_toml(take_logins(decoded(content))), way_out=way_out, error=UsageError)
    try:
        # Validated as JSON: strict mode then accepts a number for a float, and still no text for a number.
        return schema.model_validate_json(json.dumps(raw, default=str), strict=True).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] != "extra_forbidden":
            message = f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {shown(first['input'])}"
            raise UsageError(f'{path}: "{key}": {message}') from None
        if key in {_key(option) for option in command.params if isinstance(option, click.Option)}:
            raise UsageError(f'{path}: "{key}" can only be given on the command line; remove it from the file') from None
        similar = difflib.get_close_matches(key, options, 1)
        hint = f'did you mean "{similar[0]}"?' if similar else f"the keys are the options of usertwin {command.name} --help"
        raise UsageError(f'{path}: there is no key "{key}"; {hint}') from None


def effective_recipe(ctx: click.Context) -> str:
    """Return all options in effect as a recipe file; those without a value are left out."""
    values = {_key(option): ctx.params[str(option.name)] for option in _recipe_options(ctx.command)}
    return "\n".join(f"{key} = {_toml(value)}" for key, value in values.items() if value is not None)


def print_dry_run(ctx: click.Context, estimate: list[str]) -> None:
    """Print a cost estimate as comments and then the effective recipe, together a valid recipe file."""
    arguments = " ".join(param.make_metavar(ctx) for param in ctx.command.params if isinstance(param, click.Argument))
    usage = f"usertwin {ctx.command.name} {arguments} --recipe FILE"
    for line in (*estimate, f"The effective recipe; save this output as FILE to use it: {usage}"):
        click.echo(printable(f"# {' '.join(line.split())}"))
    click.echo(effective_recipe(ctx))


def _recipe_options(command: click.Command) -> list[click.Option]:
    """The options of a command that a recipe file can set."""
    return [param for param in command.params if isinstance(param, click.Option) and _key(param) not in _COMMAND_LINE_ONLY]


def _option_name(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _key(option: click.Option) -> str:
    return _option_name(option).replace("-", "_")


def _type(option: click.Option) -> Any:
    """The Python type of an option's value in TOML."""
    if isinstance(option.type, click.Choice):
        value_type: Any = Literal[tuple(option.type.choices)]
    else:
        value_type = bool if option.is_flag else {"integer": int, "float": float}.get(option.type.name, str)
    return list[value_type] if option.multiple else value_type


def _toml(value: object) -> str:
    """A value of an option as TOML."""
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case _:  # a TOML string has the escapes of a JSON string
            return escaped(json.dumps(replace_lone_surrogates(str(value)), ensure_ascii=False))
