"""HTML of messages as plain text."""

from __future__ import annotations

import html
import re

_HIDDEN = re.compile(r"<(style|script|head|blockquote)\b[^>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_BREAK = re.compile(r"<(?:br|/p|/div|/tr|/li)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]+>")
_BLANK = re.compile(r"\n[ \t]*\n\s*")


def html_text(markup: str) -> str:
    """Return the text of HTML with its line breaks, without quoted blocks."""
    if "<" not in markup and "&" not in markup:
        return markup
    text = _TAG.sub("", _BREAK.sub("\n", _HIDDEN.sub("", markup)))
    return _BLANK.sub("\n\n", html.unescape(text)).strip()
