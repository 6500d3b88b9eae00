"""Keeps vLLM's gauge of running and waiting adapters from growing for ever.

vLLM gives it a series for each combination of names that a step sees, and takes none away: with many
adapters nearly every step adds one, to the API server's memory and to its page. Only the newest counts.
"""

import os
from collections.abc import Callable
from typing import Any

from chameleon_lora.engine_vllm.config import is_chameleon_scheduler

MOST_SERIES = 64
SEEN = "chameleon_steps_seen"
_SEVERAL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"  # then the series are in files that only grow


def bounding(stock: Callable[..., None]) -> Callable[..., None]:
    """PrometheusStatLogger.record that leaves at most MOST_SERIES of them, the newest among them."""

    def record(logger: Any, *args: Any, **kwargs: Any) -> None:
        if _has_series(logger):
            seen = getattr(logger, SEEN, 0)
            setattr(logger, SEEN, seen + 1)
            if seen % MOST_SERIES == 0:
                logger.gauge_lora_info.clear()
        stock(logger, *args, **kwargs)

    return record


def _has_series(logger: Any) -> bool:
    """Whether it is a Chameleon engine's, with a gauge that can forget."""
    is_ours = is_chameleon_scheduler(logger.vllm_config.scheduler_config.scheduler_cls)
    can_forget = hasattr(getattr(logger, "gauge_lora_info", None), "clear")
    return is_ours and can_forget and _SEVERAL_PROCESSES not in os.environ
