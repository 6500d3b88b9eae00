"""`chameleon adapters inspect`, `chameleon adapters convert` and `chameleon adapters make`."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, AdapterLimits, inspect_adapter
from chameleon_lora.adapters.base_model import layer_names
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.convert import convert, is_only_pickled
from chameleon_lora.adapters.folder import shown
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import largest_bytes, without_adapter
from chameleon_lora.adapters.make import DTYPES, MAX_COUNT, MAX_RANK, ModelDims, make_adapters
from chameleon_lora.bench.printed import printable
from chameleon_lora.cli.option_types import count, whole
from chameleon_lora.errors import AdapterError, ConfigError

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
    inspect.add_argument(
        "--model", type=Path, metavar="MODEL_DIR", help="tell weights that find no layer there, too"
    )
    inspect.add_argument(
        "--trusted-root", action="append", default=[], metavar="DIR",
        help="as serving.trusted_roots: links may lead there; may be repeated",
    )  # fmt: skip
    inspect.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    inspect.set_defaults(run=inspect_command, parser=inspect)
    convert_parser = commands.add_parser(
        "convert",
        help="write pickled weights (adapter_model.bin) as safetensors beside; needs torch",
    )
    convert_parser.add_argument(
        "dir", type=Path, metavar="DIR", help="one adapter, or a folder of them"
    )
    convert_parser.set_defaults(run=convert_command, parser=convert_parser)
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
    layers = layer_names(args.model) if args.model else None
    limits = AdapterLimits(max_rank=args.max_lora_rank, layers=layers)
    if _is_adapter(args.dir):
        infos = [inspect_adapter(args.dir, limits)]
    else:
        folder = AdapterFolder(args.dir, args.trusted_root)
        names, roots = folder.names(), folder.real_roots
        infos = [inspect_adapter(args.dir / name, limits, roots) for name in names]
        left_out = _left_out(folder, names)
        infos += [without_adapter(args.dir / name, why) for name, why in left_out.items()]
        _require_some(infos, args.dir)
    if args.json:
        print(json.dumps([_as_json(info) for info in infos], indent=2))
    else:
        print(_table(infos))
    return 1 if any(info.problems for info in infos) else 0


def _left_out(folder: AdapterFolder, names: Sequence[str]) -> dict[str, str]:
    """Why folders that seem to be meant for adapters are none."""
    others = [name for name in sorted(folder.entries().keys() - set(names)) if name[0] != "."]
    found = {name: folder.why_left_out(name) for name in others}
    return {shown(name): why for name, why in found.items() if why is not None}


def convert_command(args: argparse.Namespace) -> int:
    """Convert what is pickled in `args.dir`; 0 unless one of them could not be."""
    folder = AdapterFolder(args.dir)
    names = () if _is_adapter(args.dir) else folder.names()
    paths = [args.dir / name for name in names] or [args.dir]
    pickled = [path for path in paths if is_only_pickled(path)]
    _require_some(pickled, args.dir, "adapters whose weights are pickled alone")
    refused = 0
    for path in pickled:
        try:
            convert(path, largest_bytes(), folder.real_roots if names else ())
            told = f"{WEIGHTS_NAME} written"
        except AdapterError as error:
            refused += 1
            told = str(error)
        print(f"{printable(path.absolute().name)}: {printable(told)}")
    return 1 if refused else 0


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


def _is_adapter(folder: Path) -> bool:
    """Is it one adapter, and not a folder of them?"""
    try:
        return (folder / CONFIG_NAME).exists() or any(folder.glob("adapter_model.*"))
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} cannot be read ({error}); way out: make it readable"
        ) from error


def _require_some(found: Sequence[object], folder: Path, what: str = "adapters") -> None:
    if not found:
        raise ConfigError(
            f"{str(folder)!r} holds 0 {what}, the least is 1; way out: give an adapter's folder "
            f"with its {CONFIG_NAME}, or the folder above"
        )


def _as_json(info: AdapterInfo) -> dict[str, object]:
    return {**dataclasses.asdict(info), "path": str(info.path)}


def _table(infos: Sequence[AdapterInfo]) -> str:
    rows = [_COLUMNS, *(row for info in infos for row in _rows(info))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "{:<{}}  {:>{}}  {:<{}}  {:>{}}  {:<{}}  {:<{}}"
    return "\n".join(form.format(*chain(*zip(row, widths, strict=True))).rstrip() for row in rows)


def _rows(info: AdapterInfo) -> list[tuple[str, ...]]:
    """One line, and one more for each further problem."""
    first, *others = [printable(problem) for problem in info.problems] or ["-"]
    row = (
        printable(info.name),
        str(info.rank or "-"),
        ",".join(map(printable, info.modules))[:60] or "-",
        f"{info.nbytes / _MIB:.2f}",
        info.dtype or "-",
        first,
    )
    return [row, *(("", "", "", "", "", other) for other in others)]


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(whole(1, MAX_RANK)(part) for part in text.split(","))
