"""Which runs lie in the folders named, and what is in them."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chameleon_lora.bench.run_folder import (
    CONFIG,
    RECORDS,
    SAMPLES,
    SUMMARY,
    Purpose,
    read_config,
    read_records,
    read_samples,
)
from chameleon_lora.compare.comparison_file import (
    COMPARISON,
    ComparisonFile,
    read_comparison,
)
from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.metrics.serving import Window
from chameleon_lora.report.run import RecordedRun, figures_of

OURS = frozenset({"label", "purpose", "rate_per_s"})
"""Keys that tell a run's config.json from a model's."""


@dataclass(frozen=True, slots=True)
class _AdapterCard:
    name: str
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class _RunConfig:
    """What a report needs of a run's config.json; what else it holds is left alone.

    Attributes:
        label: None where the server's name is one, as in runs of older versions.
        slots: max_loras; None if it is not known.
        command: a line or its words; empty if it is not known.
    """

    label: str | None = None
    server: Any = None
    purpose: Purpose = Purpose.RUN
    repeat: int = 0
    load: float | None = None
    rate_per_s: float | None = None
    duration_s: float = math.inf
    warmup_s: float = 0.0
    slo_ttft_s: float | None = None
    adapters: tuple[_AdapterCard, ...] = ()
    active_adapters: int | None = None
    slots: int | None = None
    command: str | tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report is made of.

    Attributes:
        arms: labels, the comparison's first and in its order.
        skipped: a sentence for each folder or file that could not be read.
    """

    arms: tuple[str, ...]
    runs: tuple[RecordedRun, ...]
    comparison: ComparisonFile | None
    skipped: tuple[str, ...]

    @property
    def slo_s(self) -> float | None:
        """The limit on time to first token; None if there is none, or not one for all runs."""
        if self.comparison:
            return self.comparison.slo_ttft_s
        limits = {run.slo_s for run in self.runs}
        return limits.pop() if len(limits) == 1 else None


def read_evidence(paths: Sequence[Path]) -> Evidence:
    """The runs at `paths` and below them, each once, by path; what is broken is left out and named.

    Raises:
        ConfigError: a path is no folder or holds no run, no run can be read, or there are several
            comparisons.
    """
    folders: dict[Path, None] = {}
    comparisons: dict[Path, None] = {}
    for path in paths:
        found = tuple(_runs_below(path))
        if not found:
            raise ConfigError(
                f"{path} holds no run; name a folder that `chameleon bench`, `chameleon compare` or "
                f"`chameleon demo` wrote (a run has {CONFIG} and {RECORDS})"
            )
        folders |= dict.fromkeys(found)
        comparisons |= dict.fromkeys(sorted(path.rglob(COMPARISON)))
    if len(comparisons) > 1:
        raise ConfigError(
            f"there are {len(comparisons)} comparisons: {', '.join(map(str, comparisons))}; "
            "name one at a time"
        )
    return _evidence(tuple(folders), tuple(comparisons))


def read_run(folder: Path, slo_s: float | None = None) -> RecordedRun:
    """One run; `slo_s` is the limit on time to first token where the run itself names none.

    Raises:
        BenchError: the folder is broken or half-written; the message names file and reason.
    """
    fields = read_config(folder)
    if not (folder / RECORDS).exists():
        raise BenchError(f"{folder} is half-written: it has no {RECORDS}; run it again")
    try:
        config = msgspec.convert(fields, _RunConfig)
    except msgspec.ValidationError as error:
        raise BenchError(f"{folder / CONFIG} holds what no run holds ({error})") from error
    try:
        return _run(folder, config, slo_s)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{folder} cannot be read ({error})") from error


def _evidence(folders: Sequence[Path], comparisons: Sequence[Path]) -> Evidence:
    runs: list[RecordedRun] = []
    comparison: ComparisonFile | None = None
    skipped: list[str] = []
    for path in comparisons:
        try:
            comparison = read_comparison(path)
        except BenchError as error:
            skipped.append(str(error))
    for folder in folders:
        try:
            runs.append(read_run(folder, comparison.slo_ttft_s if comparison else None))
        except BenchError as error:
            skipped.append(str(error))
    if not runs:
        raise ConfigError("no run can be read: " + "; ".join(skipped))
    labels = [arm.label for arm in comparison.arms] if comparison else []
    labels += [run.label for run in runs]
    with_runs = {run.label for run in runs}
    arms = tuple(label for label in dict.fromkeys(labels) if label in with_runs)
    return Evidence(arms, tuple(runs), comparison, tuple(skipped))


def _runs_below(path: Path) -> Iterator[Path]:
    """Folders that hold a run or the rest of one, by path."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; name a run's folder, or one that holds some")
    for parent, names, files in os.walk(path):
        names.sort()
        folder = Path(parent)
        has_rest = bool({RECORDS, SUMMARY, SAMPLES} & set(files)) and COMPARISON not in files
        if RECORDS in files or (CONFIG in files and (has_rest or _is_ours(folder))):
            yield folder


def _is_ours(folder: Path) -> bool:
    """Is config.json, alone in its folder, a run's? One that cannot be read may be."""
    try:
        return bool(OURS & read_config(folder).keys())
    except BenchError:
        return True


def _run(folder: Path, config: _RunConfig, default_slo_s: float | None) -> RecordedRun:
    sent = read_records(folder)
    window = Window(config.warmup_s, config.duration_s)
    slo_s = default_slo_s if config.slo_ttft_s is None else config.slo_ttft_s
    figures = figures_of(sent, window, slo_s)
    if figures is None:
        raise BenchError(f"{folder / RECORDS} holds no request that counts; run it again")
    is_shown_whole = config.purpose in (Purpose.RUN, Purpose.LOAD)
    active, slots = config.active_adapters, config.slots
    return RecordedRun(
        folder=str(folder),
        label=config.label or str(config.server or folder.name),
        purpose=config.purpose,
        repeat=config.repeat,
        load=config.load,
        rate_per_s=config.rate_per_s,
        slo_s=slo_s,
        ranks={
            adapter.name: adapter.rank for adapter in config.adapters if adapter.rank is not None
        },
        active_over_slots=active / slots if active is not None and slots else None,
        command=_command_line(config.command),
        figures=figures,
        records=window.measured(sent) if is_shown_whole else (),
        samples=read_samples(folder) if is_shown_whole else (),
    )


def _command_line(command: str | tuple[str, ...]) -> str:
    """Words as one line; what is one line already stays."""
    return command if isinstance(command, str) else shlex.join(command)
