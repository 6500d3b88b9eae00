"""Runs that need no server, and folders of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_lora.bench.run_folder import write_run
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.sample import LaneSample, Sample

ARMS = {"stock": 4.0, "ours <1>": 1.0}
"""The sample comparison's arms, and how slow each is; the second's name must be escaped."""
LOADS = (0.7, 0.9)
ADAPTERS = tuple(f"adapter-{number}" for number in range(4))
RANKS = {name: 8 << number for number, name in enumerate(ADAPTERS)}
SLO_S = 0.5


def record(
    index: int,
    ttft_s: float = 0.1,
    *,
    arrival_s: float | None = None,
    adapter: str | None = "adapter-0",
    late_s: float = 0.0,
    error: str | None = None,
    residency: str | None = None,
    tokens: int = 3,
) -> RequestRecord:
    """A request a second by default, with an answer of `tokens` tokens, 20 ms apart."""
    arrival_s = float(index) if arrival_s is None else arrival_s
    times_s = tuple(arrival_s + ttft_s + 0.02 * number for number in range(tokens))
    return RequestRecord(
        index=index,
        adapter=adapter,
        arrival_s=arrival_s,
        sent_s=arrival_s + late_s,
        first_token_s=None if error else times_s[0],
        token_times_s=() if error else times_s,
        end_s=times_s[-1],
        prompt_tokens=10,
        output_tokens=tokens,
        error=error,
        residency=residency,
    )


def config(label: str = "stock", **others: Any) -> dict[str, Any]:
    """A run's config.json, with what `others` say instead."""
    return {
        "label": label,
        "purpose": "load",
        "repeat": 0,
        "load": 0.7,
        "rate_per_s": 7.0,
        "duration_s": 60.0,
        "warmup_s": 0.0,
        "slo_ttft_s": SLO_S,
        "adapters": [{"name": name, "rank": rank} for name, rank in RANKS.items()],
        "active_adapters": len(ADAPTERS),
        "slots": 2,
        "command": f"chameleon bench --label '{label}'",
    } | others


def write(
    folder: Path,
    records: Sequence[RequestRecord] | None = None,
    samples: Sequence[Sample] = (),
    **fields: Any,
) -> Path:
    """A run's folder; three requests if none are given."""
    found = tuple(map(record, range(3))) if records is None else records
    write_run(folder, config(**fields), found, {}, samples)
    return folder


def lane(number: int, waiting: int, held: str | None = None) -> LaneSample:
    """A lane in which two run."""
    return LaneSample(number, waiting, 1, 2, 50, 100, held)


def write_comparison(folder: Path) -> Path:
    """Two arms at two loads, two repeats, and a cliff; only the second arm tells of itself."""
    for label, slowness in ARMS.items():
        arm = folder / label.partition(" ")[0]
        for load in LOADS:
            for repeat in (0, 1):
                place = arm / f"{repeat}-load-{load}"
                write(
                    place,
                    _records(0.05 * slowness * load, label),
                    _samples() if label != "stock" else (),
                    label=label, load=load, rate_per_s=10 * load, repeat=repeat,
                )  # fmt: skip
        for over in (0.5, 1.0, 2.0):
            records = _records(0.1 + 0.05 * slowness * over, label)
            active: dict[str, Any] = {
                "active_adapters": int(2 * over),
                "load": None,
                "purpose": "cliff",
            }
            write(arm / f"0-cliff-{over}", records, label=label, **active)
    (folder / "comparison.json").write_text(json.dumps(comparison()), encoding="utf8")
    return folder


def comparison(**others: Any) -> dict[str, Any]:
    """The sample's comparison.json, with what `others` say instead."""
    base, other = ARMS
    figures = (("ttft_p99", 0.5, 0.4, 0.6), ("output_throughput", 0.9, 0.8, 0.95))
    ratios = [
        {
            "label": other, "figure": figure, "purpose": "load", "point": load, "base": 1.0,
            "value": 0.5, "ratio": ratio, "low": low, "high": high, "pairs": 2,
        }
        for figure, ratio, low, high in figures
        for load in LOADS
    ]  # fmt: skip
    return {
        "base": base,
        "command": "chameleon compare --arms stock,ours",
        "machine": "2 cores",
        "figures": {name: name for name, *_ in figures},
        "capacity_per_s": 10.0,
        "failed": 14,
        "slo_ttft_s": SLO_S,
        "stopped": "the time budget is spent",
        "arms": [
            {"label": base, "command": ["vllm", "serve"], "differs": []},
            {"label": other, "command": ["chameleon", "serve"], "differs": ["preset"]},
        ],
        "ratios": ratios,
        "sustained": [
            {
                "label": base,
                "rate_per_s": 8.0,
                "ratio": None,
                "low": None,
                "high": None,
                "pairs": 2,
            },
            {"label": other, "rate_per_s": 12.0, "ratio": 1.5, "low": 0.9, "high": 1.6, "pairs": 2},
        ],
        "cliff": [],
        "troubles": [],
    } | others


def _records(ttft_s: float, label: str) -> tuple[RequestRecord, ...]:
    """Forty: the adapters in turn, each slower than the one before; one fails."""
    return tuple(
        record(
            index,
            ttft_s * (1 + 0.01 * index + 0.3 * (index % 4)),
            arrival_s=index / 2,
            adapter=ADAPTERS[index % 4],
            error="HTTP 500: no" if index == 7 else None,
            residency=None if label == "stock" else ("slot", "disk")[index % 2],
        )
        for index in range(40)
    )


def _samples() -> tuple[Sample, ...]:
    return tuple(
        Sample(
            float(at), None, None, 0.5, (lane(0, at % 3, "quota" if at % 2 else None), lane(1, 0)),
            {"slot": 1 << 20, "host": 5 << 20, "disk": 9 << 20}, 1 << 20,
        )
        for at in range(10)
    )  # fmt: skip
