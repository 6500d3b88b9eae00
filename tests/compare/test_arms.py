"""The servers of a comparison, and in what they differ."""

from pathlib import Path

import pytest

from chameleon_lora.compare.arms import (
    FLAGS,
    STOCK,
    Arm,
    arm_of,
    check_one_difference,
    differences,
)
from chameleon_lora.errors import ConfigError
from chameleon_lora.servers.launching import ServedModel
from chameleon_lora.settings import parse_settings

SERVED = ServedModel("/models/m", Path("/adapters"), ("a", "b"), ("--max-loras", "4"))


def arm(text: str) -> Arm:
    """The arm of these words."""
    return arm_of(text, SERVED)


def test_stock_is_told_every_adapter_and_keeps_all_in_host_memory() -> None:
    """Its best setting; the flags of all arms, and the port, which comes later."""
    command = arm(STOCK).on(1234)
    at = command.index("--lora-modules")
    assert ["a=/adapters/a", "b=/adapters/b"] == command[at + 1 :]
    assert "2" == command[command.index("--max-cpu-loras") + 1]
    assert "1234" == command[command.index("--port") + 1]
    assert "4" == command[command.index("--max-loras") + 1]


@pytest.mark.parametrize("name", FLAGS)
def test_built_in_policies_are_settings_of_chameleons_server(name: str) -> None:
    """The same command line but for --set, whose keys and values the server knows."""
    command, plain = arm(name).on(1), arm("chameleon").on(1)
    assert plain == command[: len(plain)]
    extra = command[len(plain) :]
    assert {"--set"} == set(extra[::2]) or not extra
    settings: dict[str, object] = {}
    for key, _, value in (word.partition("=") for word in extra[1::2]):
        table, _, name = key.rpartition(".")
        place = settings.setdefault(table, {}) if table else settings
        assert isinstance(place, dict)
        place[name] = int(value) if value.isdecimal() else value
    parse_settings(settings)


def test_a_built_in_arm_can_have_more_flags() -> None:
    """They come last, so they go before its own, and under a label of the user's."""
    big = arm("big=chameleon --set cache.host_bytes=8000")
    assert ("big", ["--set", "cache.host_bytes=8000"]) == (big.label, big.on(1)[-2:])
    assert ("cache.host_bytes: 8000 instead of not given",) == differences(arm("chameleon"), big)


def test_a_command_line_is_taken_as_it_is() -> None:
    """With model, adapters and port put in; quotes as in a shell."""
    own = arm("mine=serve '{model}' --dir {adapters} --port {port} --name 'x y'")
    expected = ["serve", "/models/m", "--dir", "/adapters", "--port", "80", "--name", "x y"]
    assert expected == own.on(80)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nobody", "no built-in arm 'nobody'; there are stock, chameleon"),
        ("x=serve me", r"the command has no \{port\}"),
        ("=stock", "is not LABEL=COMMAND"),
        ("a/b=stock", "a label fit for a folder's name"),
        ("x=", "is not LABEL=COMMAND"),
        ("x=serve 'me {port}", "cannot be read as a command line"),
    ],
)
def test_what_is_no_arm_is_refused(text: str, says: str) -> None:
    """With what was expected."""
    with pytest.raises(ConfigError, match=says):
        arm(text)


def test_one_difference_is_a_comparison() -> None:
    """Two policies; and one more flag."""
    check_one_difference(arm(STOCK), (arm("chameleon"),))
    check_one_difference(arm("sjf"), (arm("x=sjf --max-loras 8"),))


def test_two_differences_are_refused_and_named() -> None:
    """Policy and slots; the way out is said."""
    with pytest.raises(ConfigError, match=r"in 2 settings: --max-loras: 8 .*; policy: sjf instead"):
        check_one_difference(arm(STOCK), (arm("x=sjf --max-loras 8"),))


def test_no_difference_is_refused() -> None:
    """The same server twice tells only how noisy the machine is; that has to be asked for."""
    with pytest.raises(ConfigError, match=r"in 0 settings\. .*--allow-differences"):
        check_one_difference(arm("sjf"), (arm("again=sjf"),))
