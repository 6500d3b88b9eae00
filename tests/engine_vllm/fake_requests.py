"""vLLM's requests as far as the driver reads them, its own for its client, and drivers over the real policy."""

from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Any

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.versions import Version
from chameleon_lora.engine_vllm.messages import Announcement, LoadAdapter, Loaded
from chameleon_lora.policy.plan import StepBudget, StepPlan
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from chameleon_lora.settings import ServingSettings

MIB = 1 << 20
LIMITS = EngineLimits(seats=8, slots=2, kv_tokens=4096, kv_bytes_per_token=1024)
ROOM = StepBudget(seats=8, kv_tokens=4096, batch_tokens=2048)


@dataclass(frozen=True)
class FakeLora:
    """What the driver reads of a LoRARequest."""

    lora_int_id: int


@dataclass(frozen=True)
class FakeParams:
    """What the driver reads of SamplingParams."""

    extra_args: dict[str, Any] | None = None


@dataclass(frozen=True)
class FakePooling:
    """What the driver reads of PoolingParams."""

    extra_kwargs: dict[str, Any] | None = None


@dataclass(eq=False)
class FakeRequest:
    """What the driver reads of vLLM's Request; `end` is its finish reason, None while it lives."""

    request_id: str
    lora_request: FakeLora | None = None
    num_prompt_tokens: int = 10
    prompt_token_ids: Sized | None = None
    max_tokens: int = 20
    sampling_params: FakeParams | None = field(default_factory=FakeParams)
    pooling_params: FakePooling | None = None
    num_output_tokens: int = 0
    block_hashes: list[bytes] = field(default_factory=list)
    end: str | None = None

    def is_finished(self) -> bool:
        """Whether vLLM is done with it."""
        return self.end is not None

    def get_finished_reason(self) -> str | None:
        """stop, length, abort or error."""
        return self.end


def make_driver(
    *,
    trusts_hints: bool = False,
    limits: EngineLimits = LIMITS,
    settings: PolicySettings | None = None,
) -> Driver:
    """A driver over Chameleon's own policy."""
    policy = Scheduler(settings or PolicySettings(), limits)
    return Driver(policy, ServingSettings(trusts_hints=trusts_hints))


def announced(name: str, fingerprint: str = "1", path: str | None = None) -> Announcement:
    """An adapter of 1 MiB and rank 8."""
    return Announcement(name, path or f"/adapters/{name}", fingerprint, MIB, 8)


def request_for(request_id: str, version: Version, **fields: Any) -> FakeRequest:
    """A request that names this version of an adapter."""
    return FakeRequest(request_id, FakeLora(version.id), **fields)


def carry_out(driver: Driver, now_s: float, room: StepBudget = ROOM) -> tuple[StepPlan, list[str]]:
    """One step in which vLLM admits the whole plan and all loads are done at once.

    Answers the plan and whom vLLM admitted.
    """
    plan = driver.begin_step(room, now_s)
    admitted = []
    while driver.planned:
        admitted.append(driver.planned.popleft().request_id)
    driver.end_step()
    loads = [command for command in driver.commands(plan) if isinstance(command, LoadAdapter)]
    driver.acknowledge([Loaded(load.adapter_id, MIB, 8, 0.1) for load in loads], now_s)
    return plan, admitted


def core_request(name: str, prompt: list[int], params: Any) -> Any:
    """vLLM's own EngineCoreRequest, as its client makes it, of SamplingParams or PoolingParams."""
    from vllm import PoolingParams
    from vllm.v1.engine import EngineCoreRequest

    is_pooling = isinstance(params, PoolingParams)
    request = EngineCoreRequest(
        request_id=name,
        prompt_token_ids=list(prompt),
        mm_features=None,
        sampling_params=None if is_pooling else params,
        pooling_params=params if is_pooling else None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    request.external_req_id = "client's"
    return request
