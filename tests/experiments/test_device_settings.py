"""What experiments ask of adapters in KV blocks, beside a preset that keeps them out."""

from typing import Any

import pytest

from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits
from chameleon_lora.settings import parse_settings

pytest.importorskip("torch")
from experiments import device_tier
from experiments.gpu import proof

pytestmark = pytest.mark.slow  # torch is imported
BLOCKS, BLOCK_TOKENS = 40, 32


@pytest.mark.parametrize(
    ("settings", "limit_blocks"),
    [
        (proof.SETTINGS, BLOCKS),
        (device_tier.EAGER, BLOCKS),
        (device_tier.CALM, BLOCKS),
        (device_tier.IN_TURN, 0),
    ],
    ids=["proof", "eager", "calm", "without"],
)
def test_all_idle_blocks_may_hold_adapters(settings: dict[str, Any], limit_blocks: int) -> None:
    """But in the arm that is compared with."""
    limits = EngineLimits(
        seats=8,
        slots=4,
        kv_tokens=BLOCKS * BLOCK_TOKENS,
        kv_bytes_per_token=1024,
        block_tokens=BLOCK_TOKENS,
        block_bytes=1024 * BLOCK_TOKENS,
    )
    policy = Scheduler(parse_settings(settings).policy, limits)
    assert limit_blocks == policy.device(0.0).limit_blocks
