"""Benchmark of secrecy, `make bench ONLY=canaries`: keys, passwords and forgotten turns in what is written, printed and sent.

Commands run with marked secrets against servers on the loopback interface, which answer, or refuse and repeat what they got.
Then every byte of every file and of the output is searched, and every request that a server got.

Design: the servers run in a process of their own, and each command in a forked one, as in kill_points.py.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from .crash_commands import FORGET, FORGOTTEN_WORDS, TWIN, Box, bytes_with, last_line, write_inputs
from .figures import Figure, run_in_subprocess, single_figure
from .file_operations import exit_code, fork

#: The secrets: OpenAI's key, the key named for one endpoint, and the password in a URL. Each is a word that nothing else holds.
OWN_KEY, NAMED_KEY, PASSWORD = "sk-Wombat7731Quokka", "gsk-Axolotl5092Numbat", "Pangolin6613Dugong"
_NAMED_VARIABLE, _USER = "CANARY_API_KEY", "canary"
#: The secret that each server may get. The server `plain` may get none, and `unasked` no request at all.
MEANT_FOR: dict[str, str | None] = {"own": OWN_KEY, "named": NAMED_KEY, "login": PASSWORD, "plain": None, "unasked": None}
#: The commands by name: {name} is that of the server and its mood, {model} its model. The twin of each name is learned first.
COMMANDS: dict[str, tuple[str, ...]] = {
    "learn": (
        "learn", "{name}", "--from", "{{inputs}}/log.jsonl", "--speaker", "Ann", "--model", "{model}", "--scorer", "fake:",
        "--embedder", "fake:64", "--candidates", "2", "--max-traces", "1", "--tune-turns", "2",
    ),
    "add": ("memory", "add", "{name}", "--from", "{{inputs}}/more.jsonl", "--max-traces", "1", "--model", "{model}"),
    "simulate": (
        "simulate", TWIN, "--agent", "{model}", "--max-turns", "2", "--out", "{{box}}/simulated-{name}", "--model", "{model}",
    ),
    "watch": ("watch", TWIN, "--agent", "{model}", "--max-turns", "2", "--model", "{model}"),
    "eval": (
        "eval", TWIN, "--limit", "2", "--generate", "1", "--judge", "{model}", "--out", "{{box}}/measured-{name}", "--model",
        "{model}", "--scorer", "fake:",
    ),
    "tune": ("tune", TWIN, "--limit", "2", "--model", "{model}", "--scorer", "fake:"),
    "controls": ("controls", TWIN, "--limit", "2", "--model", "{model}", "--scorer", "fake:"),
    "suite": ("suite", "run", "{{inputs}}/suite-{name}.toml", "--out", "{{box}}/suite-{name}"),
    "report": ("report", "{{box}}/measured-{name}"),
    "compare": ("compare", "{{box}}/measured-{name}", "{{box}}/measured-{name}"),
    "export": ("export", "{{box}}/measured-{name}", "--out", "{{box}}/exported-{name}.jsonl"),
    "show": ("show", "{name}"),
    "stats": ("memory", "stats", TWIN),
}  # fmt: skip
#: Those that use a twin after it has forgotten, and a twin that a stranger made.
_USES = ("add", "simulate", "watch", "eval", "tune", "controls", "stats")
#: The fields of a stranger's twin that name a model nobody asked for.
_PLANTED = (("synthesizer",), ("model", "actor", "judge"), ("scorer",), ("embedder",))


@dataclass(slots=True, kw_only=True)
class Search:
    """What was searched, and where a secret was found that does not belong there.

    Attributes:
        files: number of files searched, the output of each command included.
        bytes: their size.
        requests: number of requests searched.
        commands: number of commands that were run.
        meant: number of requests with the secret that was meant for the server; without any the search would prove nothing.
        in_files: the files in which a secret or a forgotten turn was found.
        in_requests: the requests with a secret or a forgotten turn that was not meant for the server.
        unasked: the requests to a server that only the file of a twin names.
        failed: commands that ended with a traceback.
    """

    files: int = 0
    bytes: int = 0
    requests: int = 0
    commands: int = 0
    meant: int = 0
    in_files: list[str] = field(default_factory=list[str])
    in_requests: list[str] = field(default_factory=list[str])
    unasked: list[str] = field(default_factory=list[str])
    failed: list[str] = field(default_factory=list[str])


def canaries_part() -> Iterator[tuple[str, Figure]]:
    """Yield in how many files and requests a secret or a forgotten turn was found where it does not belong."""
    search = Search(**run_in_subprocess(searched, ["own", "named", "login", "plain"], list(COMMANDS)))

    def found(problems: list[str], unit: str, count: int, against: str = "") -> Figure:
        return single_figure(len(problems), unit, "; ".join([f"limit: 0{against}", *problems[:2]]), count)

    sizes, meant = f", {search.bytes / 2**20:.1f} MiB", f", {search.meant} with the secret that was meant for the server"
    yield "canaries.in_files", found(search.in_files, "files", search.files, sizes)
    yield "canaries.in_requests", found(search.in_requests, "requests", search.requests, meant)
    yield "canaries.unasked_requests", found(search.unasked, "requests", search.requests)
    yield "canaries.tracebacks", found(search.failed, "commands", search.commands)


def searched(servers: Sequence[str], commands: Sequence[str]) -> dict[str, Any]:
    """Run the commands with each server, answering and refusing; return the fields of `Search`."""
    search = Search()
    with tempfile.TemporaryDirectory() as folder, running_servers(Path(folder).resolve()) as running:
        write_inputs(running.inputs)
        box = Box(running.folder / "box", running.inputs)
        os.environ |= running.environment | {"HOME": str(box.folder / "user")}
        box.make()
        _write_suite(running.inputs, "rehearsed", running.model(servers[0]))
        for command in ("learn", "suite"):
            box.rehearse(*_filled(command, "rehearsed", running.model(servers[0])), real_models=True)
        box.make()
        run = partial(_run, running, box, search)
        run("learn", TWIN, servers[0])
        for server in servers:
            for mood in ("answers", "refuses"):
                name = f"{server}-{mood}"
                running.refuse(mood == "refuses")
                _write_suite(running.inputs, name, running.model(server))
                for command in commands:
                    run(command, name, server)
        running.refuse(False)
        search_files(box, search)
        search_requests(running, search)
        used = [command for command in _USES if command in commands]
        _forget(run, running, box, search, used, servers[0])
        _open_strangers_twin(run, running, box, used, servers[0])
        search_requests(running, search)
    return asdict(search)


def _filled(command: str, name: str, model: str) -> list[str]:
    return [word.format(name=name, model=model) for word in COMMANDS[command]]


def _write_suite(inputs: Path, name: str, model: str) -> None:
    text = (inputs / "suite.toml").read_text("utf-8").replace("scripted:script.txt", model)
    (inputs / f"suite-{name}.toml").write_text(text.replace("[models]", f'[models]\njudge = "{model}"'), "utf-8")


def _run(running: Servers, box: Box, search: Search, command: str, name: str, server: str) -> None:
    """Run a command in a forked process, with the model of a server; no other server may get a request."""

    def work() -> None:
        box.enter(real_models=True)
        sys.exit(box.run(*_filled(command, name, running.model(server))))

    before = {other: len(running.requests(other)) for other in MEANT_FOR if other != server}
    code = exit_code(fork(work))
    search.commands += 1
    if code not in (0, 1, 2) or "Traceback" in box.output.read_text("utf-8", "replace"):
        search.failed.append(f"{command} {name} ends with {code}: {last_line(box)}")
    for other, count in before.items():
        search.unasked += [f"{command} {name} asked {other}"] * (len(running.requests(other)) - count)


# Searches ------------------------------------------------------------------------------------------------------------


def _forms(secrets: Sequence[str]) -> list[str]:
    """Return secrets as they are, and as a header carries them."""
    return [*secrets, *(base64.b64encode(f"{_USER}:{secret}".encode()).decode() for secret in secrets)]


def search_files(box: Box, search: Search, words: Sequence[str] = ()) -> None:
    """Search every file of a box and the output of its commands."""
    paths = [path for path in (*box.folder.rglob("*"), box.output) if path.is_file()]
    search.files += len(paths)
    search.bytes += sum(path.stat().st_size for path in paths)
    output = box.output.read_text("utf-8", "replace")
    for word in words or _forms([OWN_KEY, NAMED_KEY, PASSWORD]):
        search.in_files += [f"{word[:9]}… in {name}" for name in bytes_with([word], box.folder)]
        search.in_files += [f"{word[:9]}… in the output"] * (word in output)


def search_requests(running: Servers, search: Search, words: Sequence[str] = ()) -> None:
    """Search every request of every server, and forget the requests."""
    for server, secret in MEANT_FOR.items():
        own = _forms([secret]) if secret else []
        others = list(words) or [form for form in _forms([OWN_KEY, NAMED_KEY, PASSWORD]) if form not in own]
        for request in running.requests(server):
            search.requests += 1
            search.meant += any(form in request for form in own)
            search.in_requests += [f"{word[:9]}… sent to {server}" for word in others if word in request]
        running.log(server).unlink(missing_ok=True)


def _forget(
    run: Callable[[str, str, str], None], running: Servers, box: Box, search: Search, used: Sequence[str], server: str
) -> None:
    """Forget some days of a twin, use it, and search for their words in its files, its caches and the requests."""
    box.make()
    for command in ("learn", *({"watch"} & set(used))):  # a session holds what the twin recalled and said
        run(command, TWIN, server)
    exit_code(fork(lambda: (box.enter(), sys.exit(box.run(*FORGET)))))
    box.output.unlink()
    search_requests(running, search)
    for command in used:
        run(command, TWIN, server)
    search_files(box, search, FORGOTTEN_WORDS)
    search_requests(running, search, FORGOTTEN_WORDS)


def _open_strangers_twin(
    run: Callable[[str, str, str], None], running: Servers, box: Box, used: Sequence[str], server: str
) -> None:
    """Use a twin whose file names a model that the user never named."""
    box.make()
    run("learn", TWIN, server)
    twin, made = box.home / TWIN, box.folder / "made"
    twin.rename(made)
    for names in _PLANTED:
        shutil.copytree(made, twin)
        record = json.loads((made / "twin.json").read_text("utf-8"))
        record["recipe"] |= dict.fromkeys(names, running.model("unasked")) | ({"fidelity": "judge"} if "judge" in names else {})
        record["settings"] |= {"reasons": True, "traces": "recon"}
        (twin / "twin.json").write_text(json.dumps(record), "utf-8")
        for command in used:
            run(command, TWIN, server)
        shutil.rmtree(twin)
        shutil.rmtree(box.folder / f"measured-{TWIN}", ignore_errors=True)
        shutil.rmtree(box.folder / f"simulated-{TWIN}", ignore_errors=True)


# Servers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Servers:
    """OpenAI-compatible servers on the loopback interface, which write their requests into files.

    Attributes:
        folder: of the requests, and of everything else.
        ports: of each server, by its name.
    """

    folder: Path
    ports: dict[str, int]

    @property
    def inputs(self) -> Path:
        """The folder of the user's own files, which are not searched: a suite file may hold a password."""
        return self.folder / "inputs"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands."""
        return {
            "OPENAI_API_KEY": OWN_KEY, _NAMED_VARIABLE: NAMED_KEY, "OPENAI_BASE_URL": self._url("own"), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def _url(self, server: str, login: str = "") -> str:
        return f"http://{login}127.0.0.1:{self.ports[server]}/v1"

    def model(self, server: str) -> str:
        """Return the name of the model at a server, as a user writes it."""
        names = {"own": "openai:m", "named": f"openai:m@{self._url('named')}#{_NAMED_VARIABLE}"}
        login = f"{_USER}:{PASSWORD}@" if server == "login" else ""
        return names.get(server, f"openai:m@{self._url(server, login)}")

    def log(self, server: str) -> Path:
        """Return the file of a server's requests."""
        return self.folder / f"{server}.requests"

    def requests(self, server: str) -> list[str]:
        """Return a server's requests, headers and body, each on a line."""
        return self.log(server).read_text("utf-8").splitlines() if self.log(server).exists() else []

    def refuse(self, refuse: bool) -> None:
        """Let all servers refuse every request from now on, or answer."""
        flag = self.folder / "refuse"
        flag.touch() if refuse else flag.unlink(missing_ok=True)


