"""Settings files and `--set`: what a command line makes of them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.cli.serve import read_settings
from chameleon_lora.errors import ConfigError

TOML = """
preset = "paper"
[cache]
keep = "lru"
[lanes.cluster]
max_lanes = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A settings file of three tables."""
    path = tmp_path / "chameleon.toml"
    path.write_text(TOML)
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    """The words in which the file or an override is refused."""
    with pytest.raises(ConfigError) as caught:
        read_settings(path, overrides)
    return str(caught.value)


def test_nothing_given_is_an_empty_mapping() -> None:
    """Without file and overrides there are no settings to lay over the defaults."""
    assert {} == read_settings(None, [])


def test_a_file_is_read_as_it_stands(file: Path) -> None:
    """Tables of the file become nested mappings."""
    expected = {"preset": "paper", "cache": {"keep": "lru"}, "lanes": {"cluster": {"max_lanes": 2}}}
    assert expected == read_settings(file, [])


def test_overrides_go_before_the_file_and_the_last_one_wins(file: Path) -> None:
    """`--set` replaces one value and keeps its neighbours; of two for one key the later counts."""
    overrides = [
        "lanes.cluster.max_lanes=3",
        "lanes.slo_s=2.5",
        "cache.keep=lfu",
        "cache.keep=gdsf",
    ]
    expected = {
        "preset": "paper",
        "cache": {"keep": "gdsf"},
        "lanes": {"cluster": {"max_lanes": 3}, "slo_s": 2.5},
    }
    assert expected == read_settings(file, overrides)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("paper", "paper"),
        ('"3"', "3"),
        ("/srv/a b", "/srv/a b"),
        ("a=b", "a=b"),
        ("[1, 2]", [1, 2]),
        ("", ""),
        (" paper ", "paper"),
    ],
)
def test_a_value_is_toml_or_else_text(text: str, value: Any) -> None:
    """Numbers, booleans and quoted text are TOML's; what is no TOML is taken as text."""
    assert {"a": {"b": value}} == read_settings(None, [f"a.b={text}"])


@pytest.mark.parametrize("override", ["cache.keep", "=lru", " =lru", ""])
def test_an_override_has_a_key_and_a_value(override: str) -> None:
    """Without `=`, or without a key before it, an override is refused with the form it takes."""
    text = refusal(None, override)
    assert text.startswith(f"--set {override!r} is not of the form key=value")


def test_a_value_is_no_table(file: Path) -> None:
    """A key below a value is refused and both are named."""
    text = refusal(file, "preset.name=paper")
    assert "--set 'preset.name=paper': 'preset' is a value, not a table of settings" == text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path and the system's reason are told."""
    path = tmp_path / "none.toml"
    assert f"settings file {path} cannot be read: No such file or directory" == refusal(path)


@pytest.mark.parametrize("content", [b"keep = lru", b"\xff\xfe", b"[a\n"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    """The path and where reading stopped are told."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"settings file {path} is not TOML: ")


@given(st.lists(st.text(alphabet="ab.=1[]\"' \n#", max_size=12), max_size=3))
def test_any_overrides_are_read_or_refused(overrides: list[str]) -> None:
    """No text on the command line raises anything but ConfigError."""
    try:
        settings = read_settings(None, overrides)
    except ConfigError:
        return
    assert isinstance(settings, dict)
