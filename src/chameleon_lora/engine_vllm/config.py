"""Chameleon's settings inside vLLM's configuration."""

from typing import Any

from chameleon_lora.settings import Settings, parse_settings

CONFIG_KEY = "chameleon"  # in vLLM's --additional-config


def settings_of(vllm_config: Any) -> Settings:
    """Them.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    return parse_settings((vllm_config.additional_config or {}).get(CONFIG_KEY, {}))
