"""Shared fixtures: isolation from real models and homes, a small log, and fake models, scorers and servers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import THOUGHTS, record_prompts, write_script
from hypothesis import settings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from numpy.typing import NDArray
from tiny_model import one_thread, tiny_llama, tiny_model

from usertwin.evals.metrics import statistics
from usertwin.evals.replay import leak_checks
from usertwin.memory import ChatModel, Recipe, alearn
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.personas import ChatLog, Conversation, Pair, Turn, secrets
from usertwin.personas.chat_log import sort_by_time
from usertwin.simulator.backends.scripted import ScriptedChatModel

pytest_plugins = ["pytester"]

# no test depends on timing; the benchmark of inputs tries many more examples than the tests have time for
settings.register_profile("usertwin", deadline=None, max_examples=40)
settings.load_profile("usertwin")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what fixtures of a wider scope allow out of the user's own list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USERTWIN_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _default_sigint_handler() -> Iterator[None]:
    """Restore Ctrl-C, also for the programs that tests start: a shell starts background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _nothing_real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test a home of its own, and only scripted models unless it is marked slow."""
    monkeypatch.setenv("USERTWIN_HOME", str(tmp_path / "twins"))
    monkeypatch.setenv("USERTWIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(secrets, "_remembered", set[str]())  # passwords of other tests, which may be words
    monkeypatch.setattr(secrets, "_logins", dict[str, str]())
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("USERTWIN_ONLY_SCRIPTED", "1")
        monkeypatch.setenv("USERTWIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def two_clusters_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two conversations or people have intervals, tests and verdicts, for made-up data about something else."""
    monkeypatch.setattr(statistics, "MIN_CONVERSATIONS", 2)
    monkeypatch.setattr(statistics, "MIN_OWN", 2)
    monkeypatch.setattr(statistics, "MIN_PEOPLE", 2)


@pytest.fixture
def repeats_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on held-out turns that nearly repeat the memory, too, for made-up talk that always takes the same course."""
    monkeypatch.setattr(leak_checks, "MIN_WORDS", 10**6)


@pytest.fixture
def script(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the name of a scripted model that gives the module's `SCRIPTED_REPLIES` in turn, or else `THOUGHTS`."""
    return write_script(tmp_path, *getattr(request.module, "SCRIPTED_REPLIES", THOUGHTS))


@pytest.fixture
def weather(tmp_path: Path) -> str:
    """The name of a model that always asks for the weather."""
    (tmp_path / "weather").mkdir()
    return write_script(tmp_path / "weather", json.dumps({"when": "", "say": "what is the weather in Oslo tomorrow"}))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives every prompt of a scripted model."""
    return record_prompts(monkeypatch)


@pytest.fixture(scope="module")
def in_one_thread() -> Iterator[None]:
    """Run torch in one thread, for modules that compute with a tiny model."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model."""
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def small_conversation(number: int) -> Conversation:
    """Return a conversation of Ann with a help desk: she names her city, gives a day and says thanks."""
    city = ("Oslo", "Rome", "Lima", "Cairo", "Kyoto")[number % 5]
    desk, ann = f"desk-{number % 2}", "Ann"
    turns = (
        Turn("guide", "instruction", f"You want the weather for {city}."),
        Turn(desk, "agent", "Hello, what can I do for you?"),
        Turn(ann, "user", f"hi, the weather in {city} please"),
        Turn(desk, "agent", f"Which day do you mean for {city}?"),
        Turn(ann, "user", f"tomorrow, day {number}"),
        Turn(desk, "agent", "It will be sunny. Anything else?"),
        Turn(ann, "user", "no thats all thank you bye"),
    )
    return Conversation(f"talk-{number:02d}", turns, f"2024-03-{number % 28 + 1:02d}T10:00:00+00:00")


