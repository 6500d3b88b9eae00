"""vLLM's scheduler with Chameleon's lanes as its waiting queue.

`schedule` asks the policy for a plan, shows vLLM the planned requests as its queue, and lets vLLM's
own loop allocate memory and admit them. Nothing of that loop is rewritten.
"""

import copy
import functools
import importlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from chameleon_lora import __version__
from chameleon_lora.engine_vllm.config import settings_of
from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks, block_bytes_of
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.requested_version import name_version
from chameleon_lora.engine_vllm.core.waiting_queue import EmptyQueue, WaitingQueue
from chameleon_lora.engine_vllm.errors import failure_output
from chameleon_lora.engine_vllm.event_log import event_log
from chameleon_lora.engine_vllm.hooks import require_hooks
from chameleon_lora.engine_vllm.lora_backend import ChosenBackend, backend_of
from chameleon_lora.engine_vllm.messages import ACKS_ATTRIBUTE, COMMANDS_ATTRIBUTE
from chameleon_lora.errors import UnsupportedEngineError, UnsupportedLayoutError
from chameleon_lora.policy.plan import Failure, StepBudget
from chameleon_lora.policy.request import RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits
from chameleon_lora.settings import Settings

IDLE_S = 0.001
_logger = logging.getLogger(f"vllm.{__name__}")


def make_scheduler(vllm_config: Any, **kwargs: Any) -> Any:
    """The scheduler for this engine; see `engine_vllm.scheduler`."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler as SyncScheduler

    require_hooks(settings_of(vllm_config).serving)
    require_executor(vllm_config.parallel_config)
    is_async = vllm_config.scheduler_config.async_scheduling
    return scheduler_class(AsyncScheduler if is_async else SyncScheduler)(
        vllm_config=vllm_config, **kwargs
    )


def require_executor(parallel_config: Any) -> None:
    """Nothing if commands reach every worker of this engine, from one scheduler.

    Raises:
        UnsupportedEngineError: naming the backend that cannot be used.
    """
    from vllm import envs

    backend = parallel_config.distributed_executor_backend
    is_old_ray = backend == "ray" and not getattr(envs, "VLLM_USE_RAY_V2_EXECUTOR_BACKEND", True)
    if backend == "external_launcher" or is_old_ray:
        raise UnsupportedEngineError(
            f"--distributed-executor-backend {backend} does not bring commands to all workers"
            f"{' with VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0' if is_old_ray else ''}; use mp"
        )


def limits_of(scheduler: Any, *, has_device: bool, is_paged: bool = False) -> EngineLimits:
    """What this engine has in all, read off its configuration.

    `has_device` asks for adapters in idle KV blocks, where this KV cache can hold them; adapters that
    are used from host memory are as near there.
    """
    blocks, lora = scheduler.kv_cache_config.num_blocks, scheduler.vllm_config.lora_config
    lends = has_device and not is_paged and lora is not None
    spec = scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = len(scheduler.kv_cache_config.kv_cache_groups[0].layer_names)
    return EngineLimits(
        seats=scheduler.max_num_running_reqs,
        slots=0 if is_paged else 1 if lora is None else lora.max_loras,
        kv_tokens=blocks * scheduler.block_size,
        kv_bytes_per_token=max(1, spec.page_size_bytes * layers // scheduler.block_size),
        block_tokens=scheduler.block_size,
        block_bytes=block_bytes(scheduler) if lends else 0,
        is_paged=is_paged,
    )


def block_bytes(scheduler: Any) -> int:
    """Bytes of one KV block; 0, with a warning, if blocks of this KV cache cannot hold adapters."""
    try:
        return block_bytes_of(scheduler.kv_cache_config)
    except UnsupportedLayoutError as error:
        _logger.warning("Adapters are not kept in idle KV memory, only in host memory: %s", error)
        return 0


@functools.cache
def scheduler_class(base: type[Any]) -> type[Any]:  # noqa: C901  # one class, all of it counted
    """Chameleon's subclass of vLLM's Scheduler or AsyncScheduler."""

    class ChameleonScheduler(base):
        """vLLM's scheduler; which requests it sees waiting is the policy's choice."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            ignore_priorities(self)
            settings = settings_of(self.vllm_config)
            self.chameleon = driver_for(self, settings)
            self.lora_config: Any = with_room_for(self)
            self.waiting = WaitingQueue(self.chameleon)
            if hasattr(self, "skipped_waiting"):  # vLLM 0.26
                self.skipped_waiting = EmptyQueue(self.waiting)
            self._chameleon_failures: list[tuple[Any, Failure]] = []
            self.chameleon_is_due = False  # a step, though there is no request
            self._chameleon_checks = settings.serving.debug_checks

        def add_request(self, request: Any) -> None:
            self.chameleon.tick(time.monotonic())  # noqa: TID251  # the driver's clock
            is_new = request.request_id not in self.requests
            passing = name_version(self.chameleon, request) if is_new else None
            super().add_request(request)
            if passing is not None:
                self.chameleon.retire(passing)

        def has_requests(self) -> bool:
            return self.chameleon_is_due or bool(super().has_requests())

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            self.chameleon_is_due = False
            plan = self.chameleon.begin_step(room_of(self), time.monotonic())  # noqa: TID251  # likewise
            self._chameleon_failures += end_failed(self, plan.fail)
            squash(self, plan.squash)
            output = super().schedule(*args, **kwargs)
            self.chameleon.end_step()
            setattr(output, COMMANDS_ATTRIBUTE, self.chameleon.commands(plan))
            if not output.total_num_scheduled_tokens and len(self.waiting):
                time.sleep(IDLE_S)  # all wait for loads: leave the processor to the loader
            return output

        def update_from_output(self, scheduler_output: Any, model_output: Any) -> Any:
            acks = getattr(model_output, ACKS_ATTRIBUTE, ())
            self.chameleon.acknowledge(acks, time.monotonic())  # noqa: TID251  # likewise
            outputs = super().update_from_output(scheduler_output, model_output)
            if self._chameleon_checks and is_idle(self):
                self.chameleon.check_balance()
            tell(outputs, self._chameleon_failures)
            self._chameleon_failures = []
            return outputs

        def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
            if is_reset := bool(super().reset_prefix_cache(*args, **kwargs)):
                self.chameleon.empty_device()
            return is_reset

    return ChameleonScheduler