@contextmanager
def running_servers(folder: Path) -> Generator[Servers]:
    """Servers, one for each of `MEANT_FOR`, in a process that is killed at the end."""
    listening = {name: ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) for name in MEANT_FOR}
    running = Servers(folder, {name: server.server_address[1] for name, server in listening.items()})

    def serve() -> None:
        threads = list[Thread]()
        for name, server in listening.items():
            server.RequestHandlerClass = partial(_Handler, log=running.log(name), flag=folder / "refuse")  # type: ignore[assignment]
            threads.append(Thread(target=server.serve_forever))
            threads[-1].start()
        threads[0].join()

    process = fork(serve)
    for server in listening.values():
        server.server_close()
    try:
        yield running
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, log: Path, flag: Path) -> None:
        self._log, self._flag = log, flag
        super().__init__(*arguments)

    def do_POST(self) -> None:
        """Answer, or refuse with an error that repeats the headers; note the request before."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = dict(self.headers.items())
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.path, headers, body.decode()], ensure_ascii=False) + "\n")
        status, answer = 200, self._answer(json.loads(body))
        if self._flag.exists():
            status, answer = 401, {"error": {"message": f"the key is wrong: {json.dumps(headers)}", "type": "invalid"}}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        judged = "closer" in json.dumps(body)
        message = {"role": "assistant", "content": '{"closer": "tie"}' if judged else "is in a hurry today"}
        choices = [{"index": n, "finish_reason": "stop", "message": message} for n in range(body.get("n") or 1)]
        usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