def other_conversation(number: int) -> Conversation:
    """Return a conversation of Bob with a help desk."""
    turns = (
        Turn("desk-0", "agent", "Hello, what can I do for you?"),
        Turn("Bob", "user", f"I demand a refund for order {number}!!"),
        Turn("desk-0", "agent", "Which order do you mean?"),
        Turn("Bob", "user", f"Order {number}, as I said."),
    )
    return Conversation(f"bob-{number:02d}", turns, f"2024-02-{number % 28 + 1:02d}T10:00:00+00:00")


def small_log() -> ChatLog:
    """Return twenty conversations of Ann and ten of Bob."""
    conversations = [*map(small_conversation, range(20)), *map(other_conversation, range(10))]
    return ChatLog(sort_by_time(conversations, "test"), "test")


#: A pair of Ann's, for tests that need a single one.
ACTION = "the early train to Rome please"
PAIR = Pair(
    speaker="Ann",
    context=(Turn("Bob", "agent", "Hello there"), Turn("Ann", "user", "hi"), Turn("Bob", "agent", "When do you want to go?")),
    action=ACTION,
    goal="You want to see the sea.",
    conversation_id="talk",
    position=3,
    when=1.0,
)


@pytest.fixture
def log() -> ChatLog:
    """Return twenty conversations of Ann and ten of Bob."""
    return small_log()


@pytest.fixture
def log_file(log: ChatLog, tmp_path: Path) -> Path:
    """Return the path of a file with the same log."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(c.to_json()) + "\n" for c in log.conversations), "utf-8")
    return path


def recipe(**changes: object) -> Recipe:
    """Return the recipe of the tests' twins, with changes."""
    base: dict[str, object] = {
        "source": "test",
        "speaker": "Ann",
        "method": "recon",
        "candidates": 2,
        "max_triples": None,
        "max_traces": None,
        "window": 6,
        "embedder": "fake:256",
        "model": "scripted:test",
        "scorer": "fake:",
        "seed": 0,
    }
    return Recipe(**(base | changes))  # pyright: ignore[reportArgumentType]


def scripted(*answers: str, rules: list[tuple[str, str]] | None = None) -> ChatModel:
    """Return a model that gives these answers in turn."""
    return ChatModel("scripted:test", ScriptedChatModel(answers=list(answers), rules=rules or []), "transcript")


class FunctionChatModel(BaseChatModel):
    """A chat model whose reply is a function of prompt and seed; it records both."""

    reply: Callable[[str, int], str]
    requests: list[tuple[str, int]] = []  # noqa: RUF012 - a pydantic field, copied for each model

    @property
    def _llm_type(self) -> str:
        return "telling"

    @property
    def prompts(self) -> list[str]:
        """The prompts of all requests, in order."""
        return [prompt for prompt, _ in self.requests]

    def _generate(self, *args: Any, **options: Any) -> ChatResult:
        raise AssertionError("models are called asynchronously")

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, *, seed: int = 0, **options: Any
    ) -> ChatResult:
        prompt = "\n".join(str(message.text) for message in messages)
        self.requests.append((prompt, seed))
        text = self.reply(prompt, seed)
        usage = UsageMetadata(input_tokens=len(prompt.split()), output_tokens=len(text.split()), total_tokens=0)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, usage_metadata=usage))])


def function_model(
    reply: Callable[[str, int], str], style: PromptStyle = "transcript", **facts: Any
) -> tuple[ChatModel, FunctionChatModel]:
    """Return a model whose reply is a function of prompt and seed, and its `FunctionChatModel`."""
    chat = FunctionChatModel(reply=reply)
    return ChatModel("telling", chat, style, **facts), chat


