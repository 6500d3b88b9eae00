"""What Chameleon's scheduler changes of vLLM's where it is made."""

from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.core.scheduler import scheduler_class

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class FakeScheduler:
    """What ours reads of vLLM's scheduler, for a model without adapters."""

    def __init__(self, vllm_config: Any, policy: Any) -> None:
        self.vllm_config = vllm_config
        self.policy = policy
        self.lora_config = vllm_config.lora_config
        self.max_num_running_reqs = 4
        self.block_size = 16
        group = SimpleNamespace(
            kv_cache_spec=SimpleNamespace(page_size_bytes=1024), layer_names=["0"]
        )
        self.kv_cache_config = SimpleNamespace(num_blocks=64, kv_cache_groups=[group])
        self.kv_cache_manager = SimpleNamespace(block_pool=None)
        self.waiting: Any = None


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_no_clients_priority_chooses_whom_vllm_preempts(policy: str) -> None:
    """Whatever --scheduling-policy says, vLLM's own loop preempts the last of its running requests."""
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    config = SimpleNamespace(additional_config=None, lora_config=None)
    scheduler = scheduler_class(FakeScheduler)(config, SchedulingPolicy(policy))
    assert SchedulingPolicy.FCFS is scheduler.policy
