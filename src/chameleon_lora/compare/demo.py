"""The demo is a comparison: a made model, made adapters, stock vLLM and then Chameleon."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import assert_never

from chameleon_lora.bench.discovery import adapters_below
from chameleon_lora.compare.arms import STOCK, arm_of
from chameleon_lora.compare.comparison import ComparisonPlan
from chameleon_lora.compare.points import LoadPoints, TrafficSpec
from chameleon_lora.servers.launching import CPU_ENVIRONMENT, EngineShape, ServedModel
from chameleon_lora.servers.tiny_model import (
    TARGET_MODULES,
    ensure_adapters,
    ensure_demo_model,
    ensure_tiny_model,
)
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload

LOAD = 0.95  # of the capacity measured on stock vLLM: the paper's "high load"
POPULARITY_ALPHA = 1.0
SLO_S = 2.0
SHAPE = EngineShape(target_modules=TARGET_MODULES)


class DemoModel(Enum):
    """Which model the demo serves."""

    SMOLLM2 = "smollm2"
    TINY = "tiny"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose, and what tests do.

    Attributes:
        seconds: length of each run.
        rate_per_s: requests per second, None for `LOAD` times what stock vLLM can do here.
        repeats: how often each server is run; every second time in the other order.
        arms: the servers, the base first, as for `chameleon compare`.
    """

    out_dir: Path
    cache_dir: Path
    model: DemoModel = DemoModel.SMOLLM2
    seconds: float = 60.0
    rate_per_s: float | None = None
    seed: int = 0
    adapters: int = 24
    repeats: int = 1
    arms: tuple[str, ...] = (STOCK, "chameleon")


def demo_plan(options: DemoOptions, command: str) -> ComparisonPlan:
    """Makes the model and the adapters, and says what to compare; lengths fit a CPU of two cores.

    Raises:
        BenchError: the model cannot be made.
    """
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
    served = ServedModel.of(model_dir, adapters_dir, SHAPE)
    load = LOAD if options.rate_per_s is None else 1.0
    return ComparisonPlan(
        arms=tuple(arm_of(text, served) for text in options.arms),
        load_points=LoadPoints(options.adapters, SHAPE.slots, (load,)),
        traffic=_traffic(options, adapters_below(adapters_dir), token_ids, lengths),
        folder=options.out_dir,
        seats=SHAPE.seats,
        capacity_per_s=options.rate_per_s,
        slo_s=SLO_S,
        repeats=options.repeats,
        environment=CPU_ENVIRONMENT,
        command=command,
    )


def _traffic(
    options: DemoOptions,
    adapters: tuple[NamedAdapter | str, ...],
    token_ids: tuple[int, int],
    lengths: LengthScale,
) -> TrafficSpec:
    """The nth adapter is asked for in proportion to 1/n; all of each run counts."""

    def requests_of(
        rate_per_s: float, seconds: float, names: Sequence[NamedAdapter | str], seed: int
    ) -> tuple[TimedRequest, ...]:
        return make_workload(
            WorkloadSpec(rate_per_s, seconds, POPULARITY_ALPHA, lengths), names, seed
        )

    described = {"model": options.model.value, "popularity": POPULARITY_ALPHA}
    return TrafficSpec(
        requests_of, adapters, token_ids, options.seconds, 0.0, options.seed, described
    )
