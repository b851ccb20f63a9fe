"""The Jinja templates of reports: HTML pages and Markdown.

Design: HTML escapes every value automatically. Markdown is not HTML, so each value there passes the filter `text`. An
undefined name is an error in both.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from usertwin.personas.printable import printable

if TYPE_CHECKING:
    import jinja2

#: The colours of all pages, as CSS variables.
COLOURS = Path(__file__).parent / "colours.css"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


@cache
def template(name: str, folder: Path | None = None) -> jinja2.Template:
    """Return the template with this file name in a folder, this one if None; it may extend the templates of this one."""
    import jinja2

    folders = [*([folder] if folder else []), Path(__file__).parent]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters["text"] = in_markdown
    return environment.get_template(name)


def _shown(value: object) -> object:
    """Return a value as it is inserted: texts are printable, and markup of the templates is as it is."""
    return printable(value) if type(value) is str else value


def in_markdown(value: object) -> str:
    r"""Return a value as text inside Markdown, on one line.

    >>> in_markdown("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _SPECIAL.sub(r"\\\1", printable(" ".join(str(value).split())))
