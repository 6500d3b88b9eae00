"""Every place of vLLM, and of its HTTP server, that Chameleon stands on, and what it puts there.

vLLM's internals may change in any release. What is replaced is replaced only because nothing can be
registered there that serves `chameleon serve` and plain `vllm serve --scheduler-cls` alike; the reason
stands above the rows. Rows of one attribute stand in the order in which they wrap it, inner ones first.
"""

from dataclasses import dataclass
from enum import Enum

from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE
from chameleon_lora.engine_vllm.messages import (
    ANNOUNCE,
    ARRIVALS,
    METRICS,
    PIN,
    STATE,
    TRY,
    WITHDRAW,
)

TESTED = ("0.26", "0.32", "0.33")


class Part(Enum):
    """Who needs a row. The plugin runs in each of vLLM's processes and installs all rows in each."""

    API = "the API server"
    KEYS = "an API server with tenants or an admin key"
    CORE = "the engine's process"
    WORKER = "the workers"
    STEP_LOG = f"engines that {STEPS_VARIABLE} asks to be recorded"
    LAUNCHER = "`chameleon serve`, before vLLM loads plugins"


@dataclass(frozen=True, slots=True)
class Hook:
    """One attribute of vLLM: it must exist; with `wrapper`, ours must be found there.

    Attributes:
        target: the attribute of a module, of a class in it, or of that class's instances.
        wrapper: below `engine_vllm`; a function from vLLM's attribute to what takes its place.
        parameters: it must take them, if it is called.
        elsewhere: module and target in other versions of vLLM.
        is_new: vLLM has no such attribute; `wrapper` itself becomes it.
        since: the first tested version that has it; an older one may be without.
    """

    part: Part
    module: str
    target: str
    wrapper: str | None = None
    parameters: tuple[str, ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    is_new: bool = False
    since: str | None = None

    @property
    def name(self) -> str:
        """The place in vLLM, as messages name it."""
        return f"{self.module}.{self.target}"


_API, _KEYS, _CORE, _WORKER, _STEPS = Part.API, Part.KEYS, Part.CORE, Part.WORKER, Part.STEP_LOG
SCHEDULER = "vllm.v1.core.sched.scheduler"
_MODELS = "vllm.entrypoints.openai.models.serving"
_SERVING = "vllm.entrypoints.serve.engine.serving"
_POOLING = "vllm.entrypoints.pooling.base.serving"
_CLIENT = "vllm.v1.engine.async_llm"
_LLM = "vllm.entrypoints.llm"
_MESSAGES = "vllm.entrypoints.anthropic.serving"
_CHAT = "vllm.entrypoints.openai.chat_completion.serving"
_RESPONSES = "vllm.entrypoints.openai.responses.serving"
_OUTPUTS = "vllm.v1.engine.output_processor"
_ENGINE = "vllm.v1.engine.core"
_POOL = "vllm.v1.core.block_pool"
_WORKERS = "vllm.v1.worker.gpu_worker"  # CPUWorker and XPUWorker inherit from its Worker
_MIXIN = "vllm.v1.worker.lora_model_runner_mixin"
_PROTOCOL = "vllm.entrypoints.serve.engine.protocol"
_OLD_PROTOCOL = "vllm.entrypoints.openai.engine.protocol"  # 0.26


def _each(part: Part, module: str, owner: str, *attributes: str) -> tuple[Hook, ...]:
    """Rows that are stood on as they are."""
    prefix = f"{owner}." if owner else ""
    return tuple(Hook(part, module, f"{prefix}{attribute}") for attribute in attributes)


# fmt: off
CLI_ENV_SETUP = Hook(
    Part.LAUNCHER, "vllm.entrypoints.common.startup", "cli_env_setup",  # there from 0.33 on
    elsewhere=(("vllm.entrypoints.serve.utils.api_utils", "cli_env_setup"),),
)
LAUNCHER = (
    CLI_ENV_SETUP,
    Hook(Part.LAUNCHER, "vllm.entrypoints.cli.serve", "cmd_init"),
    Hook(Part.LAUNCHER, "vllm.utils.argparse_utils", "FlexibleArgumentParser.load_config_file"),
)

# No resolver in LoRAResolverRegistry can do this: vLLM asks them only where clients may load adapters,
# once for each name, and answers with words of its own.
ADAPTERS = (
    Hook(_API, _MODELS, "OpenAIServingModels.__init__", "api.serving.with_registry"),
    Hook(_API, _MODELS, "OpenAIServingModels.init_static_loras", "api.serving.starting"),
    Hook(_API, _MODELS, "OpenAIServingModels.load_lora_adapter", "api.serving.checking", ("request",)),
    Hook(_API, _MODELS, "OpenAIServingModels.unload_lora_adapter", "api.serving.withdrawing", ("request",)),
    Hook(_API, _MODELS, "OpenAIServingModels.resolve_lora", "api.serving.resolving", ("lora_name",)),
    Hook(_API, _SERVING, "BaseServing._check_model", "api.serving.explaining", ("request",)),
    Hook(_API, _POOLING, "PoolingBaseServing._check_model", "api.serving.explaining_by_raising", ("request",)),
    Hook(_API, _CLIENT, "AsyncLLM.add_lora", "api.serving.publishing", ("lora_request",)),
    Hook(_API, _MODELS, "OpenAIServingModels.is_base_model", None, ("model_name",)),
    Hook(_API, _MODELS, "OpenAIServingModels.show_available_models"),
    *_each(
        _API, _MODELS, "OpenAIServingModels", "lora_requests", "lora_id_counter", "lora_resolvers", "lora_resolver_lock",
    ),
    Hook(_API, "vllm.lora.request", "LoRARequest"),
    Hook(_API, "vllm.lora.utils", "get_adapter_absolute_path"),
)

# Routes: endpoint plugins must be named in VLLM_PLUGINS, which then leaves out all others. Keys: plain
# `vllm serve` has no --middleware of ours, and one that a user names would stand outside of it. Nothing
# can be registered for the rest.
ERROR_INFO = Hook(_API, _PROTOCOL, "ErrorInfo", elsewhere=((_OLD_PROTOCOL, "ErrorInfo"),))
ERROR_RESPONSE = Hook(_API, _PROTOCOL, "ErrorResponse", elsewhere=((_OLD_PROTOCOL, "ErrorResponse"),))
API_SERVER = (
    Hook(
        _API, "vllm.entrypoints.serve", "register_vllm_serve_api_routers", "api.routes.with_routes", ("app",),
    ),
    Hook(_API, _OUTPUTS, "OutputProcessor.process_outputs", "api.serving.raising"),
    Hook(_API, _LLM, "LLM._run_engine", "api.serving.raising_at_the_end"),
    Hook(_API, _LLM, "LLM._run_tiling_engine", "api.serving.raising_at_the_end"),
    Hook(_API, _RESPONSES, "OpenAIServingResponses.responses_stream_generator", "api.streams.ending_in_words"),
    Hook(_API, _RESPONSES, "OpenAIServingResponses._run_background_request", "api.streams.failing_in_background"),
    Hook(_API, _RESPONSES, "OpenAIServingResponses._run_background_request_stream", "api.streams.failing_in_background"),
    Hook(
        _API, _RESPONSES, "OpenAIServingResponses.responses_background_stream_generator", "api.streams.ending_with_the_error",
    ),
    Hook(_API, _MESSAGES, "AnthropicServingMessages.message_stream_converter", "api.streams.reading_errors"),
    Hook(_API, _CLIENT, "AsyncLLM.shutdown", "api.shutdown.ending", ("timeout",)),
    Hook(_API, _CHAT, "OpenAIServingChat.create_chat_completion", "api.streams.answering_cohere", since="0.32"),
    Hook(_API, "uvicorn", "Config.__init__", "api.shutdown.limiting", ("app",)),
    Hook(_API, "uvicorn", "Config.load", "api.unread.limiting"),
    Hook(_API, "uvicorn", "Config.load", "api.heads.limiting"),
    Hook(_API, _CLIENT, "AsyncLLM.check_health", "api.shutdown.checking_health"),
    Hook(_API, "vllm.v1.metrics.loggers", "PrometheusStatLogger.record", "api.metrics.bounding"),
    *_each(_API, _OUTPUTS, "OutputProcessor", "request_states", "get_num_unfinished_requests"),
    *_each(_API, _OUTPUTS, "", "EMPTY_CPU_TENSOR"),
    Hook(_API, "vllm.outputs", "RequestError", since="0.32"),
    Hook(_API, _OUTPUTS, "RequestOutputCollector.put"),
    *_each(_API, _CLIENT, "AsyncLLM", "dead_error", "errored", "output_handler"),
    Hook(_API, "vllm.v1.engine.core_client", "MPClient.resources"),
    Hook(_API, "vllm.v1.engine.core_client", "BackgroundResources.engine_dead"),
    Hook(_API, "vllm.v1.engine.core_client", "AsyncMPClient.call_utility_async", None, ("method",)),
    Hook(_API, "vllm.v1.engine.core_client", "AsyncMPClient.get_output_async", "api.shutdown.reading"),
    Hook(_API, "vllm.v1.engine.exceptions", "EngineDeadError"),
    *_each(_API, "vllm.config", "ModelConfig", "is_multimodal_model", "max_model_len"),
    *_each(_API, "vllm.envs", "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY"),
    Hook(
        _API, "vllm.exceptions", "GracefulHTTPError", elsewhere=((_CLIENT, "InputStreamError"), (_OLD_PROTOCOL, "GenerationError")),
    ),
    ERROR_INFO,
    ERROR_RESPONSE,
)

# What tenants may see is asked of handlers and of the engine's client; vLLM has no place for it. These
# come after, so outside of, ADAPTERS: for a name that is not the tenant's nothing is looked up.
TENANTS = (
    Hook(_KEYS, _SERVING, "BaseServing._check_model", "api.isolation.seeing", ("request",)),
    Hook(_KEYS, _SERVING, "BaseServing._maybe_get_adapters", "api.isolation.seeing", ("request",)),
    Hook(_KEYS, _MODELS, "OpenAIServingModels.show_available_models", "api.isolation.listing"),
    Hook(_KEYS, _MODELS, "OpenAIServingModels.resolve_lora", "api.isolation.resolving", ("lora_name",)),
    Hook(_KEYS, _MODELS, "OpenAIServingModels.load_lora_adapter", "api.isolation.controlled", ("request",)),
    Hook(_KEYS, _MODELS, "OpenAIServingModels.unload_lora_adapter", "api.isolation.controlled", ("request",)),
    Hook(
        _KEYS, _CLIENT, "AsyncLLM.add_request", "api.isolation.signing", ("params", "lora_request", "priority"),
    ),
    Hook(_KEYS, _OUTPUTS, "OutputProcessor.add_request", "api.isolation.salting", ("request",)),
    Hook(_KEYS, _OUTPUTS, "OutputProcessor.add_request", "api.isolation.noting", ("request",)),
    Hook(
        _KEYS, _OUTPUTS, "RequestState.make_request_output", "api.isolation.counting",
        ("new_token_ids", "pooling_output", "finish_reason"),
    ),
    *_each(_KEYS, _OUTPUTS, "RequestState", "prompt_len", "request_index"),
    Hook(_KEYS, "vllm.v1.engine", "EngineCoreRequest.cache_salt"),
    Hook(_KEYS, "vllm.exceptions", "VLLMNotFoundError"),
)

# The scheduler is chosen by --scheduler-cls. What an engine can be asked are its methods, by name.
ENGINE_CORE = (
    Hook(_CORE, "vllm.v1.executor.abstract", "Executor.__init__", "processes.joining", ("vllm_config",)),
    Hook(_CORE, _ENGINE, "EngineCore.add_lora", "core.utilities.adding", ("lora_request",)),
    Hook(_CORE, _ENGINE, "EngineCore.remove_lora", "core.utilities.removing", ("lora_id",)),
    Hook(_CORE, _ENGINE, "EngineCore.list_loras", "core.utilities.listing"),
    Hook(_CORE, _ENGINE, "EngineCore.pin_lora", "core.utilities.pinning", ("lora_id",)),
    Hook(_CORE, _ENGINE, f"EngineCore.{ANNOUNCE}", "core.utilities.announce", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{TRY}", "core.utilities.try_out", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{WITHDRAW}", "core.utilities.withdraw", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{PIN}", "core.utilities.pin", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{STATE}", "core.utilities.state", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{METRICS}", "core.utilities.metrics", is_new=True),
    Hook(_CORE, _ENGINE, f"EngineCore.{ARRIVALS}", "core.utilities.arrivals", is_new=True),
    Hook(_CORE, _ENGINE, "EngineCoreProc._process_input_queue", "core.utilities.waking"),
    Hook(_CORE, _ENGINE, "EngineCore.preprocess_add_request", "core.utilities.keying", ("request",)),
    *_each(_CORE, _ENGINE, "", "EngineCore.is_sleeping", "EngineCoreProc.input_queue"),
    Hook(_CORE, "vllm.v1.engine", "EngineCoreRequestType.WAKEUP"),
    Hook(_CORE, "vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Hook(_CORE, SCHEDULER, "Scheduler.add_request", None, ("request",)),
    Hook(_CORE, SCHEDULER, "Scheduler.finish_requests", None, ("request_ids", "finished_status")),
    Hook(_CORE, SCHEDULER, "Scheduler.update_from_output", None, ("scheduler_output", "model_runner_output")),
    Hook(_CORE, SCHEDULER, "Scheduler._preempt_request", None, ("request", "timestamp")),
    *_each(
        _CORE, SCHEDULER, "Scheduler", "schedule", "reset_prefix_cache", "waiting", "running", "requests",
        "prev_step_scheduled_req_ids", "policy", "kv_cache_manager", "kv_cache_config", "lora_config",
        "block_size", "max_num_running_reqs", "max_num_scheduled_tokens",
    ),
    Hook(_CORE, "vllm.v1.core.kv_cache_manager", "KVCacheManager.block_pool"),
    *_each(_CORE, _POOL, "BlockPool", "get_num_free_blocks", "num_gpu_blocks"),
    Hook(_CORE, _POOL, "BlockPool.get_new_blocks", None, ("num_blocks",)),
    Hook(_CORE, _POOL, "BlockPool.free_blocks", None, ("ordered_blocks",)),
    Hook(_CORE, _POOL, "BlockPool._maybe_evict_cached_block", None, ("block",)),
    Hook(_CORE, "vllm.v1.core.kv_cache_utils", "make_block_hash_with_group_id"),
    Hook(_CORE, "vllm.v1.kv_cache_interface", "AttentionSpec"),
    *_each(
        _CORE, "vllm.v1.request", "", "Request.update_block_hashes", "Request.get_finished_reason",
        "Request.num_tokens_with_spec", "Request.num_output_placeholders", "RequestStatus.FINISHED_ERROR",
    ),
    *_each(_CORE, "vllm.v1.engine", "", "EngineCoreOutput", "EngineCoreOutputs", "FinishReason"),
)

# --worker-cls is not given to plain `vllm serve`, and would need a class for each platform. The CPU's
# kernels: the platform names a class for all engines, and knows nothing of this one's scheduler.
# vLLM's search for its kernels in all modules fails where numba is loaded, as it is without slots.
WORKERS = (
    Hook(_WORKER, _WORKERS, "Worker.__init__", "processes.joining", ("vllm_config",)),
    Hook(_WORKER, _MIXIN, "LRUCacheWorkerLoRAManager", "worker.step_messages.choosing_manager"),
    Hook(_WORKER, _WORKERS, "Worker.execute_model", "worker.step_messages.obeying", ("scheduler_output",)),
    Hook(_WORKER, _WORKERS, "Worker.sample_tokens", "worker.step_messages.answering"),
    Hook(_WORKER, _WORKERS, "Worker.sleep", "worker.step_messages.ending_copies"),
    Hook(_WORKER, _WORKERS, "Worker.wake_up", "worker.step_messages.distrusting_slots"),
    Hook(_WORKER, _WORKERS, "Worker.discard", "worker.step_messages.ending_copies", since="0.32"),
    Hook(
        _WORKER, "vllm.triton_utils.dispatcher", "_rebind_kernels", "worker.paged_lora.passing_by_numba",
        since="0.32",
    ),
    Hook(_WORKER, _MIXIN, "LoRAModelRunnerMixin.lora_manager"),
    Hook(_WORKER, "vllm.v1.worker.gpu_model_runner", "GPUModelRunner.kv_caches"),
    Hook(_WORKER, "vllm.v1.worker.gpu_model_runner", "AsyncGPUModelRunnerOutput._model_runner_output"),
    Hook(_WORKER, "vllm.v1.worker.gpu.async_utils", "AsyncOutput.model_runner_output"),  # runner V2
    Hook(_WORKER, "vllm.platforms", "current_platform"),
    *_each(_WORKER, "vllm.distributed.parallel_state", "", "get_tp_group", "get_pcp_group", "get_pp_group"),
    *_each(
        _WORKER, "vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager", "_load_adapter", "_apply_adapters",
        "create_lora_manager", "add_adapter", "remove_adapter", "pin_adapter", "remove_all_adapters",
        "list_adapters", "_adapter_manager", "_cached_dummy_lora", "add_dummy_lora", "_manager_cls",
    ),
    Hook(_WORKER, "vllm.lora.model_manager", "LoRAModelManager.modules"),
    Hook(_WORKER, "vllm.lora.layers", "LoRAMapping"),
    *_each(
        _WORKER, "vllm.lora.layers.base_linear", "BaseLinearLayerWithLoRA", "set_lora", "lora_a_stacked", "lora_b_stacked",
        "set_mapping", "punica_wrapper",
    ),
    *_each(
        _WORKER, "vllm.lora.model_manager", "LRUCacheLoRAModelManager", "_create_merged_loras_inplace",
        "_get_lora_layer_weights", "set_adapter_mapping", "lora_index_to_id", "_active_adapters",
        "_registered_adapters", "_last_mapping", "_deactivate_adapter", "punica_wrapper_mapping",
        "packed_modules", "packed_modules_mapping", "is_pooling_model", "lora_slots", "register_module",
    ),
    *_each(
        _WORKER, "vllm.lora.punica_wrapper.punica_cpu", "PunicaWrapperCPU", "_apply_shrink", "_apply_expand",
        "add_lora_embedding", "add_lora_logits", "update_metadata", "token_lora_indices", "sampler_indices",
        "_embeddings_indices", "indices_len",
    ),
    *_each(_WORKER, "vllm.lora.ops.torch_ops.lora_ops", "", "bgmv_shrink", "bgmv_expand", "bgmv_expand_slice"),
)

# A stat logger of vLLM's sees neither what a step computes nor what passes between two steps.
MEASURING = (
    Hook(_STEPS, SCHEDULER, "Scheduler.__init__", "measure.step_log.recording"),
    Hook(_STEPS, _ENGINE, "EngineCore.preprocess_add_request", "measure.step_log.stamping", ("request",)),
    Hook(_STEPS, SCHEDULER, "Scheduler.has_requests"),
    *_each(
        _STEPS, "vllm.v1.core.sched.output", "SchedulerOutput", "num_scheduled_tokens",
        "total_num_scheduled_tokens", "scheduled_new_reqs",
    ),
    *_each(_STEPS, "vllm.v1.request", "Request", "num_computed_tokens", "num_prompt_tokens"),
    *_each(
        _STEPS, "vllm.v1.kv_cache_interface", "", "KVCacheGroupSpec.layer_names", "KVCacheSpec.page_size_bytes",
    ),
)
# fmt: on

HOOKS = (*LAUNCHER, *ADAPTERS, *API_SERVER, *TENANTS, *ENGINE_CORE, *WORKERS, *MEASURING)
