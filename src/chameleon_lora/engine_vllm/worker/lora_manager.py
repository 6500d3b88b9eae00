"""Chameleon's LoRA manager for a vLLM worker: vLLM's own, with the adapters in the scheduler's hand."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm.config import settings_of
from chameleon_lora.engine_vllm.lora_backend import backend_of
from chameleon_lora.engine_vllm.processes import is_child
from chameleon_lora.engine_vllm.worker.agreement import Agreement, gather_of_engine
from chameleon_lora.engine_vllm.worker.copier import copier_for
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore
from chameleon_lora.engine_vllm.worker.disk_cache import DiskCache
from chameleon_lora.engine_vllm.worker.loader import Loader, VllmReader, prepare_loader_thread
from chameleon_lora.engine_vllm.worker.loader_process import LoaderProcess
from chameleon_lora.engine_vllm.worker.paged_lora import is_paged, paged_manager_class
from chameleon_lora.engine_vllm.worker.slots import Slots
from chameleon_lora.engine_vllm.worker.worker_adapters import WorkerAdapters
from chameleon_lora.errors import AdapterError
from chameleon_lora.settings import ServingSettings

_logger = logging.getLogger(f"vllm.{__name__}")
_ASK_ENGINE = (
    "a worker alone cannot add, remove or pin an adapter here, nor take its weights from memory: the "
    "engine's scheduler decides for all workers; way out: ask the engine (LLMEngine or AsyncLLM .add_lora, "
    ".remove_lora, .pin_lora), with a LoRARequest whose lora_path is a folder"
)


@functools.cache
def manager_class() -> type[Any]:  # noqa: C901  # one class, all of its methods counted
    """The class ChameleonLoRAManager; imports vLLM at the first call."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    class ChameleonLoRAManager(LRUCacheWorkerLoRAManager):
        """Warm-up dummies go vLLM's way; everything else waits for the scheduler's commands."""

        adapters: WorkerAdapters

        def create_lora_manager(self, model: Any, vllm_config: Any) -> Any:
            serving = settings_of(vllm_config).serving
            if backend_of(vllm_config, serving.lora_backend).is_paged:
                self._manager_cls = paged_manager_class()
            wrapped = super().create_lora_manager(model, vllm_config)
            workers = workers_on_host(vllm_config.parallel_config)
            self.adapters = make_worker_adapters(self, serving, workers)
            return wrapped

        def _apply_adapters(self, lora_requests: set[Any]) -> None:
            if not self._is_dummy_run(lora_requests):
                self.adapters.ensure_active(lora_requests)
            elif not is_paged(self._adapter_manager):
                self.adapters.lend_slots()
                super()._apply_adapters(lora_requests)

        def add_dummy_lora(self, lora_request: Any, rank: int) -> bool:
            paged = is_paged(self._adapter_manager)
            return paged or bool(super().add_dummy_lora(lora_request, rank))

        def add_adapter(self, lora_request: Any) -> bool:
            if not self._is_dummy_run({lora_request}):
                raise AdapterError(_ASK_ENGINE)
            return bool(super().add_adapter(lora_request))

        def remove_adapter(self, adapter_id: int) -> bool:
            if adapter_id not in self._adapter_manager.list_adapters():
                raise AdapterError(_ASK_ENGINE)
            return bool(super().remove_adapter(adapter_id))

        def pin_adapter(self, adapter_id: int) -> bool:  # noqa: ARG002  # vLLM's name
            raise AdapterError(_ASK_ENGINE)

        def remove_all_adapters(self) -> None:
            super().remove_all_adapters()
            self.adapters.forget_slots()

        def list_adapters(self) -> set[int]:
            registered = set(super().list_adapters())
            is_warming_up = self._cached_dummy_lora is not False
            return registered if is_warming_up else registered | self.adapters.host_ids

        def _is_dummy_run(self, lora_requests: set[Any]) -> bool:
            registered = self._adapter_manager.list_adapters()
            return self._cached_dummy_lora is not False or any(
                request.lora_int_id in registered for request in lora_requests if request
            )

    return ChameleonLoRAManager


def make_worker_adapters(
    worker_manager: Any, serving: ServingSettings, workers: int = 1
) -> WorkerAdapters:
    """The command side of a manager whose layers exist already, one of so many on this host."""
    prepare_thread = functools.partial(prepare_loader_thread, worker_manager.device)
    make_reader = functools.partial(_make_reader, worker_manager, serving, workers, prepare_thread)
    manager = worker_manager._adapter_manager
    loader, reader = _loader(
        make_reader, prepare_thread, in_process=is_paged(manager) and is_child()
    )
    device = DeviceStore(
        copier_for(worker_manager.device, prepare_thread), debug_checks=serving.debug_checks
    )
    return WorkerAdapters(
        manager.paged if is_paged(manager) else Slots(manager, device),
        loader,
        reader,
        device,
        Agreement(gather_of_engine()),
    )


def _make_reader(
    worker_manager: Any,
    serving: ServingSettings,
    workers: int,
    prepare_thread: Callable[[], None],
) -> VllmReader:
    folder = Path(serving.disk_cache_dir) if serving.disk_cache_dir else None
    disk_cache = (
        DiskCache(folder, serving.disk_cache_bytes, workers, prepare_thread)
        if serving.disk_cache_bytes
        else None
    )
    return VllmReader(
        worker_manager,
        disk_cache,
        serves_partial=serving.serves_partial,
        converts_bin=serving.converts_bin,
    )


def _loader(
    make_reader: Callable[[], VllmReader], prepare_thread: Callable[[], None], *, in_process: bool
) -> tuple[Loader | LoaderProcess, VllmReader | None]:
    """What reads adapters, and its reader if that is here."""
    if in_process:
        try:
            return LoaderProcess(make_reader, prepare_thread), None
        except OSError as error:
            _logger.warning("Adapters are read by a thread, for no process can start: %s", error)
    reader = make_reader()
    return Loader(reader, prepare_thread), reader


def workers_on_host(parallel_config: Any) -> int:
    """How many workers share this host's disk."""
    nodes = getattr(parallel_config, "nnodes_within_dp", 1)  # vLLM 0.26: one
    engines = max(1, parallel_config.data_parallel_size_local)
    return int(parallel_config.world_size // nodes * engines)
