"""The rules of the house: which folder may import which, what loads lazily, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Each root folder may import itself and those before it.
LAYERS = ("personas", "memory", "simulator", "evals")
#: Inside a root folder: each group may import the groups to its left, and nothing of its own group but itself.
#: A name is a folder or a file (without .py). Files that no line names belong to the first group.
ORDER = {
    "personas": "errors, conversation, chat_log <- pairs <- persona, importers",
    "memory": "text, models, triples <- store, recon, own_words <- twin, training",
    "simulator": "backends <- state, prompts, prompt_fit, turn_checks, turn_writer, reranking, reasoner, user, agents, records,"
    " tracing <- scenarios, recording <- conversation <- simulation <- runs, terminal, learning, integrations <- serving",
    "evals": "records, arm_names <- metrics <- replay, judges, traces, reports <- tuning, agent_tests <- suites, training_runs,"
    " demo, run_view <- cli, pytest_support <- pytest_plugin <- benchmarks",
}
#: Groups whose members may import each other: files of one subject, and helpers that everything uses.
SHARED = {("personas", 0), ("memory", 0), ("simulator", 1), ("evals", 0)}
#: Libraries that take more than a moment to import; `rich` and `click` are not among them.
HEAVY = {
    "torch", "transformers", "faiss", "langchain", "langchain_core", "langchain_openai", "langgraph", "langgraph_sdk",
    "sentence_transformers", "numpy", "scipy", "sklearn", "sacrebleu", "xllamacpp", "openai", "pydantic", "accelerate", "gguf",
    "statsmodels", "huggingface_hub", "starlette", "uvicorn", "peft", "trl", "datasets", "emoji", "ray",
    "openevals", "deepeval", "scenario", "mlflow", "inspect_ai", "tau2",
}  # fmt: skip
#: Files whose classes derive from a heavy library's classes. They are imported inside functions only.
MAY_BE_HEAVY = {
    "simulator/backends/scripted.py",
    "simulator/backends/transformers_chat.py",
    "memory/training/callback.py",
    "evals/suites/config.py",
}
MAX_LINES = 400
MAX_FILES = 15  # of Python in one folder, its __init__.py included


def _sources() -> dict[Path, ast.Module]:
    paths = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
    return {path.relative_to(ROOT): _parsed(path) for path in paths}


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the dotted names that are imported anywhere below a node, relative ones in full."""
    package = f"usertwin.{path.parent.as_posix().replace('/', '.')}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)  # a name may be a module


