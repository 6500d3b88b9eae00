"""`python -m faults`: a server under load for a long time, faults included, and what it leaks."""

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chameleon_lora.errors import ChameleonError, ConfigError
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import SERVED, AdapterFixtures
from faults.kinds import named
from faults.leaks import LeakSample
from faults.servers import ServerKind, started
from faults.soak import MIB, Soaked, report, soak
from faults.trial import FaultRow

LEAST_S = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Soak a server; 0 if nothing was lost, wrong, disturbed or leaked, 1 if something was, 2 if asked wrongly."""
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description=(
            "Serves a tiny random model on this machine, holds a steady load whose answers are known, "
            "and inflicts faults at random: broken adapters, disks that hang or fail, clients that "
            "leave, crowds, clock jumps. Prints lost, wrong and disturbed requests, and the growth of "
            "memory, descriptors and threads. Exit status 1 if anything is wrong. Needs a C compiler."
        ),
    )
    parser.add_argument(
        "--duration", type=float, default=1800.0, metavar="S", help="that counts; default 1800"
    )
    parser.add_argument(
        "--warm-up",
        type=float,
        default=600.0,
        metavar="S",
        help="before that, in which memory may grow; default 600, in which pools and caches filled",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses the faults; default 0")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="faults in whose names one stands"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows and samples as JSON")
    return soak_command(parser.parse_args(argv))


def soak_command(args: argparse.Namespace) -> int:
    """0 if nothing was lost, wrong, disturbed or leaked; 1 if something was; 2 if asked wrongly."""
    try:
        if args.duration < LEAST_S:
            raise ConfigError(f"--duration is {args.duration:g} s, the least is {LEAST_S:g}")
        if args.warm_up < 0:
            raise ConfigError(f"--warm-up is {args.warm_up:g} s, the least is 0")
        faults = [fault for fault in named(args.only) if not fault.ends_server]
        if not faults:
            raise ConfigError(
                f"--only {' '.join(args.only)} leaves no fault that a server survives"
            )
    except ConfigError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="soak-chameleon-") as folder:
            cache = default_cache_dir()
            fixtures = AdapterFixtures.make(
                ensure_tiny_model(cache), Path(folder) / "fixtures", len(SERVED)
            )
            with started(ServerKind(), fixtures, Path(folder) / "server", cache) as server:
                times_s = (args.warm_up, args.duration)
                soaked = server.run(partial(soak, faults, times_s, args.seed, _say))
        return _told(soaked, args.out)
    except ChameleonError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1


def _told(soaked: Soaked, out: Path | None) -> int:
    if out is not None:
        out.write_text(json.dumps(dataclasses.asdict(soaked), indent=1))
    print(report(soaked))
    troubles = soaked.troubles()
    for trouble in troubles:
        print(f"WRONG: {trouble}")
    return 1 if troubles else 0


def _say(row: FaultRow, sample: LeakSample) -> None:
    print(
        f"{sample.at_s:6.0f} s  {row.fault:<32} requests {row.requests:4d}  lost {row.lost}  "
        f"wrong {row.wrong}  disturbed {row.disturbed}  {sample.rss_bytes / MIB:6.0f} MiB  "
        f"{sample.descriptors} descriptors  {sample.threads} threads",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
