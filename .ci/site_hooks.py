"""Hooks of the documentation site: pages from outside docs/, and links to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

#: Pages of the site that are files elsewhere in the repository, by their name in the site.
OUTSIDE = {"changes.md": "CHANGELOG.md", "experiments.md": "evals/EXPERIMENTS.md", "scenarios.toml": "examples/scenarios.toml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for name, path in OUTSIDE.items():
        files.append(File.generated(config, name, content=Path(path).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links that leave docs/ lead to the pages of the site."""
    for name, path in OUTSIDE.items():
        markdown = re.sub(rf"\]\(\.\./{re.escape(path)}", f"]({name}", markdown)
    return markdown
