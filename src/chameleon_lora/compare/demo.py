"""The same minute of traffic on stock vLLM and on Chameleon, one after the other."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, assert_never

from chameleon_lora.bench.replay import Progress, Target, replay
from chameleon_lora.bench.run_folder import write_run
from chameleon_lora.compare.arm_run import measure_capacity
from chameleon_lora.compare.demo_adapters import RANKS, adapter_names, ensure_adapters
from chameleon_lora.compare.demo_servers import (
    BASE_MODEL_NAME,
    ServerSetup,
    chameleon_command,
    server_environment,
    stock_command,
)
from chameleon_lora.compare.demo_table import ArmResult, comparison_table
from chameleon_lora.compare.observations import bytes_so_far, read_observations
from chameleon_lora.metrics.summary import summarise
from chameleon_lora.servers.process import ServerSpec, free_port, running_server
from chameleon_lora.servers.tiny_model import ensure_demo_model, ensure_tiny_model
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload

Say = Callable[[str], None]
CommandOf = Callable[[ServerSetup, int], list[str]]

POPULARITY_ALPHA = 1.0
LOAD = 0.95  # of the capacity measured on stock vLLM: the paper's "high load"
PROBE_REQUESTS = 64  # one round of the length table, so that its mean is the run's
WARM_UP_REQUESTS = 4
_PROBE_SEED_OFFSET, _WARM_UP_SEED_OFFSET = 1_000_003, 2_000_003


class DemoModel(Enum):
    """Which model the demo serves."""

    SMOLLM2 = "smollm2"
    TINY = "tiny"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose.

    Attributes:
        rate_per_s: requests per second, None for `LOAD` times what stock vLLM can do here.
        seconds: length of the traffic.
    """

    out_dir: Path
    cache_dir: Path
    model: DemoModel = DemoModel.SMOLLM2
    seconds: float = 60.0
    rate_per_s: float | None = None
    seed: int = 0
    adapters: int = 24


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Both runs; `capacity_per_s` is None if the user gave the rate."""

    stock: ArmResult
    chameleon: ArmResult
    rate_per_s: float
    capacity_per_s: float | None
    table: str


@dataclass(frozen=True, slots=True)
class _Stage:
    """The model, the adapters and what their sizes ask of the traffic."""

    setup: ServerSetup
    names: tuple[str, ...]
    lengths: LengthScale
    token_ids: tuple[int, int]
    say: Say
    out_dir: Path

    def workload(self, rate_per_s: float, duration_s: float, seed: int) -> tuple[TimedRequest, ...]:
        """Open-loop traffic for the stage's adapters."""
        spec = WorkloadSpec(rate_per_s, duration_s, POPULARITY_ALPHA, self.lengths)
        return make_workload(spec, self.names, seed)

    def target(self, base_url: str) -> Target:
        """A server of this stage as the replay sees it."""
        return Target(base_url, BASE_MODEL_NAME, self.token_ids)


def run_demo(
    options: DemoOptions,
    say: Say,
    *,
    stock_command: CommandOf = stock_command,
    chameleon_command: CommandOf = chameleon_command,
) -> DemoResult:
    """Both servers' runs, and their files in `out_dir`; about six minutes on two cores.

    `say` gets a line whenever there is something to tell; the commands start the two servers.

    Raises:
        BenchError: the model cannot be made, or a server does not start.
    """
    stage = _set_stage(options, say)
    capacity_per_s: float | None = None
    rate_per_s = options.rate_per_s
    if rate_per_s is None:
        capacity_per_s = _capacity(stage, stock_command, options.seed)
        rate_per_s = LOAD * capacity_per_s
        say(f"stock vLLM completes {capacity_per_s:.2f} requests/s; sending {rate_per_s:.2f}")
    requests = stage.workload(rate_per_s, options.seconds, options.seed)
    config = _config_of(options, stage.setup, rate_per_s, capacity_per_s)
    stock = _run_arm(stage, "stock", stock_command, requests, config)
    chameleon = _run_arm(stage, "chameleon", chameleon_command, requests, config)
    table = comparison_table(stock, chameleon)
    (options.out_dir / "table.txt").write_text(table + "\n", encoding="utf8")
    return DemoResult(stock, chameleon, rate_per_s, capacity_per_s, table)


