"""`chameleon tenants`."""

import io
from pathlib import Path

import pytest

from chameleon_lora.cli.main import main
from chameleon_lora.tenants import hash_key

KEY = "a-key-of-a-tenant"


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_key_is_hashed_from_standard_input(
    end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line to put into the file, whether the input ends with a line end or not."""
    monkeypatch.setattr("sys.stdin", io.StringIO(KEY + end))
    assert 0 == main(["tenants", "hash"])
    assert f"{hash_key(KEY)}\n" == capsys.readouterr().out


def test_a_key_that_can_be_guessed_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, with the least length."""
    monkeypatch.setattr("sys.stdin", io.StringIO("short"))
    assert 2 == main(["tenants", "hash"])
    found = capsys.readouterr()
    assert ("", True) == (found.out, "the least is 16" in found.err)


def test_a_file_is_told_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What each tenant may do, as the server would read it."""
    path = tmp_path / "tenants.toml"
    path.write_text(
        f"""
[tenants.acme]
keys = ["{hash_key(KEY)}"]
adapters = ["acme-*", "shared"]
base_model = true
share_prefixes = true
requests_per_s = 0.5
output_tokens_per_minute = 20000
[tenants.bob]
keys = ["{hash_key(KEY[::-1])}"]
"""
    )
    assert 0 == main(["tenants", "check", str(path)])
    assert [
        "acme: keys 1, adapters 'acme-*' 'shared', base model, shares prefixes, weight 1, "
        "0.5 requests a second, 20,000 output tokens a minute",
        "bob: keys 1, adapters none, weight 1",
    ] == capsys.readouterr().out.splitlines()


def test_a_file_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, naming the file."""
    path = tmp_path / "tenants.toml"
    assert 2 == main(["tenants", "check", str(path)])
    assert f"tenants file {path} cannot be read" in capsys.readouterr().err
