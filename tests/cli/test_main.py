"""The command `chameleon`: what it lists, and its exit codes."""

import subprocess
import sys

import pytest

from chameleon_lora import __version__
from chameleon_lora.cli.main import main


def exit_code(*words: str) -> object:
    """How the command ends where argparse ends it."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the package's version and ends well."""
    assert 0 == exit_code("--version")
    assert __version__ == capsys.readouterr().out.strip()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names each command with what it does."""
    assert 0 == exit_code("--help")
    listed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"serve", "adapters", "demo"} <= {words[0] for words in listed if len(words) > 1}


def test_help_of_serve_says_where_vllms_flags_go(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help` points to vLLM's flags and to the page of settings."""
    assert 0 == exit_code("serve", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Every flag of `vllm serve` may follow" in text
    assert "docs/settings.md" in text


@pytest.mark.parametrize("words", [(), ("fly",), ("serve",), ("adapters",), ("--fly",)], ids=str)
def test_what_is_no_command_ends_with_two(words: tuple[str, ...]) -> None:
    """No command, an unknown one, or one without what it needs is asked for wrongly."""
    assert 2 == exit_code(*words)


def test_unknown_arguments_end_with_two_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Only `serve` passes on what it does not know."""
    assert 2 == exit_code("adapters", "inspect", ".", "--fly", "7")
    assert "unknown arguments: --fly 7" in capsys.readouterr().err


def test_a_wrong_setting_ends_the_process_with_two_and_without_vllm() -> None:
    """In a process of its own the refusal comes before vLLM is imported."""
    script = (
        "import sys; from chameleon_lora.cli.main import main; "
        "code = main(['serve', 'model', '--set', 'cache.keep=fifo']); "
        "sys.exit(code if 'vllm' not in sys.modules else 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (2, "") == (done.returncode, done.stdout)
    assert "setting 'cache.keep' is 'fifo'; use one of chameleon, fair_share, lru" in done.stderr
