"""What the options of `chameleon bench` mean before a server is asked."""

import argparse
import math

import pytest

from chameleon_lora.cli.bench import add_parser, bench_command
from chameleon_lora.cli.bench_plan import command_line
from chameleon_lora.cli.option_types import count, not_negative, positive, share
from chameleon_lora.metrics.objectives import Objective

URL = ("--base-url", "http://127.0.0.1:8000")


def parsed(*words: str) -> argparse.Namespace:
    """What the command line means."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["bench", *words])


def test_only_the_address_must_be_given() -> None:
    """A minute with five seconds of warm-up; the rest the server or the traffic says."""
    args = parsed(*URL)
    assert (60.0, 5.0, None, None) == (
        args.duration,
        args.warmup,
        args.request_rate,
        args.num_prompts,
    )
    assert args.run is bench_command


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_an_address_may_end_as_clients_like_it(ending: str) -> None:
    """With or without the /v1 that OpenAI's clients want."""
    assert URL[1] == parsed("--base-url", URL[1] + ending).base_url


def test_goodput_is_in_milliseconds_as_vllms() -> None:
    """And seconds inside."""
    args = parsed(*URL, "--goodput", "ttft:500", "tpot:50")
    assert [(Objective.TTFT, 0.5), (Objective.TPOT, 0.05)] == args.goodput


@pytest.mark.parametrize(
    "words",
    [
        *(("--goodput", "itl:50"), ("--goodput", "ttft"), ("--goodput", "ttft:0")),
        *(("--token-ids", "100"), ("--token-ids", "9:9"), ("--token-ids", "a:b")),
        *(("--request-rate", "inf"), ("--duration", "0"), ("--num-prompts", "0")),
        *(("--base-url", "127.0.0.1:8000"), ("--endpoint", "/v1/embeddings")),
    ],
)
def test_impossible_words_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option and what it takes."""
    with pytest.raises(SystemExit):
        parsed(*URL, *words)
    assert f"argument {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--duration=9", "--num-prompts=9"), ("--lora-modules", "a", "--adapters", "dir")],
)
def test_one_way_to_say_it_at_a_time(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A length or a number; names or a folder."""
    with pytest.raises(SystemExit):
        parsed(*URL, *words)
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [("--api-key", "secret", "--seed", "1"), ("--api-key=secret", "--seed", "1")],
)
def test_a_key_is_never_written_down(words: tuple[str, ...]) -> None:
    """The rest of the command line is kept, quoted for a shell."""
    found = command_line(["bench", *words, "--label", "two words"])
    assert "chameleon bench --seed 1 --label 'two words'" == found


def test_numbers_have_their_ranges() -> None:
    """What is outside, or no number at all, is refused with what would do."""
    assert (0.5, 0.0, 3, 1.0) == (positive("0.5"), not_negative("0"), count("3"), share("1"))
    for parse, word in (
        (positive, "0"),
        (not_negative, "-1"),
        (count, "1.5"),
        (count, "inf"),
        (share, "1.1"),
        (share, str(math.nan)),
        (positive, "much"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="; give a "):
            parse(word)