class WordWeightScorer:
    """A scorer with known gains: each weighted word in the prompt adds its weight to the log-probability of every token.

    A token that is itself in the prompt gains `copied` more, so gain by reasons and gain by copying can be told apart.
    """

    def __init__(self, weights: Mapping[str, float], copied: float = 2.0) -> None:
        self.name = "weighing"
        self.calls: list[list[tuple[str, str]]] = []
        self._weights, self._copied = weights, copied

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """See `Scorer.score`."""
        self.calls.append(list(items))
        likelihoods: list[Likelihood] = []
        for prompt, continuation in items:
            prompt_words = set(re.findall(r"\w+", prompt.casefold()))
            reasons = fsum(weight for word, weight in self._weights.items() if word in prompt_words)
            tokens = list(re.finditer(r"\s*\S+|\s+", continuation))
            nats = [reasons - 10 + self._copied * (token[0].strip().casefold() in prompt_words) for token in tokens]
            likelihoods.append(Likelihood(fsum(nats), len(nats), tuple(nats), tuple(token.end() for token in tokens)))
        return likelihoods


class Endpoint:
    """An OpenAI-compatible server on the loopback interface that records its requests.

    Attributes:
        requests: the bodies of all requests, in order, each with its `path`.
        headers: the headers of all requests, with names in lower case.
        content: the text of every choice.
        refusal: the message of a 404 response; None for a normal response.
        finish_reason: the finish reason of every choice.
        max_choices: the most choices of a response.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.content: str | None = "Good day, what can I do?"
        self.refusal: str | None = None
        self.finish_reason = "stop"
        self.max_choices = 9
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # named by the standard library
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body | {"path": self.path})
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                refused = endpoint.refusal is not None
                raw = json.dumps({"error": {"message": endpoint.refusal}} if refused else endpoint.answer(body)).encode()
                self.send_response(404 if refused else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Hide the traceback of a client that was killed before the response."""
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a response: ten output tokens for each choice, a hundred input tokens, forty of them cached."""
        count = min(body.get("n") or 1, self.max_choices)
        message = {"role": "assistant", "content": self.content}
        usage = {
            "prompt_tokens": 100, "completion_tokens": 10 * count, "total_tokens": 100 + 10 * count,
            "prompt_tokens_details": {"cached_tokens": 40},
        }  # fmt: skip
        return {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage,
            "choices": [{"index": i, "finish_reason": self.finish_reason, "message": message} for i in range(count)],
        }  # fmt: skip


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """Start an OpenAI-compatible server on the loopback interface, and allow models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Endpoint()
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.server.shutdown()
    server.server.server_close()
    thread.join()


#: The context length of the tiny model in tokens, which are bytes.
MAX_POSITIONS = 160


@cache
def tiny() -> tuple[Any, Any]:
    """Return a small Llama with seeded random weights, and a byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(["<end>", *alphabet])}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    # Weights far from uniform, so that a wrong context changes every number.
    model = tiny_llama(vocab_size=257, max_position_embeddings=MAX_POSITIONS, initializer_range=0.4)
    return model.eval(), PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")


@pytest.fixture(scope="session")
def _learned_ann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with a learned twin of Ann, made once."""
    home = tmp_path_factory.mktemp("learned")
    model = scripted("wants the weather for a city", "is in a hurry")
    asyncio.run(alearn("ann", small_log(), recipe(), embedder=FakeEmbedder(), model=model, scorer=FakeScorer(), home=home))
    return home


@pytest.fixture
def ann(_learned_ann: Path, tmp_path: Path) -> str:
    """Copy the learned twin of Ann to the test's home and return its name."""
    shutil.copytree(_learned_ann, tmp_path / "twins")
    return "ann"


class FixedSimilarityEmbedder:
    """An embedder that gives each text a chosen cosine to the first axis (0 by default), and records its calls."""

    name, dimension = "meanings", 3

    def __init__(self, alike: Mapping[str, float]) -> None:
        self.alike, self.calls = alike, list[list[str]]()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        rows = [(cosine := self.alike.get(text, 0.0), (1 - cosine * cosine) ** 0.5, 0.0) for text in texts]
        return np.asarray(rows, np.float32)
