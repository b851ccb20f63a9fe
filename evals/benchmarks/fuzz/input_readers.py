"""The readers of what users, models and agents give: logs, settings, adapters, names, completions, replies."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from usertwin.evals.cli.learn import learn
from usertwin.evals.cli.parts.options import parse_price
from usertwin.evals.cli.train import train
from usertwin.evals.judges.model_judge import parse_label
from usertwin.memory.recon.propose import parse_trace
from usertwin.memory.text.completions import json_objects, without_reasoning
from usertwin.memory.training.rewards import parse_weights
from usertwin.memory.twin.forget import parse_date
from usertwin.memory.twin.record import twin_folder
from usertwin.personas import as_conversation, load_log, read_conversations, split_pairs
from usertwin.personas.pairs import extract_pairs
from usertwin.personas.persona import derive_persona, read_persona
from usertwin.simulator.agents.replies import as_replies
from usertwin.simulator.backends.lora_adapter import read_adapter
from usertwin.simulator.backends.model_files import has_chat_template
from usertwin.simulator.backends.model_name import ModelName, Role

from . import examples
from .mutations import (
    mutate_bytes,
    mutate_gzip,
    mutate_json,
    mutate_lines,
    mutate_toml,
    mutate_value,
)
from .reader import Reader, from_file, from_folder


def log_readers(folder: Path) -> list[Reader]:
    """Return the readers of chat logs and of messages."""

    def read(path: Path) -> None:
        for skip in (False, True):
            log = read_conversations(path, skip_bad_lines=skip)
            log.notes()
            log.turn_counts()
            for conversation in log.conversations:
                json.dumps(conversation.to_json())
                extract_pairs(conversation, examples.SPEAKER)
            derive_persona(split_pairs(log, examples.SPEAKER).corpus, examples.SPEAKER)

    plain = [log for log in examples.logs() if not log.startswith(b"\x1f\x8b")]
    packed = [log for log in examples.logs() if log.startswith(b"\x1f\x8b")]
    messages = [json.dumps(c.to_messages(examples.SPEAKER)).encode() for c in examples.conversations()[:3]]
    return [
        Reader(name="chat log", inputs=plain[:2], mutate=mutate_lines, read=from_file(folder / "log.jsonl", read), weight=6),
        Reader(name="chat log, a list", inputs=plain[2:], mutate=mutate_json, read=from_file(folder / "log.json", read)),
        Reader(name="chat log, gzip", inputs=packed, mutate=mutate_gzip(mutate_lines), read=from_file(folder / "log.gz", read)),
        Reader(
            name="oyez",
            inputs=[examples.oyez()],
            mutate=mutate_json,
            weight=16,
            read=from_file(folder / "oyez.json", lambda path: load_log(f"oyez:{path}")),
        ),
        Reader(
            name="messages", inputs=messages, mutate=_mutate_python, weight=16, read=lambda raw: as_conversation(_python(raw))
        ),
    ]


def _mutate_python(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(mutate_value(json.loads(content), rng)).encode()


def _python(content: bytes) -> Any:
    return json.loads(content)


def settings_readers(folder: Path) -> list[Reader]:
    """Return the readers of personas, recipes and suites."""
    from usertwin.evals.suites.config import read_suite

    def options(command: click.Command, *arguments: str) -> Callable[[Path], object]:
        return lambda path: command.make_context("usertwin", [*arguments, "--recipe", str(path)])

    def suite(path: Path) -> None:
        read_suite(path).model_dump(mode="json")

    toml = partial(Reader, mutate=mutate_toml)
    return [
        toml(name="persona", inputs=[examples.PERSONA], weight=16, read=from_file(folder / "persona.toml", read_persona)),
        toml(
            name="recipe of learn",
            inputs=[examples.LEARN_RECIPE],
            weight=3,
            read=from_file(folder / "l.toml", options(learn, "ann")),
        ),
        toml(
            name="recipe of train",
            inputs=[examples.TRAIN_RECIPE],
            weight=3,
            read=from_file(folder / "t.toml", options(train, "out")),
        ),
        toml(name="suite", inputs=[examples.SUITE], read=from_file(folder / "suite.toml", suite)),
    ]


def model_readers(folder: Path) -> list[Reader]:
    """Return the readers of adapters, tokenizers, scripts and names of models."""
    from usertwin.simulator.backends.scripted import scripted_model

    adapter = folder / "adapter"
    adapter.mkdir()
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}).encode()
    facts = json.dumps({"format": 1, "base": "local", "style": "transcript", "method": "dpo"}).encode()
    header = json.dumps(
        {
            "a.lora_A.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
            "a.lora_B.weight": {"dtype": "F32", "shape": [3, 4], "data_offsets": [32, 80]},
        }
    ).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(80)
    files = {"adapter_config.json": config, "usertwin.json": facts, "adapter_model.safetensors": weights}
    restored = partial(from_folder, adapter, files)

    def names(content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        roles: tuple[Role, ...] = ("chat model", "scorer", "base")
        for role in roles:
            try:
                str(ModelName.parse(text, role, folder=folder).resolved(folder))
            except ValueError as error:  # a wrong name is a UsageError, which is one
                if type(error) is ValueError:
                    raise

    tokenizer = json.dumps({"chat_template": "x", "model_max_length": 10**30}).encode()
    return [
        Reader(
            name="adapter's config", inputs=[config], mutate=mutate_json, read=restored("adapter_config.json", read_adapter)
        ),
        Reader(name="adapter's facts", inputs=[facts], mutate=mutate_json, read=restored("usertwin.json", read_adapter)),
        Reader(
            name="adapter's weights",
            inputs=[weights],
            mutate=mutate_bytes,
            read=restored("adapter_model.safetensors", read_adapter),
            weight=2,
        ),
        Reader(
            name="tokenizer",
            inputs=[tokenizer],
            mutate=mutate_json,
            read=from_file(folder / "tokenizer_config.json", lambda path: has_chat_template(path.parent)),
            weight=2,
        ),
        Reader(name="model name", inputs=examples.MODEL_NAMES, mutate=mutate_bytes, weight=16, read=names),
        Reader(
            name="script",
            inputs=[examples.SCRIPT],
            mutate=mutate_lines,
            read=from_file(folder / "script.txt", scripted_model),
            weight=2,
        ),
    ]


def text_readers() -> list[Reader]:
    """Return the readers of completions, options and replies of agents."""

    def completion(content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        without_reasoning(text, "a prompt")
        list(json_objects(text))
        parse_label(text)
        for style in ("transcript", "instruction"):
            parse_trace(style, text)

    def options(content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        for parse in (parse_price, parse_weights, parse_date, twin_folder):
            try:
                parse(text)
            except ValueError as error:
                if type(error) is ValueError:
                    raise

    replies = [
        b'"hello"',
        b'{"role": "assistant", "content": "hi"}',
        b'[{"role": "user", "content": "a"}, {"role": "ai", "content": "b"}]',
        b'{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]}',
    ]
    values = [b"0.25/2", b"1/0.2/0.1/0.1", b"2026-05-31", b"ann"]
    sent = [{"role": "user", "content": "a"}]
    return [
        Reader(name="completion", inputs=examples.COMPLETIONS, mutate=mutate_bytes, read=completion, weight=12),
        Reader(name="options", inputs=values, mutate=mutate_bytes, weight=16, read=options),
        Reader(
            name="agent reply",
            inputs=replies,
            mutate=_mutate_python,
            read=lambda raw: as_replies(_python(raw), sent),
            weight=16,
        ),
    ]
