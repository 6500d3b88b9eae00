"""A run is a folder: config.json, records.jsonl, summary.json, and samples.jsonl if the server told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.sample import Sample

CONFIG, RECORDS, SUMMARY, SAMPLES = "config.json", "records.jsonl", "summary.json", "samples.jsonl"
_Line = TypeVar("_Line", RequestRecord, Sample)


class Purpose(Enum):
    """What a run was made for, as its config.json says."""

    RUN = "run"  # by itself
    LOAD = "load"  # at a share of the base arm's capacity
    SEARCH = "search"  # for the highest load that meets the objective
    CLIFF = "cliff"  # with so many adapters for each slot


def write_run(
    folder: Path,
    config: Mapping[str, Any],
    records: Sequence[RequestRecord],
    summary: Mapping[str, Any],
    samples: Sequence[Sample] = (),
) -> None:
    """Makes `folder` and its files; `config` holds what is needed to run it again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
    _write_lines(folder / RECORDS, records)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf8")
    if samples:
        _write_lines(folder / SAMPLES, samples)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says of a run.

    Raises:
        BenchError: there is none, or it is no JSON object; the message names the file.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read ({error}); a run's folder has one") from error
    if not isinstance(config, dict):
        raise BenchError(f"{path} holds no JSON object; run the benchmark again")
    return config


def read_records(folder: Path) -> tuple[RequestRecord, ...]:
    """The records of a run, in the file's order, times to the microsecond.

    Raises:
        BenchError: a line is not a record; the message names file and line.
    """
    return _read_lines(folder / RECORDS, RequestRecord, "a request record")


def read_samples(folder: Path) -> tuple[Sample, ...]:
    """What the server said of itself during a run, by time; empty if it told nothing.

    Raises:
        BenchError: a line is not a sample; the message names file and line.
    """
    path = folder / SAMPLES
    if not path.exists():
        return ()
    return _read_lines(path, Sample, "a sample")


def folder_for(out: Path | None, name: str) -> Path:
    """The folder that a user asked for, new or empty; where none was, a new one that is made.

    Raises:
        ConfigError: `out` holds something, or is no folder.
    """
    if out is None:
        return new_folder(Path("runs"), name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} exists already and is not overwritten; name a folder that is new or empty"
        )
    return out


def new_folder(parent: Path, name: str) -> Path:
    """Makes and names the first of parent/name-1, parent/name-2, ... that does not exist yet."""
    number = 1
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def _read_lines(path: Path, kind: type[_Line], called: str) -> tuple[_Line, ...]:
    """Numbers are finite: JSON has no others, and a time that is none would spoil all figures."""
    decode = msgspec.json.Decoder(kind).decode
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
        try:
            lines.append(decode(line))
        except msgspec.MsgspecError as error:
            raise BenchError(
                f"{path}:{number} is not {called} ({error}); run the benchmark again"
            ) from error
    return tuple(lines)


def _write_lines(path: Path, rows: Sequence[RequestRecord] | Sequence[Sample]) -> None:
    text = "".join(json.dumps(_rounded(asdict(row))) + "\n" for row in rows)
    path.write_text(text, encoding="utf8")


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Times to the microsecond: more digits are noise and double the file."""
    return {name: _microseconds(value) for name, value in fields.items()}


def _microseconds(value: object) -> object:
    match value:
        case float():
            return round(value, 6)
        case tuple():
            return [_microseconds(item) for item in value]
        case _:
            return value
