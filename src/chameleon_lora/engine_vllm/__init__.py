"""vLLM's door to Chameleon: `--scheduler-cls chameleon_lora.engine_vllm.scheduler`.

The general plugin (`plugin.register`) runs in each of vLLM's processes and changes nothing unless
this scheduler is chosen.
"""

from typing import Any

from chameleon_lora.engine_vllm.core.scheduler import make_scheduler

SCHEDULER = "chameleon_lora.engine_vllm.scheduler"

__all__ = ["SCHEDULER", "scheduler"]


def scheduler(vllm_config: Any, **kwargs: Any) -> Any:
    """A Chameleon scheduler for this engine, of the kind (async or not) that the engine runs.

    Raises:
        UnsupportedEngineError: the installed vLLM lacks something Chameleon stands on.
        ConfigError: a setting is wrong.
    """
    return make_scheduler(vllm_config, **kwargs)
