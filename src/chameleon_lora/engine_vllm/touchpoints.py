"""Everything private of vLLM that Chameleon stands on, checked before an engine starts.

vLLM's internals may change in any release. A missing piece is reported by name and version, and the
engine does not start, rather than misbehave later.
"""

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from chameleon_lora.errors import UnsupportedEngineError

TESTED = ("0.26", "0.32")


@dataclass(frozen=True, slots=True)
class Touchpoint:
    """An attribute that must exist, and parameters it must take if it is called."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()


SCHEDULER = "vllm.v1.core.sched.scheduler"
MODELS = "vllm.entrypoints.openai.models.serving"
SERVING = "vllm.entrypoints.serve.engine.serving"
ASYNC_LLM = "vllm.v1.engine.async_llm"
TOUCHPOINTS = (
    Touchpoint(SCHEDULER, "Scheduler.schedule"),
    Touchpoint(SCHEDULER, "Scheduler.add_request", ("request",)),
    Touchpoint(SCHEDULER, "Scheduler.finish_requests", ("request_ids", "finished_status")),
    Touchpoint(
        SCHEDULER, "Scheduler.update_from_output", ("scheduler_output", "model_runner_output")
    ),
    Touchpoint(SCHEDULER, "Scheduler._preempt_request", ("request", "timestamp")),
    Touchpoint("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Touchpoint(SCHEDULER, "Scheduler.reset_prefix_cache"),
    Touchpoint("vllm.v1.core.block_pool", "BlockPool.get_num_free_blocks"),
    Touchpoint("vllm.v1.core.block_pool", "BlockPool.get_new_blocks", ("num_blocks",)),
    Touchpoint("vllm.v1.core.block_pool", "BlockPool.free_blocks", ("ordered_blocks",)),
    Touchpoint("vllm.v1.core.block_pool", "BlockPool._maybe_evict_cached_block", ("block",)),
    Touchpoint("vllm.v1.core.kv_cache_utils", "make_block_hash_with_group_id"),
    Touchpoint("vllm.v1.request", "Request.update_block_hashes"),
    Touchpoint("vllm.v1.request", "Request.get_finished_reason"),
    Touchpoint("vllm.v1.request", "RequestStatus.FINISHED_ERROR"),
    Touchpoint("vllm.v1.engine", "EngineCoreOutput"),
    Touchpoint("vllm.v1.engine.core", "EngineCore.add_lora", ("lora_request",)),
    Touchpoint("vllm.v1.engine.core_client", "AsyncMPClient.call_utility_async", ("method",)),
    Touchpoint(ASYNC_LLM, "AsyncLLM.add_lora", ("lora_request",)),
    Touchpoint(ASYNC_LLM, "AsyncLLM.shutdown", ("timeout",)),
    Touchpoint(ASYNC_LLM, "AsyncLLM.check_health"),
    Touchpoint("vllm.v1.engine.output_processor", "OutputProcessor.process_outputs"),
    Touchpoint("vllm.v1.engine.output_processor", "OutputProcessor.get_num_unfinished_requests"),
    Touchpoint("vllm.v1.engine.output_processor", "RequestOutputCollector.put"),
    Touchpoint("vllm.v1.metrics.loggers", "PrometheusStatLogger.record"),
    Touchpoint("vllm.entrypoints.serve", "register_vllm_serve_api_routers", ("app",)),
    Touchpoint(MODELS, "OpenAIServingModels.init_static_loras"),
    Touchpoint(MODELS, "OpenAIServingModels.is_base_model", ("model_name",)),
    Touchpoint(MODELS, "OpenAIServingModels.load_lora_adapter", ("request",)),
    Touchpoint(MODELS, "OpenAIServingModels.unload_lora_adapter", ("request",)),
    Touchpoint(MODELS, "OpenAIServingModels.resolve_lora", ("lora_name",)),
    Touchpoint("vllm.entrypoints.serve.engine.serving", "BaseServing._check_model", ("request",)),
    Touchpoint("vllm.v1.worker.gpu_worker", "Worker.execute_model", ("scheduler_output",)),
    Touchpoint("vllm.v1.worker.gpu_worker", "Worker.sample_tokens"),
    Touchpoint("vllm.v1.worker.gpu_worker", "Worker.sleep"),
    Touchpoint("vllm.v1.worker.gpu_worker", "Worker.wake_up"),
    Touchpoint("vllm.v1.worker.lora_model_runner_mixin", "LRUCacheWorkerLoRAManager"),
    Touchpoint("vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager._load_adapter"),
    Touchpoint("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU._apply_shrink"),
    Touchpoint("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU._apply_expand"),
    Touchpoint("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_embedding"),
    Touchpoint("vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU.add_lora_logits"),
    Touchpoint("vllm.lora.ops.torch_ops.lora_ops", "bgmv_shrink"),
    Touchpoint("vllm.lora.ops.torch_ops.lora_ops", "bgmv_expand"),
    Touchpoint("vllm.lora.ops.torch_ops.lora_ops", "bgmv_expand_slice"),
    Touchpoint("vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager._apply_adapters"),
    Touchpoint("vllm.lora.model_manager", "LoRAModelManager._create_merged_loras_inplace"),
    Touchpoint("vllm.lora.model_manager", "LoRAModelManager._get_lora_layer_weights"),
    Touchpoint("vllm.lora.model_manager", "LoRAModelManager.set_adapter_mapping"),
)


def check_engine() -> None:
    """Nothing if the installed vLLM has every piece.

    Raises:
        UnsupportedEngineError: naming vLLM's version and each missing piece.
    """
    check(TOUCHPOINTS)


def check(touchpoints: tuple[Touchpoint, ...]) -> None:
    """The same for a list of pieces."""
    missing = [lack for point in touchpoints if (lack := _lack(point))]
    if missing:
        version = importlib.import_module("vllm").__version__
        raise UnsupportedEngineError(
            f"vLLM {version} lacks {'; '.join(missing)}. Chameleon is tested with vLLM "
            f"{' and '.join(TESTED)}: install one of them, or start vLLM without "
            "--scheduler-cls chameleon_lora.engine_vllm.scheduler"
        )


def _lack(point: Touchpoint) -> str | None:
    """What is missing of one piece, or None."""
    found: Any
    try:
        found = importlib.import_module(point.module)
        for part in point.name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return f"{point.module}.{point.name}"
    if point.parameters:
        known = inspect.signature(found).parameters
        absent = [name for name in point.parameters if name not in known]
        if absent:
            return f"parameter {', '.join(absent)} of {point.module}.{point.name}"
    return None
