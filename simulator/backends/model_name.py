"""A model's name, parsed in one place."""

from __future__ import annotations

from pathlib import Path


def split_adapter(name: str, folder: Path | None = None) -> tuple[str, Path | None]:
    """A model's name without its adapter, and the adapter's folder; None if there is none in it.

    A path may hold a plus itself: the adapter is what follows the last plus that has an existing folder after it. Where no
    plus has, but a model stands before one, the adapter that is missing is given, so that reading it says so.

    Args:
        name: a model's name.
        folder: what relative paths in it are relative to; the current folder if None.
    """
    here = folder or Path()
    if name.startswith("local+"):
        return "local", here / Path(name.removeprefix("local+")).expanduser()
    kind, _, rest = name.partition(":")
    if kind not in {"local", "hf", "transformers"} or _there(here, rest):
        return name, None
    places = [place for place, sign in enumerate(rest) if sign == "+"][::-1]
    halves = [(rest[:place], rest[place + 1 :]) for place in places]
    split = next((half for half in halves if half[1] and (here / Path(half[1]).expanduser()).is_dir()), None)
    split = split or next((half for half in halves if _stands_alone(kind, half[0], here)), None)
    return (name, None) if split is None else (f"{kind}:{split[0]}", here / Path(split[1]).expanduser())


def _stands_alone(kind: str, rest: str, here: Path) -> bool:
    return (kind == "local" and rest == "small") or rest.endswith(".gguf") or (kind != "hf" and _there(here, rest))


def _there(here: Path, rest: str) -> bool:
    return bool(rest) and (here / Path(rest).expanduser()).exists()
