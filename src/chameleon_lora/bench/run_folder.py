"""A run is a folder: config.json, records.jsonl, summary.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.summary import RunSummary

CONFIG, RECORDS, SUMMARY = "config.json", "records.jsonl", "summary.json"


def write_run(
    folder: Path,
    config: Mapping[str, Any],
    records: Sequence[RequestRecord],
    summary: RunSummary,
) -> None:
    """Makes `folder` and its three files; `config` holds what is needed to run it again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
    lines = "".join(json.dumps(_rounded(asdict(record))) + "\n" for record in records)
    (folder / RECORDS).write_text(lines, encoding="utf8")
    (folder / SUMMARY).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf8")


def read_records(folder: Path) -> tuple[RequestRecord, ...]:
    """The records of a run, in the file's order, times to the microsecond.

    Raises:
        BenchError: a line is not a record; the message names file and line.
    """
    path = folder / RECORDS
    return tuple(
        _record(line, f"{path}:{number}")
        for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1)
    )


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


def _record(line: str, place: str) -> RequestRecord:
    try:
        fields = json.loads(line)
        fields["token_times_s"] = tuple(fields["token_times_s"])
        return RequestRecord(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(
            f"{place} is not a request record ({error}); run the benchmark again"
        ) from error


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
