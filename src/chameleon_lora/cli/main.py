"""The command `chameleon`."""

import argparse
import sys
from collections.abc import Sequence

from chameleon_lora import __version__
from chameleon_lora.cli import (
    adapters,
    bench,
    calibrate,
    compare,
    demo,
    plan,
    report,
    reproduce,
    serve,
    tenants,
    workload,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 failed, 2 asked for wrongly."""
    parser = argparse.ArgumentParser(
        prog="chameleon", description="Many LoRA adapters on one base model, on top of vLLM."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        serve,
        adapters,
        tenants,
        demo,
        bench,
        compare,
        calibrate,
        workload,
        plan,
        reproduce,
        report,
    ):
        command.add_parser(subparsers)
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_rest", False):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    args.rest = rest
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