def described(settings: Settings, lora_config: Any, backend: ChosenBackend) -> str:
    """What an engine of Chameleon's begins its log with; `lora_config` is None without LoRA."""
    vllm_version = importlib.import_module("vllm").__version__
    adapters = "no adapters without --enable-lora"
    if lora_config is not None:
        host_bytes = settings.policy.cache.host_bytes
        memory = "unlimited" if host_bytes is None else f"{host_bytes} bytes"
        places = (
            f"adapters of up to rank {lora_config.max_lora_rank} used where they lie"
            if backend.is_paged
            else f"{lora_config.max_loras} slots of rank {lora_config.max_lora_rank}"
        )
        adapters = f"{places} ({backend.reason}), host memory for adapters {memory}"
    return f"Chameleon {__version__} on vLLM {vllm_version}: {adapters}, preset {settings.preset.value}"


def driver_for(scheduler: Any, settings: Settings) -> Driver:
    """The policy for this engine, over its block pool if blocks can hold adapters; the log is told."""
    backend = backend_of(scheduler.vllm_config, settings.serving.lora_backend)
    _logger.info("%s", described(settings, scheduler.lora_config, backend))
    has_device = settings.policy.device.max_bytes != 0
    limits = limits_of(scheduler, has_device=has_device, is_paged=backend.is_paged)
    blocks = LoanedBlocks(scheduler.kv_cache_manager.block_pool) if limits.block_bytes else None
    lora = scheduler.lora_config
    return Driver(
        Scheduler(settings.policy, limits),
        settings.serving,
        blocks,
        event_log(),
        most_client_ids=lora.max_cpu_loras if lora else 0,
    )


