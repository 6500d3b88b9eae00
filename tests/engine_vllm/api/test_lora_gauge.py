"""vLLM's gauge of adapters: how many series are left after many steps."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from chameleon_lora.engine_vllm import SCHEDULER  # noqa: E402
from chameleon_lora.engine_vllm.api.metrics import MOST_SERIES, bounding  # noqa: E402


@dataclass
class Logger:
    """What of vLLM's PrometheusStatLogger takes part: a gauge with a series for each mix of names."""

    scheduler: str = SCHEDULER
    registry: Any = field(default_factory=prometheus_client.CollectorRegistry)

    def __post_init__(self) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(scheduler_cls=self.scheduler)
        )
        self.gauge_lora_info = prometheus_client.Gauge(
            "lora_info", "As vLLM's.", ["running"], registry=self.registry
        )

    def stock_record(self, running: str) -> None:
        """vLLM's own: the newest series has the latest time."""
        self.gauge_lora_info.labels(running=running).set_to_current_time()

    @property
    def series(self) -> list[str]:
        """Those on the page."""
        page = prometheus_client.generate_latest(self.registry).decode()
        return [line for line in page.splitlines() if line.startswith("lora_info{")]


record = bounding(Logger.stock_record)


def test_the_page_does_not_grow_with_every_mix_of_adapters() -> None:
    """A thousand steps, each with another mix, leave 64 series at most, the newest among them."""
    logger = Logger()
    for step in range(1000):
        record(logger, f"mix-{step}")
        assert len(logger.series) <= MOST_SERIES
    assert logger.series[-1].startswith('lora_info{running="mix-999"}')


def test_stock_vllm_is_left_as_it_is() -> None:
    """Without Chameleon's scheduler each mix stays."""
    logger = Logger(scheduler="vllm.v1.core.sched.scheduler.Scheduler")
    for step in range(200):
        record(logger, f"mix-{step}")
    assert 200 == len(logger.series)


def test_where_several_processes_share_their_metrics_nothing_is_cleared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their series lie in files, from which nothing can be taken."""
    logger = Logger()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    for step in range(200):
        record(logger, f"mix-{step}")
    assert 200 == len(logger.series)
