"""What Chameleon's scheduler changes of vLLM's where it is made."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora import __version__
from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.scheduler import described, require_executor, scheduler_class
from chameleon_lora.engine_vllm.lora_backend import ChosenBackend
from chameleon_lora.engine_vllm.messages import Loaded, PromoteAdapter
from chameleon_lora.errors import UnsupportedEngineError
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import DeviceSettings, PolicySettings
from chameleon_lora.settings import ServingSettings, parse_settings
from tests.engine_vllm.block_pools import make_pool
from tests.engine_vllm.fake_requests import LIMITS, MIB, ROOM, announced

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

    def reset_prefix_cache(self) -> bool:
        """The pool's own."""
        return bool(self.kv_cache_manager.block_pool.reset_prefix_cache())


CONFIG = SimpleNamespace(additional_config=None, lora_config=None)


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_no_clients_priority_chooses_whom_vllm_preempts(policy: str) -> None:
    """Whatever --scheduling-policy says, vLLM's own loop preempts the last of its running requests."""
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    scheduler = scheduler_class(FakeScheduler)(CONFIG, SchedulingPolicy(policy))
    assert SchedulingPolicy.FCFS is scheduler.policy


@pytest.mark.parametrize(
    ("slots", "given", "expected"),
    [
        (4, {"serving": {"lora_backend": "slots"}}, "4 slots of rank 64 (why), host memory for "
         "adapters unlimited, preset chameleon"),
        (8, {"preset": "paper", "serving": {"lora_backend": "slots"}, "cache": {"host_bytes": 4096}},
         "8 slots of rank 64 (why), host memory for adapters 4096 bytes, preset paper"),
        (8, {"serving": {"lora_backend": "paged"}}, "adapters of up to rank 64 used where they lie "
         "(why), host memory for adapters unlimited, preset chameleon"),
        (None, {"preset": "vllm"}, "no adapters without --enable-lora, preset vllm"),
    ],
)  # fmt: skip
def test_the_log_begins_with_what_the_engine_has(
    slots: int | None, given: dict[str, Any], expected: str
) -> None:
    """Versions, slots, memory and preset."""
    vllm = pytest.importorskip("vllm")
    begin = f"Chameleon {__version__} on vLLM {vllm.__version__}: "
    settings = parse_settings(given)
    backend = ChosenBackend(settings.serving.lora_backend, "why")
    lora = SimpleNamespace(max_loras=slots, max_lora_rank=64) if slots else None
    assert begin + expected == described(settings, lora, backend)


def driver_with_adapter_in(pool: Any) -> Driver:
    """A driver whose one adapter has a block of the pool."""
    device = DeviceSettings(headroom_share=0.0)
    limits = replace(LIMITS, kv_tokens=21 * 16, block_bytes=MIB)
    policy = Scheduler(PolicySettings(device=device), limits)
    driver = Driver(policy, ServingSettings(), LoanedBlocks(pool))
    version = driver.announce(announced("a"))
    driver.pin("a", is_pinned=True)
    room = replace(ROOM, free_blocks=20)
    driver.commands(driver.begin_step(room, 1.0))
    driver.acknowledge([Loaded(version.id, MIB, 8, 0.1)], 1.0)
    assert [PromoteAdapter] == [type(c) for c in driver.commands(driver.begin_step(room, 2.0))]
    return driver


@pytest.mark.parametrize("has_requests", [True, False])
def test_adapters_keep_their_blocks_when_vllm_refuses_a_reset(has_requests: bool) -> None:
    """It does while requests hold blocks; adapters' blocks are no reason to."""
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    scheduler = scheduler_class(FakeScheduler)(CONFIG, SchedulingPolicy.FCFS)
    pool = scheduler.kv_cache_manager.block_pool = make_pool(20)
    scheduler.chameleon = driver = driver_with_adapter_in(pool)
    pool.get_new_blocks(int(has_requests))
    assert has_requests is not scheduler.reset_prefix_cache()
    assert driver.loans is not None
    assert int(has_requests) == 20 - int(has_requests) - driver.loans.free_blocks


@pytest.mark.parametrize(
    ("backend", "is_refused"),
    [(None, False), ("mp", False), ("uni", False), ("ray", False), ("external_launcher", True)],
)
def test_backends_that_leave_workers_without_commands_are_refused(
    backend: str | None, is_refused: bool
) -> None:
    """By name; Ray is one of them with its former executor alone."""
    config = SimpleNamespace(distributed_executor_backend=backend)
    with pytest.raises(UnsupportedEngineError) if is_refused else contextlib.nullcontext():
        require_executor(config)


def test_rays_former_executor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the switch, where there is one."""
    if not hasattr(pytest.importorskip("vllm.envs"), "VLLM_USE_RAY_V2_EXECUTOR_BACKEND"):
        pytest.skip("this vLLM has the later executor only")
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    with pytest.raises(UnsupportedEngineError, match="VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0"):
        require_executor(SimpleNamespace(distributed_executor_backend="ray"))