def _at_the_top(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import: not those in functions, nor those for type checkers only."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
            continue
        nested = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        nested += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
        if nested:
            waiting += nested
        else:
            yield node


def _files_imported(tree: ast.AST, path: Path) -> set[Path]:
    """Return our own files that a file imports; a package counts as its __init__.py."""
    files: set[Path] = set()
    for name in _imported(tree, path):
        parts = name.split(".")
        if parts[0] != "usertwin" or len(parts) < 2:
            continue
        target = Path(*parts[1:])
        if (ROOT / target.with_suffix(".py")).is_file():
            files.add(target.with_suffix(".py"))
        elif (ROOT / target / "__init__.py").is_file():
            files.add(target / "__init__.py")
    return files - {path}


def _rank(path: Path) -> tuple[str, int, str]:
    """Return a file's root folder, the position of its group, and the member of the group that it belongs to."""
    layer, member = path.parts[0], path.parts[1].removesuffix(".py")
    groups = [[name.strip() for name in group.split(",")] for group in ORDER[layer].split("<-")]
    position = next((index for index, group in enumerate(groups) if member in group), 0)
    return layer, position, member


def _forbidden(edges: Mapping[Path, set[Path]]) -> list[str]:
    """Return the imports that the order of the folders does not allow."""
    wrong: list[str] = []
    for path, targets in edges.items():
        for target in targets:
            (layer, position, member), (other, below, theirs) = _rank(path), _rank(target)
            same = layer == other
            backwards = LAYERS.index(other) > LAYERS.index(layer) or (same and below > position)
            sideways = same and below == position and member != theirs and (layer, position) not in SHARED
            if backwards or sideways:
                wrong.append(f"{path} imports {target}")
    return sorted(wrong)


def _edges() -> dict[Path, set[Path]]:
    """Return what each file imports. The root __init__.py files re-export names of all folders, and stand for none."""
    edges: dict[Path, set[Path]] = {}
    for path, tree in _sources().items():
        if path.name not in {"__init__.py", "__main__.py"}:
            edges[path] = {
                target for target in _files_imported(tree, path) if len(target.parts) > 2 or target.stem != "__init__"
            }
    return edges


def test_every_root_folder_has_sources() -> None:
    assert {path.parts[0] for path in _sources()} == set(LAYERS)


def test_folders_import_in_one_direction() -> None:
    assert _forbidden(_edges()) == []


def test_root_folders_import_in_one_direction_through_their_packages_too() -> None:
    wrong = [
        f"{path} imports usertwin.{target.parts[0]}"
        for path, tree in _sources().items()
        for target in _files_imported(tree, path)
        if LAYERS.index(target.parts[0]) > LAYERS.index(path.parts[0])
    ]
    assert wrong == []


def test_no_import_is_circular() -> None:
    edges, finished, circles = _edges(), set[Path](), list[str]()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        if path in above:
            circles.append(" -> ".join(map(str, (*above[above.index(path) :], path))))
        elif path not in finished:
            for target in sorted(edges.get(path, ())):
                visit(target, (*above, path))
            finished.add(path)

    for path in edges:
        visit(path, ())
    assert circles == []


def test_the_order_forbids_what_it_should() -> None:
    """The tests above are only as good as this table."""
    store, recon, training = Path("memory/store/database.py"), Path("memory/recon/propose.py"), Path("memory/training/train.py")
    user, arms = Path("simulator/user.py"), Path("evals/replay/arms.py")
    assert _forbidden({training: {store, recon}, user: {store}, arms: {user}}) == []
    assert len(_forbidden({store: {training}, recon: {store}, training: {user}, user: {arms}})) == 4


def test_our_packages_are_imported_by_their_full_name() -> None:
    wrong = [
        str(path) for path, tree in _sources().items() if {name.split(".")[0] for name in _imported(tree, path)} & set(LAYERS)
    ]
    assert wrong == []


def test_importing_a_file_imports_nothing_heavy() -> None:
    heavy = {
        path.as_posix()
        for path, tree in _sources().items()
        if {name.split(".")[0] for node in _at_the_top(tree) for name in _imported(node, path)} & HEAVY
    }
    assert heavy == MAY_BE_HEAVY


def test_files_that_are_heavy_are_imported_inside_functions_only() -> None:
    wrong = [
        f"{path} imports {target}"
        for path, tree in _sources().items()
        for node in _at_the_top(tree)
        for target in _files_imported(node, path)
        if target.as_posix() in MAY_BE_HEAVY and path.parts[1] != "suites"  # whose files are lazy themselves
    ]
    assert wrong == []


def test_every_file_begins_with_one_sentence_that_says_what_it_is() -> None:
    wrong = [str(path) for path, tree in _sources().items() if not (ast.get_docstring(tree) or "").split("\n")[0].endswith(".")]
    assert wrong == []


def test_files_are_short() -> None:
    long = [
        f"{path}: {lines} lines" for path in _sources() if (lines := (ROOT / path).read_text("utf-8").count("\n")) > MAX_LINES
    ]
    assert long == []


def test_folders_hold_few_files() -> None:
    folders = {path.parent for path in _sources()}
    crowded = [f"{folder}: {count}" for folder in folders if (count := len(list((ROOT / folder).glob("*.py")))) > MAX_FILES]
    assert crowded == []


def _positional_dataclasses(tree: ast.Module) -> list[str]:
    """Return the dataclasses of more than four constructor fields that are not keyword-only."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            fields = [
                item for item in node.body
                if isinstance(item, ast.AnnAssign)
                and not ast.unparse(item.annotation).startswith("ClassVar")
                and "init=False" not in ast.unparse(item)
            ]  # fmt: skip
            is_dataclass = any(decorator.split("(")[0] in {"dataclass", "dataclasses.dataclass"} for decorator in decorators)
            positional = next((i for i, item in enumerate(fields) if "KW_ONLY" in ast.unparse(item.annotation)), len(fields))
            if is_dataclass and positional > 4 and not any("kw_only=True" in decorator for decorator in decorators):
                names.append(node.name)
    return names


def test_at_most_four_fields_of_a_dataclass_are_positional() -> None:
    wrong = [f"{path}: {name}" for path, tree in _sources().items() for name in _positional_dataclasses(tree)]
    assert wrong == []


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted(set(names))


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
from .metrics import measures
from usertwin import memory
class A:
    import scipy
def f():
    import sklearn
"""
    path, tree = Path("evals/x.py"), ast.parse(text)
    top = {name for node in _at_the_top(tree) for name in _imported(node, path)}
    assert {"os.path", "json", "faiss", "numpy", "scipy"} <= top
    assert {"usertwin.evals.replay", "usertwin.evals.metrics.measures", "usertwin.memory"} <= top
    assert not top & {"torch", "sklearn"}
    assert {"torch", "sklearn"} <= set(_imported(tree, path))
    assert Path("evals/metrics/measures.py") in _files_imported(tree, path)
