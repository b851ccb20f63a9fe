"""The files of a log: a plain file, a gzip file, a folder, or a zip, all opened in the same way."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from usertwin.personas.errors import LogError
from usertwin.personas.reading import reason
from usertwin.personas.unpacking import MAX_RATIO, MAX_UNPACKED, Gunzip

_GZIP_MAGIC, _ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04"
#: Bytes of a file by which its format is recognised.
_HEAD = 1 << 16
#: Files that no export means: of operating systems and version control.
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX/|Thumbs\.db$)")
_KEY = re.compile(r'"([^"\\]{1,60})"\s*:')


@dataclass(frozen=True)
class Source:
    """A log as the user names it. `names` are its files, relative to a folder or zip; a single file has one name."""

    path: Path
    names: tuple[str, ...]
    packed: bool = False

    @contextmanager
    def open(self, name: str) -> Generator[IO[bytes]]:
        """Open a file of the log, unpacked. LogError if it cannot be read, here or while it is read."""
        try:
            with self._raw(name) as raw:
                peek = raw.read(2)
                raw.seek(0)
                if peek == _GZIP_MAGIC:
                    with io.BufferedReader(Gunzip(raw), _HEAD) as unpacked:
                        yield unpacked
                else:
                    yield raw
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise LogError(f"{self.place(name)}: cannot be read: {why}") from None

    def _raw(self, name: str) -> Any:
        if self.packed:
            return _Member(self.path, name)
        return (self.path if self.path.is_file() else self.path / name).open("rb")

    def place(self, name: str) -> str:
        """Return the name of a file as in an error message."""
        return f"{self.path}" if self.path.name == name and not self.packed else f"{self.path}/{name}"

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a file that are not blank, with their numbers."""
        with self.open(name) as file:
            for number, line in enumerate(file, 1):
                if stripped := (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                    yield number, stripped

    def text_lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a text file without their ends; UTF-16 is recognised, and bytes that are no text become U+FFFD."""
        with self.open(name) as file:
            start = file.read(2)
            file.seek(0)
            coding = "utf-16" if start in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
            with io.TextIOWrapper(file, coding, "replace", newline="\n") as text:
                try:
                    for line in text:
                        yield line.rstrip("\r\n")
                except UnicodeError as error:
                    raise LogError(f"{self.place(name)}: is not UTF-16 text ({error})") from None

    def json(self, name: str) -> Any:
        """Return the JSON value of a whole file. LogError if it is none."""
        with self.open(name) as file:
            value = parse_json(file.read())
        if isinstance(value, json.JSONDecodeError):
            raise LogError(f"{self.place(name)}:{value.lineno}: not JSON ({value.msg} at column {value.colno})")
        return value

    @cached_property
    def head(self) -> bytes:
        """The first bytes of the first file."""
        if not self.names:
            return b""
        with self.open(self.names[0]) as file:
            return file.read(_HEAD)

    @cached_property
    def text(self) -> str:
        """The first characters of the first file."""
        coding = "utf-16" if self.head[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8"
        return self.head.decode(coding, "replace").removeprefix("\ufeff")

    @cached_property
    def keys(self) -> frozenset[str]:
        """All keys in the beginning of a JSON file, at any depth; empty for a file that is no JSON."""
        return frozenset(_KEY.findall(self.text)) if self.text.lstrip()[:1] in {"{", "["} else frozenset()

    @cached_property
    def record(self) -> dict[str, Any]:
        """The first object of a JSON file: its only value, its first line, or the first item of its list; {} for none."""
        text = self.text.lstrip().removeprefix("[").lstrip()
        try:
            value = json.JSONDecoder().raw_decode(text)[0]
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def ending(self, *suffixes: str) -> list[str]:
        """Return the files with one of these endings, compared without case."""
        return [name for name in self.names if name.lower().removesuffix(".gz").endswith(suffixes)]

    @property
    def stem(self) -> str:
        """The name of the log without its ending."""
        return self.path.name.removesuffix(".gz").rsplit(".", 1)[0] or self.path.name

    def only(self, *names: str) -> Source:
        """Return the same log with these files only."""
        return Source(self.path, names, self.packed)


class _Member:
    """A file of a zip that closes the zip with it."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            self._file = self._zip.open(name)
        except (ValueError, LookupError, OverflowError, struct.error) as error:
            raise zipfile.BadZipFile(f"damaged zip ({error})") from None

    def __enter__(self) -> IO[bytes]:
        return self._file

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._zip.close()


def open_source(path: str | Path) -> Source:
    """Return the files of a log. LogError if there is no such file, or a zip is damaged or unpacks to too much."""
    path = Path(path)
    try:
        if path.is_dir():
            files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            return Source(path, tuple(name for name in files if not _HIDDEN.search(name)))
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != _ZIP_MAGIC:
            return Source(path, (path.name,))
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if not item.is_dir() and not _HIDDEN.search(item.filename)]
    except FileNotFoundError:
        raise LogError(f"{path}: no such file") from None
    except (OSError, ValueError, LookupError, OverflowError, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise LogError(f"{path}: cannot be read: {error}") from None
    unpacked = sum(item.file_size for item in members)
    if unpacked > max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size):
        raise LogError(f"{path}: the zip unpacks to {unpacked >> 20} MiB, over {MAX_RATIO} times its size; unpack it yourself")
    return Source(path, tuple(sorted(item.filename for item in members)), packed=True)


def parse_json(text: bytes) -> Any:
    """Return a JSON value, or a JSONDecodeError; NaN is null, and halves of surrogate pairs are kept."""
    import orjson

    try:
        return orjson.loads(text.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        pass
    decoded = text.decode("utf-8-sig", "replace")
    try:
        return json.loads(decoded, parse_constant=lambda name: None)
    except json.JSONDecodeError as error:
        return error
    except (ValueError, RecursionError) as error:
        return json.JSONDecodeError(str(error), "", 0)
