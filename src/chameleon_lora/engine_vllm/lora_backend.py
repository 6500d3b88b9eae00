"""From where an engine's batches use adapters: from vLLM's slots, or from where they lie."""

from dataclasses import dataclass
from typing import Any

from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import LoraBackend


@dataclass(frozen=True, slots=True)
class ChosenBackend:
    """PAGED or SLOTS, and why."""

    kind: LoraBackend
    reason: str

    @property
    def is_paged(self) -> bool:
        """Whether there are no slots."""
        return self.kind is LoraBackend.PAGED


def backend_of(vllm_config: Any, wanted: LoraBackend) -> ChosenBackend:
    """What this engine can have of what is wanted; the same in all its processes.

    Raises:
        ConfigError: it is to use adapters where they lie, and cannot.
    """
    if vllm_config.lora_config is None:
        return ChosenBackend(LoraBackend.SLOTS, "there are no adapters")
    if wanted is LoraBackend.SLOTS:
        return ChosenBackend(LoraBackend.SLOTS, "serving.lora_backend is slots")
    obstacle = _obstacle(vllm_config)
    if obstacle is None:
        return ChosenBackend(LoraBackend.PAGED, "this engine can use adapters where they lie")
    if wanted is LoraBackend.PAGED:
        raise ConfigError(
            f"serving.lora_backend is paged, but {obstacle}; use auto, which takes slots then"
        )
    return ChosenBackend(LoraBackend.SLOTS, obstacle)


def _obstacle(vllm_config: Any) -> str | None:
    """Why this engine's batches need slots; None if they do not."""
    from vllm.platforms import current_platform

    lora, model = vllm_config.lora_config, vllm_config.model_config
    towers = getattr(lora, "enable_tower_connector_lora", False)
    is_classifier = model.runner_type == "pooling" and model.score_type == "cross-encoder"
    obstacles = {
        f"adapters on {current_platform.device_name} are read from slots only": not current_platform.is_cpu(),
        "--fully-sharded-loras cuts adapters by rank": lora.fully_sharded_loras,
        "a mixture of experts has slots only": model.is_moe,
        "a classifier's head has slots only": is_classifier,
        "an encoder beside the decoder has rows of its own": model.is_encoder_decoder,
        "--enable-tower-connector-lora has several mappings at once": towers,
    }
    return next((why for why, is_there in obstacles.items() if is_there), None)
