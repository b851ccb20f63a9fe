"""What each package exports: sorted, complete, and nothing more."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("personas", "memory", "simulator", "evals")
every_package = pytest.mark.parametrize("name", PACKAGES)


def _sort_key(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Ruff's order of `__all__` (RUF022): CONSTANTS, then Classes, then the rest, numbers in names by their value."""
    kind = 0 if len(name) > 1 and name.isupper() else 1 if name[:1].isupper() else 2
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return kind, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _exported(name: str) -> list[str]:
    return list(import_module(f"usertwin.{name}").__all__)


@every_package
def test_exports_are_sorted(name: str) -> None:
    exported = _exported(name)
    assert exported == sorted(exported, key=_sort_key)


@every_package
def test_no_export_is_named_twice_or_private(name: str) -> None:
    exported = _exported(name)
    assert len(exported) == len(set(exported))
    assert not [one for one in exported if one.startswith("_")]


@every_package
def test_every_export_resolves_and_is_no_module(name: str) -> None:
    package = import_module(f"usertwin.{name}")
    assert not [one for one in package.__all__ if isinstance(getattr(package, one), ModuleType)]


@every_package
def test_exports_are_exactly_what_the_package_imports_from_its_files(name: str) -> None:
    tree = ast.parse((ROOT / name / "__init__.py").read_text("utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == set(_exported(name))


@every_package
def test_nothing_else_can_be_seen_on_the_package(name: str) -> None:
    package = import_module(f"usertwin.{name}")
    seen = {key for key, value in vars(package).items() if not key.startswith("_") and not isinstance(value, ModuleType)}
    from_typing = {"TYPE_CHECKING", "Any"} if name == "evals" else set[str]()  # needed there to import lazily
    assert seen - from_typing <= set(package.__all__)


@every_package
def test_a_star_import_gives_the_exports(name: str) -> None:
    space: dict[str, object] = {}
    exec(f"from usertwin.{name} import *", space)  # the only way to try it
    assert set(space) - {"__builtins__"} == set(_exported(name))


@every_package
def test_what_is_defined_in_a_file_is_exported_under_the_same_name(name: str) -> None:
    """An export is the object of that name in the file that defines it, not a namesake."""
    package = import_module(f"usertwin.{name}")
    for one in package.__all__:
        value = getattr(package, one)
        home = getattr(value, "__module__", None)
        if isinstance(home, str) and home.startswith("usertwin."):
            assert getattr(import_module(home), one) is value


@every_package
def test_a_name_that_is_not_exported_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        import_module(f"usertwin.{name}").nonsense  # noqa: B018
