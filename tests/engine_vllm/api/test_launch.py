"""How vLLM's server is started."""

import argparse
import functools
import os
import re
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.cli.serve import add_options
from chameleon_lora.engine_vllm.api.launch import (
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    UNSAID,
    keep_connections,
    parsed,
    told_without_model,
)
from chameleon_lora.engine_vllm.api.shutdown import DRAIN_S
from chameleon_lora.errors import ConfigError

FILE = """
max-lora-rank: 64
shutdown-timeout: 7
scheduler-cls: x.Y
enable-lora: false
additional-config: {other: {a: 1}}
api-key: k
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """vLLM's own configuration file."""
    path = tmp_path / "vllm.yaml"
    path.write_text(FILE)
    return path


def said(*words: str | Path) -> dict[str, Any]:
    """What the user has said, as vLLM reads it; None of what nobody said anything of."""
    pytest.importorskip("vllm")
    found: dict[str, Any] = {}
    names = (*UNSAID, "model_tag", "additional_config", "api_key")
    _, args = parsed(
        list(map(str, words)),
        lambda _: None,
        lambda args: found.update({name: getattr(args, name) for name in names}),
    )
    found["timeout"] = args.shutdown_timeout
    return found


@pytest.mark.vllm
@pytest.mark.slow
def test_connections_outlive_those_of_clients_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's request meets a connection that closes: vLLM's own 5 s are below the usual 60 s."""
    envs = pytest.importorskip("vllm.envs")
    monkeypatch.delenv(KEEP_ALIVE, raising=False)
    assert envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE <= 60
    monkeypatch.setenv(KEEP_ALIVE, "")  # so that it is put back
    del os.environ[KEEP_ALIVE]
    keep_connections(os.environ)
    assert 60 < KEEP_ALIVE_S == envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE


def test_what_the_user_says_stays() -> None:
    """Where a proxy is known, so is the right time."""
    environment = {KEEP_ALIVE: "20"}
    keep_connections(environment)
    assert {KEEP_ALIVE: "20"} == environment


@pytest.mark.vllm
@pytest.mark.slow
def test_what_nobody_said_is_told_from_what_was() -> None:
    """Chameleon's own come after, and vLLM's defaults last."""
    found = said("m")
    assert [None] * len(UNSAID) == [found[name] for name in UNSAID]
    assert ("m", {}, DRAIN_S) == (
        found["model_tag"], found["additional_config"], found["timeout"]
    )  # fmt: skip
    _, args = parsed(["m"], lambda _: None, lambda _: None)
    assert (16, None) == (args.max_lora_rank, args.scheduler_cls)
    assert not args.enable_lora


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("place", ["before", "after"])
def test_the_file_counts_as_the_command_line_does(file: Path, place: str) -> None:
    """Each value of it, one that says no as well; it may name the model."""
    others = ["--port", "1"] if place == "after" else []
    found = said("m", *others, "--config", file)
    expected = {
        "model": None, "model_tag": "m", "max_lora_rank": 64, "shutdown_timeout": 7,
        "timeout": 7, "scheduler_cls": "x.Y", "enable_lora": False,
        "additional_config": {"other": {"a": 1}}, "api_key": ["k"],
    }  # fmt: skip
    assert expected == found
    file.write_text("model: /there\n")
    assert "/there" == said("--config", file)["model"]


@pytest.mark.vllm
@pytest.mark.slow
def test_chameleons_own_may_stand_in_the_file(file: Path) -> None:
    """A list is one flag; vLLM's own abbreviations and defaults are as they were."""
    pytest.importorskip("vllm")
    file.write_text("model: m\nadapters: /there\nset: [a=1, b=2]\n")
    found: list[argparse.Namespace] = []
    options = functools.partial(add_options, is_file=True)
    parsed(["--config", str(file)], options, found.append)
    assert (Path("/there"), ["a=1", "b=2"]) == (found[0].adapters, found[0].overrides)


def test_a_model_that_is_nowhere_is_told_with_what_can_be_given() -> None:
    """What the hub's client says comes after; an error of the system's stays what it is."""
    with (
        pytest.raises(
            ConfigError, match=r"no model 'tiny' .* path of a folder .* \(no such file\)"
        ),
        told_without_model("tiny"),
    ):
        raise OSError("no such file\nCheck your connection")
    with pytest.raises(OSError, match="in use"), told_without_model("tiny"):
        raise OSError(98, "in use")


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_lora_rank=32"], {"max_lora_rank": 32, "shutdown_timeout": 7}),
        (["--max-lora-r", "32", "--enable-lora"], {"max_lora_rank": 32, "enable_lora": True}),
        (["--shutdown_timeout", "3"], {"timeout": 3}),
        (["--additional_config", '{"b": 2}'], {"additional_config": {"b": 2}}),
        (["--additional-config.b.c=2"], {"additional_config": {"b": {"c": 2}}}),
    ],
    ids=str,
)
def test_the_command_line_wins_in_every_form(
    file: Path, words: list[str], expected: dict[str, Any]
) -> None:
    """Underscores, `=`, abbreviations, dotted keys: over the file, as with vLLM."""
    found = said("m", "--config", file, *words)
    assert expected == {name: found[name] for name in expected}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--port", "1"], "which MODEL"),
        (["m", "--config", "/none.yaml"], "No such file"),
        (["m", "--config", "/none.toml"], "yaml"),
        (["m", "--config=/none.yaml"], "give it as --config /none.yaml"),
        (["m", "--config", "{list}"], "lines of the form `flag: value`"),
        (["m", "--config", "{typo}"], r"--max-lora-rnk 8 \(did you mean --max-lora-rank\?\); see"),
        (["m", "--port", "x"], "argument --port: .*'x'.*; see chameleon serve --help"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, words: list[str], reason: str) -> None:
    """Not left out, as vLLM leaves a file out that is given in another form."""
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "typo.yaml").write_text("max-lora-rnk: 8\n")
    with pytest.raises(ConfigError, match=reason):
        said(*(re.sub(r"{(\w+)}", rf"{tmp_path}/\1.yaml", word) for word in words))
