"""From where an engine's batches use adapters, and what it is told of that."""

from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.lora_backend import backend_of
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import LoraBackend

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm


def config(**changes: Any) -> Any:
    """The parts of vLLM's configuration that count."""
    given = {
        "fully_sharded_loras": False,
        "is_moe": False,
        "runner_type": "generate",
        "enable_tower_connector_lora": False,
    }
    return SimpleNamespace(
        lora_config=SimpleNamespace(**given | changes),
        model_config=SimpleNamespace(**given | changes),
    )


def test_an_engine_on_cpu_needs_no_slots() -> None:
    """It has them if it is told so."""
    assert backend_of(config(), LoraBackend.AUTO).is_paged
    assert backend_of(config(), LoraBackend.PAGED).is_paged
    assert not backend_of(config(), LoraBackend.SLOTS).is_paged


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fully_sharded_loras": True}, "--fully-sharded-loras"),
        ({"is_moe": True}, "mixture of experts"),
        ({"runner_type": "pooling"}, "pooling model"),
        ({"enable_tower_connector_lora": True}, "--enable-tower-connector-lora"),
    ],
)
def test_what_has_no_other_way_has_slots_and_says_why(change: dict[str, Any], words: str) -> None:
    """Asked for the impossible, it does not start."""
    chosen = backend_of(config(**change), LoraBackend.AUTO)
    assert not chosen.is_paged
    assert words in chosen.reason
    with pytest.raises(ConfigError, match=f"lora_backend is paged, but .*{words}.*; use auto"):
        backend_of(config(**change), LoraBackend.PAGED)


def test_other_devices_have_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels read no others."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    assert "slots only" in backend_of(config(), LoraBackend.AUTO).reason


def test_an_engine_without_adapters_has_none_to_use() -> None:
    """Nothing changes for it."""
    without = SimpleNamespace(lora_config=None)
    assert not backend_of(without, LoraBackend.PAGED).is_paged
