"""Text from outside made safe to show: control characters become visible, so no text can drive a terminal.

What people, models and agents write may hold escape sequences (which move the cursor, set the title, or fill the clipboard) and
characters that reverse the order of reading. Every terminal output passes through `printable`.
"""

from __future__ import annotations

import re

from .secrets import mask

#: Control characters (line ends and tabs are kept), line separators, directions of reading, and halves of a character.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]")
#: ASCII for the typographic characters of our own tables and sentences.
_ASCII = {
    "−": "-", "–": "-", "—": "-", "‑": "-", "…": "...", "→": "->", "←": "<-", "✓": "+", "✗": "x", "‘": "'", "’": "'", "“": '"',
    "”": '"', "·": ".", "±": "+-", "×": "x",
}  # fmt: skip


def printable(text: str) -> str:
    r"""Return the text without secrets, with each control character as its picture ("␛" for ESC), others that mislead as "�".

    >>> printable("red \x1b[31m")
    'red ␛[31m'
    """
    return visible(mask(text))


def visible(text: str) -> str:
    """Return the text with its control characters as `printable` shows them; secrets stay, so the caller masks them."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_picture, text)


def escaped(literal: str) -> str:
    """Return a JSON or TOML string literal with every character that is unsafe to show as an escape; the value is the same."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", literal)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def in_encoding(text: str, encoding: str) -> str:
    """Return the text with what an encoding lacks replaced, as `in_ascii` does it, so that its width on the screen is known.

    >>> in_encoding("Zoë… ☃", "latin-1")
    'Zoë... ?'
    """
    parts = list[str]()
    while True:
        try:
            text.encode(encoding)
        except UnicodeEncodeError as error:
            replaced, end = in_ascii(error)
            parts += (text[: error.start], replaced)
            text = text[end:]
        else:
            return "".join((*parts, text))


def in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what a terminal's encoding lacks; an error handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(character, "?") for character in lacking), error.end
