"""Prompt templates: Jinja text files beside the code that fills them, each with a version.

Design: the version is a hash of the file's text, so that the version stored with a trace cannot refer to an edited prompt.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


@dataclass(frozen=True)
class PromptTemplate:
    """A Jinja template in a text file."""

    path: Path

    @cached_property
    def text(self) -> str:
        """The file's text, with its placeholders."""
        return self.path.read_text("utf-8")

    @property
    def version(self) -> str:
        """The file's name and eight hexadecimal digits of its hash, such as "propose_transcript/1a2b3c4d"."""
        return f"{self.path.stem}/{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    def fill(self, **values: Any) -> str:
        """Return the text with its placeholders filled. Values are inserted verbatim and never parsed as template code."""
        return _compiled(self.text).render(**values).strip("\n")


@lru_cache(maxsize=64)
def _compiled(text: str) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(  # prompts are not HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False, keep_trailing_newline=True
    )
    return environment.from_string(text)
