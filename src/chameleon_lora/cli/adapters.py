"""`chameleon adapters inspect` and `chameleon adapters make`."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, AdapterLimits, inspect_adapter
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.make import DTYPES, MAX_COUNT, MAX_RANK, ModelDims, make_adapters
from chameleon_lora.bench.printed import printable
from chameleon_lora.cli.option_types import count, whole
from chameleon_lora.errors import ConfigError

_MIB = 1 << 20
_COLUMNS = ("name", "rank", "modules", "MiB", "dtype", "problems")


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Register `adapters`; the chosen command's function is `args.run`."""
    adapters = subparsers.add_parser("adapters")
    commands = adapters.add_subparsers(dest="adapters_command", required=True)
    inspect = commands.add_parser("inspect", help="what adapters hold and whether vLLM takes them")
    inspect.add_argument("dir", type=Path, metavar="DIR", help="one adapter, or a folder of them")
    inspect.add_argument("--max-lora-rank", type=count, metavar="N", help="the engine's limit")
    inspect.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    inspect.set_defaults(run=inspect_command, parser=inspect)
    make = commands.add_parser("make", help="write random adapters for tests and measurements")
    make.add_argument("dir", type=Path, metavar="DIR", help="where the adapter folders go")
    make.add_argument(
        "--model", type=Path, required=True, metavar="MODEL_DIR", help="the model's folder"
    )
    make.add_argument("--count", type=whole(1, MAX_COUNT), required=True, metavar="N")
    make.add_argument(
        "--ranks", type=_ranks, required=True, metavar="8,16,32", help="taken in rotation"
    )
    make.add_argument("--seed", type=whole(0), default=0, metavar="N")
    make.add_argument("--dtype", choices=DTYPES, default="float32")
    make.set_defaults(run=make_command, parser=make)


def inspect_command(args: argparse.Namespace) -> int:
    """Print what is in `args.dir`; 0 all can be served, 1 some cannot."""
    try:
        paths = _adapter_paths(args.dir)
    except OSError as error:
        raise ConfigError(
            f"{str(args.dir)!r} cannot be read ({error}); way out: make it readable"
        ) from error
    limits = AdapterLimits(max_rank=args.max_lora_rank)
    infos = [inspect_adapter(path, limits) for path in paths]
    if args.json:
        print(json.dumps([_as_json(info) for info in infos], indent=2))
    else:
        print(_table(infos))
    return 1 if any(info.problems for info in infos) else 0


def make_command(args: argparse.Namespace) -> int:
    """Write `args.count` adapters below `args.dir`."""
    dims = ModelDims.from_model(args.model)
    try:
        paths = make_adapters(args.dir, dims, args.ranks, args.count, args.seed, dtype=args.dtype)
    except OSError as error:
        raise ConfigError(
            f"{str(args.dir)!r} cannot be written ({error}); way out: another folder"
        ) from error
    total_bytes = sum(inspect_adapter(path).nbytes for path in paths)
    print(f"{len(paths)} adapters, {total_bytes / _MIB:.1f} MiB, in {printable(str(args.dir))}")
    return 0


def _adapter_paths(folder: Path) -> list[Path]:
    is_one_adapter = (folder / CONFIG_NAME).exists() or any(folder.glob("adapter_model.*"))
    if is_one_adapter:
        return [folder]
    names = AdapterFolder(folder).names()
    if not names:
        raise ConfigError(
            f"{str(folder)!r} holds 0 adapters, the least is 1; way out: give an adapter's folder "
            f"with its {CONFIG_NAME}, or the folder above"
        )
    return [folder / name for name in names]


def _as_json(info: AdapterInfo) -> dict[str, object]:
    return {**dataclasses.asdict(info), "path": str(info.path)}


def _table(infos: Sequence[AdapterInfo]) -> str:
    rows = [_COLUMNS, *(_row(info) for info in infos)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "{:<{}}  {:>{}}  {:<{}}  {:>{}}  {:<{}}  {:<{}}"
    lines = [form.format(*chain(*zip(row, widths, strict=True))).rstrip() for row in rows]
    for info in infos:
        lines += [f"{printable(info.name)}: {printable(problem)}" for problem in info.problems]
    return "\n".join(lines)


def _row(info: AdapterInfo) -> tuple[str, ...]:
    return (
        printable(info.name),
        str(info.rank or "-"),
        ",".join(printable(module) for module in info.target_modules)[:60] or "-",
        f"{info.nbytes / _MIB:.2f}",
        info.dtype or "-",
        str(len(info.problems) or "-"),
    )


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(whole(1, MAX_RANK)(part) for part in text.split(","))
