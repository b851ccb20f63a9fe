"""The templates of reports: pages in HTML, notes in Markdown.

The one design choice: one place decides how values get into them. In HTML all are escaped by themselves; Markdown is not HTML,
so there every value goes through the filter `text`. A name that a template does not know is an error in both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from usertwin.memory.training.model_card import in_markdown

if TYPE_CHECKING:
    import jinja2


@cache
def template(name: str) -> jinja2.Template:
    """The template in this folder of that file name."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = in_markdown
    return environment.get_template(name)
