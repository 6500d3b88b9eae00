"""The options of `chameleon demo`."""

import argparse
from pathlib import Path

import pytest

from chameleon_lora.cli.demo import add_parser, demo_command
from chameleon_lora.cli.main import main


def parse(*words: str) -> argparse.Namespace:
    """What the command line means."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["demo", *words])


def test_without_options_it_is_a_minute_at_an_automatic_rate() -> None:
    """60 s, seed 0, the real model, and a folder of its own choice."""
    args = parse()
    assert (60.0, None, 0, "smollm2", None) == (
        args.seconds,
        args.rate,
        args.seed,
        args.model,
        args.out,
    )
    assert args.run is demo_command


def test_options_reach_the_command() -> None:
    """A rate in requests per second, a length, a seed, a model and a folder."""
    args = parse("--rate", "2.5", "--seconds", "9", "--seed", "4", "--model", "tiny", "--out", "x")
    assert (2.5, 9.0, 4, "tiny", Path("x")) == (
        args.rate,
        args.seconds,
        args.seed,
        args.model,
        args.out,
    )


def test_auto_can_be_said() -> None:
    """It is what happens without the option."""
    assert parse("--rate", "auto").rate is None


@pytest.mark.parametrize("words", [("--rate", "0"), ("--seconds", "-1"), ("--rate", "fast")])
def test_impossible_numbers_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option."""
    with pytest.raises(SystemExit):
        parse(*words)
    assert words[0] in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier run is not mixed with this one: exit code 2, and why."""
    earlier = tmp_path / "earlier"
    earlier.touch()
    assert 2 == main(["demo", "--out", str(tmp_path)])
    assert f"{tmp_path} exists already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [earlier]
