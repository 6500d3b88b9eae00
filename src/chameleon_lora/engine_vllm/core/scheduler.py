"""vLLM's scheduler with Chameleon's lanes as its waiting queue.

`schedule` asks the policy for a plan, shows vLLM the planned requests as its queue, and lets vLLM's
own loop allocate memory and admit them. Nothing of that loop is rewritten.
"""

import copy
import functools
import importlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec

from chameleon_lora import __version__
from chameleon_lora.adapters import AdapterLimits, read_fingerprint, require_servable
from chameleon_lora.engine_vllm.cells import Cells, cells_of
from chameleon_lora.engine_vllm.config import settings_of
from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks, block_bytes_of
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.versions import Version
from chameleon_lora.engine_vllm.core.waiting_queue import EmptyQueue, WaitingQueue
from chameleon_lora.engine_vllm.errors import failure_output
from chameleon_lora.engine_vllm.event_log import event_log
from chameleon_lora.engine_vllm.hooks import require_hooks
from chameleon_lora.engine_vllm.messages import ACKS_ATTRIBUTE, COMMANDS_ATTRIBUTE, Announcement
from chameleon_lora.engine_vllm.sources import resolved
from chameleon_lora.errors import UnsupportedEngineError, UnsupportedLayoutError
from chameleon_lora.policy.plan import Failure, StepBudget
from chameleon_lora.policy.request import RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits
from chameleon_lora.settings import Settings

IDLE_S = 0.001
KEYED_BY = "chameleon_keyed_by"  # on a request: the inner name by which its blocks are keyed
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


def limits_of(scheduler: Any, cells: Cells, *, has_device: bool) -> EngineLimits:
    """What this engine has in all, read off its configuration.

    `has_device` asks for adapters in idle KV blocks, where this KV cache can hold them.
    """
    blocks = scheduler.kv_cache_config.num_blocks
    spec = scheduler.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = len(scheduler.kv_cache_config.kv_cache_groups[0].layer_names)
    return EngineLimits(
        seats=scheduler.max_num_running_reqs,
        slots=cells.slots,
        slot_parts=cells.parts,
        max_rank=cells.max_rank,
        kv_tokens=blocks * scheduler.block_size,
        kv_bytes_per_token=max(1, spec.page_size_bytes * layers // scheduler.block_size),
        block_tokens=scheduler.block_size,
        block_bytes=block_bytes(scheduler) if has_device and scheduler.lora_config else 0,
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
            cells = cells_of(self.vllm_config, settings.serving.slot_parts)
            self.chameleon = driver_for(self, settings, cells)
            self.lora_config: Any = with_room_for(self.vllm_config.lora_config, cells.count)
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


def described(settings: Settings, cells: Cells | None) -> str:
    """What an engine of Chameleon's begins its log with; `cells` are None without LoRA."""
    vllm_version = importlib.import_module("vllm").__version__
    adapters = "no adapters without --enable-lora"
    if cells is not None:
        share = f"up to {cells.parts} adapters" if cells.parts > 1 else "one adapter"
        host_bytes = settings.policy.cache.host_bytes
        memory = "unlimited" if host_bytes is None else f"{host_bytes} bytes"
        adapters = (
            f"{cells.slots} slots of rank {cells.max_rank}, {share} a slot, host memory for adapters "
            f"{memory}"
        )
    return f"Chameleon {__version__} on vLLM {vllm_version}: {adapters}, preset {settings.preset.value}"


def driver_for(scheduler: Any, settings: Settings, cells: Cells) -> Driver:
    """The policy for this engine, over its block pool if blocks can hold adapters; the log is told."""
    _logger.info("%s", described(settings, cells if scheduler.lora_config else None))
    limits = limits_of(scheduler, cells, has_device=settings.policy.device.max_bytes != 0)
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


def with_room_for(lora_config: Any, adapters: int) -> Any:
    """The scheduler's own copy of the configuration, which lets a batch mix so many adapters.

    Which of them fit is the policy's choice; vLLM counts one adapter a slot.
    """
    if lora_config is None:
        return None
    roomy = copy.copy(lora_config)
    roomy.max_loras = adapters
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


def name_version(driver: Driver, request: Any) -> Version | None:
    """Let the request name one version of its adapter, by the engine's own id and inner name.

    Answers the version if no other request can mean it: it is to be retired once this one is added.
    """
    adapter = request.lora_request
    if adapter is None:
        return None
    version = version_meant(driver, adapter)
    is_passing = version is None and driver.has_api_server
    if is_passing:  # let in just before it was unloaded
        version = driver.pass_by(unseen(adapter))
    else:
        version = version or announce_unseen(driver, adapter)
        driver.known_as(adapter.lora_int_id, version.source.name)
    request.lora_request = msgspec.structs.replace(
        adapter, lora_name=version.inner_name, lora_int_id=version.id, load_inplace=False
    )
    if version.inner_name != getattr(request, KEYED_BY, adapter.lora_name):
        request.block_hashes.clear()  # they were keyed by another name
        request.update_block_hashes()
    return version if is_passing else None


def version_meant(driver: Driver, adapter: Any) -> Version | None:
    """What vLLM's LoRARequest means of what is served; None if that is to be announced.

    Without an API server, vLLM's own rule holds where a path leads nowhere: the id alone tells. Trainers
    name an adapter that they have added by its id and any path.
    """
    version = driver.versions.current(adapter.lora_name)
    if driver.has_api_server:
        return version
    if adapter.load_inplace:
        return None
    path = adapter.lora_path
    if version is not None and version.source.path == path:
        return version
    known = driver.client_ids.name(adapter.lora_int_id)
    if known is None or not leads_nowhere(path):
        return None
    _tell_once(adapter.lora_int_id, path, known)
    return driver.versions.current(known)


def leads_nowhere(path: str) -> bool:
    """Whether there is no folder at a path, and no hub can have an adapter of that name."""
    is_hub_name = path.count("/") == 1 and path[0] not in "/.~"
    return not is_hub_name and not os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111  # never raises


@functools.lru_cache(256)
def _tell_once(client_id: int, path: str, name: str) -> None:
    _logger.warning(
        "There is no adapter at %r; requests with lora_int_id %d get %r, which has that id.",
        path, client_id, name,
    )  # fmt: skip


def add_adapter(driver: Driver, adapter: Any, limits: AdapterLimits) -> None:
    """Serve what vLLM's LoRARequest names, by that id too, and read it when it is asked for.

    Raises:
        AdapterError: naming the adapter and why it cannot be served.
    """
    version = version_meant(driver, adapter)
    if not driver.has_api_server and (version is None or version.source.path == adapter.lora_path):
        folder = resolved(adapter.lora_path, adapter.lora_name)
        info = require_servable(folder, limits, name=adapter.lora_name)
        found = {"nbytes": info.nbytes, "rank": info.rank}
        version = announce_unseen(driver, adapter, fingerprint=read_fingerprint(folder), **found)
    if version is not None:  # else it was unloaded meanwhile
        driver.known_as(adapter.lora_int_id, version.source.name)


def announce_unseen(driver: Driver, adapter: Any, **found: Any) -> Version:
    """Serve an adapter of which vLLM's LoRARequest is known, and what was found; there is no API server."""
    source = replace(unseen(adapter), **found)
    return driver.renew(source) if adapter.load_inplace else driver.announce(source)


def unseen(adapter: Any) -> Announcement:
    """What vLLM's LoRARequest says of an adapter."""
    is_3d = bool(getattr(adapter, "is_3d_lora_weight", False))
    return Announcement(adapter.lora_name, adapter.lora_path, is_3d=is_3d)


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
