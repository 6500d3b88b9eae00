"""The options of `chameleon bench`; where they mean what `vllm bench serve` means, by its names."""

import argparse
from pathlib import Path

from chameleon_lora.bench.completion import Endpoint, PromptForm
from chameleon_lora.cli.option_types import count, not_negative, positive
from chameleon_lora.cli.traffic import add_traffic_options
from chameleon_lora.metrics.objectives import Objective

DURATION_S, WARMUP_S, RATE_PER_S, PATIENCE_S = 60.0, 5.0, 1.0, 120.0
TOKEN_IDS = (100, 500)
"""Ids that are words or parts of words in most vocabularies, the smallest ones included."""


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Adds all of them, and those of the traffic."""
    _add_server(parser.add_argument_group("server"))
    _add_run(parser.add_argument_group("run"))
    add_traffic_options(parser)
    _add_output(parser.add_argument_group("output"))


def _add_server(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--base-url", type=_base_url, required=True, metavar="URL",
        help="the server's root, such as http://127.0.0.1:8000",
    )  # fmt: skip
    group.add_argument(
        "--model", metavar="NAME", help="the base model (default: the first the server lists)"
    )
    names = group.add_mutually_exclusive_group()
    names.add_argument(
        "--lora-modules", nargs="+", metavar="NAME",
        help="adapters to ask for, most popular first (default: all the server lists)",
    )  # fmt: skip
    names.add_argument(
        "--adapters", type=Path, metavar="DIR",
        help="ask for those of this folder, by their sub-folders' names",
    )  # fmt: skip
    group.add_argument(
        "--endpoint", choices=[endpoint.value for endpoint in Endpoint],
        default=Endpoint.COMPLETIONS.value, help=f"default: {Endpoint.COMPLETIONS.value}",
    )  # fmt: skip
    group.add_argument(
        "--prompts", choices=[form.value for form in PromptForm],
        default=PromptForm.TOKEN_IDS.value,
        help="token-ids are exactly as long as they say; text is for servers that take no ids "
        "(default: token-ids; chat takes text)",
    )  # fmt: skip
    group.add_argument(
        "--token-ids", type=_token_ids, default=TOKEN_IDS, metavar="LOW:HIGH",
        help="prompts are drawn from these ids, HIGH not included (default: 100:500)",
    )  # fmt: skip
    group.add_argument(
        "--no-ignore-eos", action="store_true",
        help="do not ask for answers of exact length: for servers that refuse vLLM's ignore_eos",
    )  # fmt: skip
    group.add_argument(
        "--api-key", metavar="KEY", help="default: OPENAI_API_KEY of the environment, if set"
    )


def _add_run(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--request-rate", type=positive, nargs="+", metavar="R",
        help="requests a second; several are run one after the other (default: the trace's own "
        f"where its arrivals are replayed, else {RATE_PER_S:g})",
    )  # fmt: skip
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--duration", type=positive, default=DURATION_S, metavar="S",
        help=f"requests arrive for so many seconds, warm-up included (default: {DURATION_S:g})",
    )  # fmt: skip
    length.add_argument(
        "--num-prompts", type=count, metavar="N", help="or until N have arrived after the warm-up"
    )
    group.add_argument(
        "--warmup", type=not_negative, default=WARMUP_S, metavar="S",
        help=f"requests that arrive before it are sent and not counted (default: {WARMUP_S:g})",
    )  # fmt: skip
    group.add_argument(
        "--goodput", type=_objective, nargs="+", default=[], metavar="NAME:MS",
        help="what a good request keeps to, such as ttft:500 tpot:50 e2el:9000",
    )  # fmt: skip
    group.add_argument(
        "--slo-ttft", type=positive, metavar="S", help="the same as --goodput ttft, in seconds"
    )
    group.add_argument(
        "--patience", type=positive, default=PATIENCE_S, metavar="S",
        help="what is unanswered so long after the last arrival has failed "
        f"(default: {PATIENCE_S:g})",
    )  # fmt: skip


def _add_output(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--label", metavar="WORD", help="what reports call this server (default: its address)"
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="for the files (default: runs/bench-N)"
    )
    group.add_argument(
        "--json", action="store_true", help="print each run's summary.json as a line instead"
    )


def _base_url(text: str) -> str:
    """Without a slash at its end, and without the /v1 that OpenAI's clients want there."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"is {text!r}; give http://HOST:PORT or https://HOST")
    return text.rstrip("/").removesuffix("/v1")


def _token_ids(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"is {text!r}; give LOW:HIGH with 0 <= LOW < HIGH")
    return int(low), int(high)


def _objective(text: str) -> tuple[Objective, float]:
    """The name and the limit in seconds of one word of --goodput, which gives milliseconds."""
    name, _, limit = text.partition(":")
    try:
        return Objective(name), positive(limit) / 1e3
    except ValueError as error:
        known = ", ".join(objective.value for objective in Objective)
        raise argparse.ArgumentTypeError(
            f"is {text!r}; give NAME:MS, where NAME is one of {known}"
        ) from error
