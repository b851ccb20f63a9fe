"""The house keeps its rules: imports run one way and load nothing heavy, files are short and say what they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("personas", "memory", "simulator", "evals")  # each may import itself and those before it
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
#: Whatever takes more than a moment to import; `rich` and `click` are not among them.
HEAVY = (
    "torch", "transformers", "faiss", "langchain", "langchain_core", "langchain_openai", "langgraph", "langgraph_sdk",
    "sentence_transformers", "numpy", "scipy", "sklearn", "sacrebleu", "xllamacpp", "openai", "pydantic", "accelerate", "gguf",
)  # fmt: skip
#: What derives from a heavy library's classes, and is imported only when needed: for a model of a kind, for a suite.
ALLOWED_HEAVY = {
    "simulator/backends/scripted.py",
    "simulator/backends/transformers_chat.py",
    "memory/training/callback.py",
    "evals/suites/config.py",
}

every_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def _imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """The dotted names of all modules that are imported anywhere below a node, relative ones in full."""
    package = f"usertwin.{path.relative_to(ROOT).parent.as_posix().replace('/', '.')}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            yield (base + (node.module or "")).rstrip(".")
            if node.module in {"usertwin", None}:  # `from usertwin import memory`, `from . import replay`
                yield from (f"{base}{node.module + '.' if node.module else ''}{alias.name}" for alias in node.names)


def _at_the_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those in functions, nor those for type checkers only."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
            continue
        nested = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        nested += [stmt for handler in getattr(node, "handlers", []) for stmt in handler.body]
        if nested:
            waiting += nested
        else:
            yield node


def test_there_are_sources_in_every_layer() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(LAYERS)


@every_source
def test_imports_run_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[1] for name in _imported(ast.parse(path.read_text("utf-8")), path) if name.startswith("usertwin.")}
    assert ours & set(LAYERS) <= set(LAYERS[: LAYERS.index(layer) + 1])


@every_source
def test_our_own_packages_are_never_imported_without_the_namespace(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imported(ast.parse(path.read_text("utf-8")), path)}
    assert not roots & set(LAYERS)


@every_source
def test_importing_a_file_imports_nothing_heavy(path: Path) -> None:
    roots = {name.split(".")[0] for node in _at_the_top(ast.parse(path.read_text("utf-8"))) for name in _imported(node, path)}
    assert bool(roots & set(HEAVY)) == (path.relative_to(ROOT).as_posix() in ALLOWED_HEAVY)


@every_source
def test_the_file_that_may_import_langchain_is_itself_imported_only_when_needed(path: Path) -> None:
    found = {name for node in _at_the_top(ast.parse(path.read_text("utf-8"))) for name in _imported(node, path)}
    assert not found & {
        "usertwin.simulator.backends.scripted",
        "usertwin.simulator.backends.transformers_chat",
        "usertwin.memory.training.callback",
    }


@every_source
def test_a_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@every_source
def test_a_file_stays_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("layer", LAYERS)
def test_the_folders_are_flat(layer: str) -> None:
    assert {path.parent for path in SOURCES if path.is_relative_to(ROOT / layer)} == {ROOT / layer}


def test_the_walk_sees_every_kind_of_import() -> None:
    """The rules above are only as good as this walk."""
    text = """
import os.path
if TYPE_CHECKING:
    import torch
else:
    import json
try:
    import faiss
except ImportError:
    import numpy
from . import replay
from .metrics import chrf
from usertwin import memory
class A:
    import scipy
def f():
    import sklearn
"""
    path = ROOT / "evals" / "x.py"
    top = {name for node in _at_the_top(ast.parse(text)) for name in _imported(node, path)}
    assert {"os.path", "json", "faiss", "numpy", "scipy"} <= top
    assert {"usertwin.evals.replay.replay", "usertwin.evals.metrics.reply_similarity", "usertwin.memory"} <= top
    assert not top & {"torch", "sklearn"}
    assert {"torch", "sklearn"} <= set(_imported(ast.parse(text), path))
