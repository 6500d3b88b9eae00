"""Chameleon's settings inside vLLM's configuration."""

from collections.abc import Callable
from typing import Any

from chameleon_lora.settings import Settings, parse_settings

CONFIG_KEY = "chameleon"  # in vLLM's --additional-config


def settings_of(vllm_config: Any) -> Settings:
    """Chameleon's settings of this engine.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    return parse_settings((vllm_config.additional_config or {}).get(CONFIG_KEY, {}))


_PACKAGE = "chameleon_lora."


def is_ours(vllm_config: Any) -> bool:
    """Whether an engine of this configuration, None for one unknown, has Chameleon's scheduler."""
    if vllm_config is None:
        return False
    return is_chameleon_scheduler(vllm_config.scheduler_config.scheduler_cls)


def is_chameleon_scheduler(scheduler_cls: str | Callable[..., Any] | None) -> bool:
    """Whether --scheduler-cls names something of this package."""
    if scheduler_cls is None:
        return False
    if not isinstance(scheduler_cls, str):
        scheduler_cls = f"{scheduler_cls.__module__}.{scheduler_cls.__qualname__}"
    return scheduler_cls.startswith(_PACKAGE)
