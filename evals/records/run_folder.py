"""Atomic writes of the files in a run folder."""

from __future__ import annotations

from pathlib import Path

from usertwin.personas import UsageError
from usertwin.personas.files import write_private

HTML_REPORT, MARKDOWN_REPORT = "report.html", "report.md"


def write_atomically(path: Path, text: str) -> None:
    """Write a private file whole, or leave the old one. UsageError if it cannot be written."""
    try:
        write_private(path, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}); name a file in a folder that exists") from error