def ignore_priorities(scheduler: Any) -> None:
    """Afterwards no client's `priority` chooses whom vLLM preempts, whatever its flags say."""
    scheduler.policy = type(scheduler.policy)("fcfs")


def is_idle(scheduler: Any) -> bool:
    """Whether no request runs or waits, and none that ended still has KV blocks."""
    holding = ("kv_holding_waiting", "deferred_frees")  # 0.26 has neither
    has_requests = scheduler.running or len(scheduler.waiting)
    return not has_requests and not any(getattr(scheduler, name, None) for name in holding)


def with_room_for(scheduler: Any) -> Any:
    """The LoRA configuration by which vLLM's loop counts a batch's adapters: without slots as many as requests."""
    lora = scheduler.vllm_config.lora_config
    if lora is None or not scheduler.chameleon.policy.limits.is_paged:
        return lora
    roomy = copy.copy(lora)
    roomy.max_loras = scheduler.max_num_running_reqs
    return roomy


def room_of(scheduler: Any) -> StepBudget:
    """What the engine has left before this step."""
    running = scheduler.running
    seats = getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs)
    busy = len(running) + getattr(scheduler, "num_waiting_for_streaming_input", 0)
    size, planned, growth_blocks = scheduler.block_size, 0, 0
    for request in running:
        done = request.num_computed_tokens
        due = request.num_tokens_with_spec + request.num_output_placeholders
        planned += max(1, due - done)
        growth_blocks += max(0, -(-due // size) - -(-done // size))
    free_blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    lending = scheduler.chameleon.loans
    return StepBudget(
        seats=seats - busy,
        kv_tokens=free_blocks * size,
        batch_tokens=scheduler.max_num_scheduled_tokens - planned,
        is_empty=not running,
        free_blocks=free_blocks if lending is None else lending.free_blocks,
        growth_blocks=growth_blocks,
    )


def end_failed(scheduler: Any, failures: Iterable[Failure]) -> list[tuple[Any, Failure]]:
    """End requests whose adapter cannot be loaded; whom clients are to be told of in this step."""
    from vllm.v1.request import RequestStatus

    ended = []
    for failure in failures:
        request = scheduler.chameleon.forget(failure.request_id)
        if request is not None and not request.is_finished():
            scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
            ended.append((request, failure))
    return ended


def squash(scheduler: Any, request_ids: Iterable[RequestId]) -> None:
    """Preempt these requests; vLLM puts them back through the queue."""
    for request_id in request_ids:
        request = scheduler.requests.get(request_id)
        if request is not None and request in scheduler.running:
            scheduler.running.remove(request)
            squash_one(scheduler, request)


def squash_one(scheduler: Any, request: Any) -> None:
    """Preempt one request that is out of `running`; its stream resumes later where it stopped.

    Output still in flight is dropped, for the request may run again in the same step.
    """
    now_s = time.monotonic()  # noqa: TID251  # vLLM's own time base for events
    if hasattr(request, "drop_stale_output"):
        scheduler._preempt_request(request, now_s, drop_stale_output=True)
    else:  # vLLM 0.26
        request.async_tokens_to_discard = request.num_output_placeholders
        request.num_output_placeholders = 0
        scheduler._preempt_request(request, now_s)
    scheduler.prev_step_scheduled_req_ids.discard(request.request_id)


def tell(outputs: dict[int, Any], failures: Iterable[tuple[Any, Failure]]) -> None:
    """Add the reasons to what the clients of these requests get from this step."""
    from vllm.v1.engine import EngineCoreOutputs

    for request, failure in failures:
        mine = outputs.setdefault(request.client_index, EngineCoreOutputs())
        mine.outputs = [*mine.outputs, failure_output(request, failure)]
