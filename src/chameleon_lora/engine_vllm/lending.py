"""Which KV blocks change hands between requests and adapters, as the policy decides.

The policy counts blocks; here they have numbers. What workers are to do about it is told with the
same step that the blocks change hands in, and they do it before that step writes any block.
"""

from collections.abc import Sequence
from typing import Any

from chameleon_lora.engine_vllm.idle_blocks import IdleBlocks
from chameleon_lora.engine_vllm.messages import Command, DemoteAdapter, PromoteAdapter
from chameleon_lora.policy.device import DeviceCache
from chameleon_lora.policy.plan import StepPlan
from chameleon_lora.policy.request import AdapterId


class Lending:
    """Carries out promotions and demotions on the block pool. Owner: the driver.

    Invariant: after `trade` the blocks that the policy counts for an adapter are those it holds.
    """

    def __init__(self, device: DeviceCache, blocks: IdleBlocks) -> None:
        self._device = device
        self._blocks = blocks
        self._demoted: list[AdapterId] = []
        self._promotions: dict[AdapterId, PromoteAdapter] = {}
        self._now_s = 0.0
        blocks.serve(self._make_room)

    @property
    def free_blocks(self) -> int:
        """KV blocks that neither requests nor adapters hold."""
        return self._blocks.free

    def arrived(self, block_hashes: Sequence[Any], now_s: float) -> None:
        """A request came whose full prompt blocks have these hashes."""
        missed = self._blocks.prefixes.missed(block_hashes)
        if missed:
            self._device.headroom.missed(missed, now_s)

    def trade(self, plan: StepPlan, now_s: float) -> None:
        """Blocks change hands as planned."""
        self._now_s = now_s
        self._give_back(*plan.demotions)
        for promotion in plan.promotions:
            self._give_back(*promotion.evicts)
            numbers = self._blocks.lend(promotion.adapter_id, promotion.blocks)
            self._promotions[promotion.adapter_id] = PromoteAdapter(
                promotion.adapter_id, promotion.serial, numbers
            )

    def empty(self) -> None:
        """Every adapter gives its blocks back at once."""
        self._give_back(*self._device.take_released(), *self._device.reset())

    def take_commands(self) -> tuple[Command, ...]:
        """What the workers are to do about the trades since the last call, in this order."""
        demotions = [DemoteAdapter(adapter_id) for adapter_id in self._demoted]
        promotions = self._promotions.values()
        self._demoted, self._promotions = [], {}
        return (*demotions, *promotions)

    def check_balance(self) -> None:
        """For an engine without requests: nothing if no KV block is lost.

        Raises:
            AssertionError: naming the counts.
        """
        self._give_back(*self._device.take_released())
        self._blocks.check_balance()
        held, counted = self._blocks.held, self._device.held_blocks
        assert held == counted, f"adapters hold {held} KV blocks, the policy counts {counted}"

    def _make_room(self, lacking: int) -> None:
        """vLLM is about to take so many blocks more than are free."""
        wanted = self._blocks.free + lacking
        self._give_back(*self._device.take_released())
        self._give_back(*self._device.reclaim(wanted - self._blocks.free, self._now_s))

    def _give_back(self, *adapter_ids: AdapterId) -> None:
        """Their blocks are free; a copy that no worker was told of yet is not begun."""
        for adapter_id in adapter_ids:
            self._blocks.give_back(adapter_id)
            if self._promotions.pop(adapter_id, None) is None:
                self._demoted.append(adapter_id)