def _set_stage(options: DemoOptions, say: Say) -> _Stage:
    """Model and adapters on disk, and lengths that the model can answer in time on two cores."""
    say(f"preparing the model {options.model.value} and {options.adapters} adapters")
    match options.model:
        case DemoModel.SMOLLM2:
            model_dir, token_ids = ensure_demo_model(options.cache_dir), (1_000, 40_000)
            lengths = LengthScale(1 / 16, (4, 192), (4, 48))
        case DemoModel.TINY:
            model_dir, token_ids = ensure_tiny_model(options.cache_dir), (3, 512)
            lengths = LengthScale(1 / 8, (4, 384), (4, 96))
        case _:
            assert_never(options.model)
    adapters_dir = ensure_adapters(model_dir, options.cache_dir, options.adapters)
    setup = ServerSetup(model_dir, adapters_dir)
    names = adapter_names(adapters_dir)
    return _Stage(setup, names, lengths, token_ids, say, options.out_dir)


def _capacity(stage: _Stage, command_of: CommandOf, seed: int) -> float:
    """Requests/s of a server on this machine that has as much work as it can take.

    The server is stopped afterwards, so that the run itself starts on a fresh one.
    """
    requests = stage.workload(1.0, 4.0 * PROBE_REQUESTS, seed + _PROBE_SEED_OFFSET)
    spec = _server_spec(stage, "probe", command_of)
    stage.say("starting stock vLLM to measure its capacity")
    with running_server(spec) as base_url:
        target = stage.target(base_url)
        _warm_up(stage, target, seed)
        stage.say(f"sending {PROBE_REQUESTS} requests at once")
        return measure_capacity(target, requests[:PROBE_REQUESTS], seats=stage.setup.seats)


def _run_arm(
    stage: _Stage,
    name: str,
    command_of: CommandOf,
    requests: tuple[TimedRequest, ...],
    config: dict[str, Any],
) -> ArmResult:
    """One server's run of `requests`, written to its folder."""
    spec = _server_spec(stage, name, command_of)
    folder = spec.log.parent
    observed = folder / "observations.jsonl"
    stage.say(f"starting {name}")
    with running_server(spec) as base_url:
        target = stage.target(base_url)
        _warm_up(stage, target, int(config["seed"]))
        skip_bytes = bytes_so_far(observed)
        stage.say(f"{name}: sending {len(requests)} requests in {config['seconds']:.0f} s")
        records = asyncio.run(
            replay(target, requests, on_progress=lambda at: stage.say(_progress_line(name, at)))
        )
    summary = summarise(records)
    config = config | {"server": name, "command": list(spec.command)}
    write_run(folder, config, records, asdict(summary))
    return ArmResult(name, folder, records, summary, read_observations(observed, skip_bytes))


def _server_spec(stage: _Stage, name: str, command_of: CommandOf) -> ServerSpec:
    folder, port = stage.out_dir / name, free_port()
    return ServerSpec(
        command=command_of(stage.setup, port),
        port=port,
        log=folder / "server.log",
        environment=server_environment(folder / "observations.jsonl"),
    )


def _warm_up(stage: _Stage, target: Target, seed: int) -> None:
    """A few requests to the base model: a process's first steps are slow. Touches no adapter."""
    spec = WorkloadSpec(10.0, float(WARM_UP_REQUESTS), 0.0, stage.lengths, base_share=1.0)
    requests = make_workload(spec, stage.names, seed + _WARM_UP_SEED_OFFSET)
    asyncio.run(replay(target, requests[:WARM_UP_REQUESTS]))


def _progress_line(name: str, at: Progress) -> str:
    failed = f", {at.failed} failed" if at.failed else ""
    return (
        f"{name}: {at.now_s:3.0f} s, {at.sent} of {at.total} sent, "
        f"{at.sent - at.completed - at.failed} open, {at.completed} completed{failed}"
    )


def _config_of(
    options: DemoOptions,
    setup: ServerSetup,
    rate_per_s: float,
    capacity_per_s: float | None,
) -> dict[str, Any]:
    """What config.json says of both runs."""
    return {
        "seed": options.seed,
        "seconds": options.seconds,
        "rate_per_s": rate_per_s,
        "capacity_per_s": capacity_per_s,
        "model": options.model.value,
        "ranks": list(RANKS),
        "popularity_alpha": POPULARITY_ALPHA,
        "setup": {name: _plain(value) for name, value in asdict(setup).items()},
    }


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
