"""docs/settings.md is what the source says."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from chameleon_lora.settings import parse_settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| `([^`]+)` \|", re.MULTILINE)
FENCED_TOML = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def text() -> str:
    """The page as it stands."""
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_up_to_date(text: str) -> None:
    """If this fails: `.venv/bin/python scripts/settings_page.py`."""
    assert runpy.run_path(str(ROOT / "scripts" / "settings_page.py"))["page"]() == text


def test_each_default_on_the_page_may_be_given(text: str) -> None:
    """Every row's key and default, given together as TOML, are the settings without any."""
    rows = ROW.findall(text)
    given = tomllib.loads("\n".join(f"{key} = {default}" for key, default in rows))
    assert len(rows) > 30
    assert parse_settings({}) == parse_settings(given)


def test_the_example_file_is_taken(text: str) -> None:
    """The TOML on the page is a settings file."""
    [example] = FENCED_TOML.findall(text)
    assert "gdsf" == parse_settings(tomllib.loads(example)).policy.cache.keep.value
