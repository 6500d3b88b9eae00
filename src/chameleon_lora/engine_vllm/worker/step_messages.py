"""A worker's step: the scheduler's commands come with it, the worker's acks leave with its output.

Workers of an engine without Chameleon's scheduler stay vLLM's.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from chameleon_lora.engine_vllm.config import is_ours, settings_of
from chameleon_lora.engine_vllm.event_log import event_log, watch_stock
from chameleon_lora.engine_vllm.hooks import require_hooks
from chameleon_lora.engine_vllm.messages import ACKS_ATTRIBUTE, COMMANDS_ATTRIBUTE, Ack
from chameleon_lora.engine_vllm.worker.lora_manager import manager_class
from chameleon_lora.engine_vllm.worker.worker_adapters import WorkerAdapters

# Where vLLM's asynchronous outputs keep the output they will return: model runner V1, V2.
_INNER_OUTPUTS = ("_model_runner_output", "model_runner_output")


def with_acks(output: Any, acks: tuple[Ack, ...]) -> Any:
    """The output with the worker's news attached.

    Never writes into an output: vLLM shares one object among all empty steps.
    """
    if output is None or not acks:  # a stage whose output goes nowhere
        return output
    for name in _INNER_OUTPUTS:
        if hasattr(output, name):
            setattr(output, name, _marked(getattr(output, name), acks))
            return output
    return _marked(output, acks)


def _marked(output: Any, acks: tuple[Any, ...]) -> Any:
    marked = copy.copy(output)
    setattr(marked, ACKS_ATTRIBUTE, acks)
    return marked


def choosing_manager(stock: type[Any]) -> Callable[..., Any]:
    """In place of vLLM's class: makes Chameleon's LoRA manager for Chameleon's engines.

    Raises:
        UnsupportedEngineError: when it is called, if this worker would not obey the scheduler.
    """

    def make_manager(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if is_ours(vllm_config):
            require_hooks(settings_of(vllm_config).serving)
            return manager_class()(vllm_config, *args, **kwargs)
        manager = stock(vllm_config, *args, **kwargs)
        log = event_log()
        if log is not None:
            watch_stock(manager, log)
        return manager

    return make_manager


def obeying(execute_model: Callable[..., Any]) -> Callable[..., Any]:
    """Worker.execute_model that carries out the step's commands first."""

    def obey_then_execute(worker: Any, scheduler_output: Any) -> Any:
        adapters = _adapters_of(worker)
        if adapters is None:
            return execute_model(worker, scheduler_output)
        adapters.attach(worker.model_runner)  # whose KV cache came after the manager
        try:
            with torch.inference_mode():
                adapters.execute(getattr(scheduler_output, COMMANDS_ATTRIBUTE, ()))
            output = execute_model(worker, scheduler_output)
        except BaseException:
            adapters.poll_acks()  # or the other ranks would wait for this one's news
            raise
        is_pooling = worker.vllm_config.model_config.runner_type == "pooling"
        if scheduler_output.total_num_scheduled_tokens and not is_pooling:
            return output  # sample_tokens follows, on every rank
        return with_acks(output, adapters.poll_acks())

    return obey_then_execute


def answering(sample_tokens: Callable[..., Any]) -> Callable[..., Any]:
    """Worker.sample_tokens whose output carries acks: it follows an execute_model that gave none."""

    def sample_then_answer(worker: Any, grammar_output: Any) -> Any:
        adapters = _adapters_of(worker)
        output = sample_tokens(worker, grammar_output)
        if adapters is None:
            return output
        return with_acks(output, adapters.poll_acks())

    return sample_then_answer


def ending_copies(let_go: Callable[..., Any]) -> Callable[..., Any]:
    """Worker.sleep and discard, before which the copies in KV blocks are forgotten."""

    def end_then_let_go(worker: Any, *args: Any, **kwargs: Any) -> Any:
        adapters = _adapters_of(worker)
        if adapters is not None:
            adapters.forget_device()  # the KV cache's memory is about to go
        return let_go(worker, *args, **kwargs)

    return end_then_let_go


def distrusting_slots(wake_up: Callable[..., Any]) -> Callable[..., Any]:
    """Worker.wake_up, after which no slot and no KV block is taken to hold an adapter."""

    def wake_then_forget(worker: Any, *args: Any, **kwargs: Any) -> Any:
        woken = wake_up(worker, *args, **kwargs)
        adapters = _adapters_of(worker)
        if adapters is not None:
            adapters.forget_slots()
            adapters.forget_device()  # `discard` may have let the KV cache's memory go
        return woken

    return wake_then_forget


def _adapters_of(worker: Any) -> WorkerAdapters | None:
    manager = getattr(worker.model_runner, "lora_manager", None)
    return getattr(manager, "adapters", None)
