"""What faults do to requests under a steady load: Chameleon, and stock vLLM with the same flags.

    python -m experiments.faults                       every fault, on both
    python -m experiments.faults --arms chameleon --only truncated stalls

A server that a fault has ended, or left unwell, is started anew for the next one.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from chameleon_lora.errors import ChameleonError
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import SERVED, AdapterFixtures
from faults.context import FaultContext
from faults.fault import InflictedFault
from faults.kinds import named
from faults.servers import ServerKind, started
from faults.trial import FaultRow, line, table, try_fault

ARMS = {"chameleon": ServerKind(), "stock": ServerKind(is_stock=True)}


def main() -> int:
    """Prints each arm's table; its rows as JSON go to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--out", type=Path, help="a folder for the rows")
    args = parser.parse_args()
    try:
        faults = named(args.only)
        for arm in args.arms:
            rows = list(rows_of(ARMS[arm], faults))
            print(f"\n{arm}\n\n{table(rows)}", flush=True)
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                records = [dataclasses.asdict(row) for row in rows]
                (args.out / f"{arm}.json").write_text(json.dumps(records, indent=1))
    except ChameleonError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    return 0


def rows_of(kind: ServerKind, faults: Sequence[InflictedFault]) -> Iterator[FaultRow]:
    """A row for each fault that this server can have."""
    left = [fault for fault in faults if not (fault.needs_folder and kind.is_stock)]
    with tempfile.TemporaryDirectory(prefix="faults-chameleon-") as folder:
        model = ensure_tiny_model(default_cache_dir())
        fixtures = AdapterFixtures.make(model, Path(folder) / "fixtures", len(SERVED))
        for number in range(len(left)):
            if not left:
                return
            home = Path(folder) / f"server-{number}"
            with started(kind, fixtures, home, default_cache_dir()) as server:
                rows = server.run(partial(_until_unwell, left))
            yield from rows
            left = left[len(rows) :]


async def _until_unwell(faults: Sequence[InflictedFault], context: FaultContext) -> list[FaultRow]:
    """Rows up to the first fault after which the server is not up and well."""
    rows: list[FaultRow] = []
    for fault in faults:
        row = await try_fault(fault, context)
        rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
        if fault.ends_server or not row.is_clean:
            break
    return rows


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
