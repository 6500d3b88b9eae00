"""Promotions and demotions on vLLM's own block pool, over the real policy, and what workers hear."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.versions import Version
from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    Command,
    DemoteAdapter,
    DropAdapter,
    LoadAdapter,
    Loaded,
    PromoteAdapter,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import DeviceSettings, PolicySettings
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.block_pools import cache, make_pool
from tests.engine_vllm.fake_requests import LIMITS, ROOM, FakeRequest, announced, request_for

pytestmark = pytest.mark.vllm
BLOCK = 1024
EAGER = DeviceSettings(headroom_share=0.0, promotions_per_s=1e6, max_promoting=9)


class Lab:
    """A driver over a pool of 20 blocks of 1 KiB; adapters are as large as their load says."""

    def __init__(self, device: DeviceSettings = EAGER) -> None:
        limits = replace(LIMITS, kv_tokens=21 * 16, block_bytes=BLOCK)
        self.pool = make_pool(20)
        self.blocks = LoanedBlocks(self.pool)
        policy = Scheduler(PolicySettings(device=device), limits)
        self.driver = Driver(policy, ServingSettings(), self.blocks)
        self.now_s = 0.0
        self.versions: dict[str, Version] = {}

    def bring(self, name: str, blocks: int, *, is_packed: bool = True) -> int:
        """The adapter was announced, read and is in host memory; answers its id."""
        version = self.versions[name] = self.driver.announce(announced(name))
        self.driver.pin(name, is_pinned=True)
        assert LoadAdapter in map(type, self.step(0)[1])
        ack = Loaded(version.id, blocks * BLOCK, 8, 0.1, is_packed=is_packed)
        self.driver.acknowledge([ack], self.now_s)
        self.driver.pin(name, is_pinned=False)
        return version.id

    def step(self, takes: int = 0, free: int | None = None) -> tuple[list[Any], list[Command]]:
        """One step in which requests take so many blocks; answers these and the commands."""
        self.now_s += 1.0
        lending = self.driver.loans
        assert lending is not None
        told = lending.free_blocks if free is None else free
        plan = self.driver.begin_step(
            replace(ROOM, kv_tokens=self.pool.get_num_free_blocks() * 16, free_blocks=told),
            self.now_s,
        )
        taken = self.pool.get_new_blocks(takes)
        self.driver.planned.clear()
        self.driver.end_step()
        return taken, list(self.driver.commands(plan))


def blocks_of(*commands: Command) -> list[int]:
    """The blocks that promotions among them name."""
    return [
        n for command in commands if isinstance(command, PromoteAdapter) for n in command.blocks
    ]


class TestTrades:
    def test_a_promotion_names_free_blocks(self) -> None:
        """Exactly as many as the adapter fills, which nobody else gets until it is demoted."""
        lab = Lab()
        number = lab.bring("a", 3)
        taken, (command,) = lab.step()
        assert isinstance(command, PromoteAdapter)
        assert (number, 1, 3) == (command.adapter_id, command.serial, len(set(command.blocks)))
        others = {block.block_id for block in lab.pool.get_new_blocks(17)}
        assert set() == others & set(command.blocks)
        assert [] == taken

    def test_called_off_in_its_own_step_it_is_told_to_nobody(self) -> None:
        """The step's requests took the blocks; workers hear neither promotion nor demotion."""
        lab = Lab()
        lab.bring("a", 3)
        _, commands = lab.step(takes=18)
        assert [] == commands
        assert (0, 2) == (lab.blocks.held, lab.blocks.free)
        assert 1 == lab.driver.view().device.promotions

    def test_called_off_later_it_is_demoted(self) -> None:
        """Workers know of it: they hear in the step whose requests take the blocks."""
        lab = Lab()
        number = lab.bring("a", 3)
        lab.step()
        taken, commands = lab.step(takes=20)
        assert ([DemoteAdapter(number)], 20) == (commands, len(taken))

    def test_without_requests_the_end_of_a_copy_is_looked_for(self) -> None:
        """And the engine rests when it has come."""
        lab = Lab()
        number = lab.bring("a", 3)
        lab.step()
        assert lab.driver.idle_s(lab.now_s) is not None
        lab.driver.acknowledge([Promoted(number, 1, 0.1)], lab.now_s)
        lab.step()
        assert lab.driver.idle_s(lab.now_s) is None

    def test_demotions_are_told_before_promotions(self) -> None:
        """One adapter's blocks become another's: the first leaves them before the second comes."""
        lab = Lab()
        small = lab.bring("a", 12)
        lab.step()
        lab.driver.acknowledge([Promoted(small, 1, 0.1)], lab.now_s)
        large = lab.bring("b", 14)  # the larger is worth more, its read took longer
        demotion, promotion = lab.step()[1]
        assert DemoteAdapter(small) == demotion
        assert isinstance(promotion, PromoteAdapter)
        assert (large, 14) == (promotion.adapter_id, len(promotion.blocks))

    def test_dropped_adapters_give_their_blocks_back_with_the_plan(self) -> None:
        """Or earlier, if a request lacks them before."""
        lab = Lab()
        number = lab.bring("a", 3)
        lab.step()
        lab.driver.withdraw("a")
        assert 3 == lab.blocks.held
        assert [DropAdapter(number), DemoteAdapter(number)] == lab.step()[1]
        assert (0, 20) == (lab.blocks.held, lab.blocks.free)

    def test_what_is_on_its_way_back_is_taken_first(self) -> None:
        """Blocks that a withdrawn adapter no longer needs spare those of another."""
        lab = Lab()
        gone, stays = lab.bring("a", 3), lab.bring("b", 3)
        lab.step()
        lab.step()
        lab.driver.withdraw("a")
        lab.pool.get_new_blocks(17)
        assert 3 == lab.blocks.held
        assert [DropAdapter(gone), DemoteAdapter(gone)] == lab.step()[1]
        assert lab.driver.policy.adapter(lab.versions["b"].id).blocks
        assert stays == lab.versions["b"].id

    def test_a_reset_empties_the_cache(self) -> None:
        """Afterwards vLLM's prefix cache is reset as without adapters; workers hear of it."""
        lab = Lab()
        numbers = {lab.bring("a", 3), lab.bring("b", 4)}
        lab.step()
        cache(lab.pool, "x", "y")
        lab.driver.empty_device()
        assert (0, 20) == (lab.blocks.held, lab.blocks.free)
        assert 0.0 == lab.driver.idle_s(lab.now_s)
        assert lab.pool.reset_prefix_cache()
        told = {c.adapter_id for c in lab.step(takes=20)[1] if isinstance(c, DemoteAdapter)}
        assert numbers == told

    def test_a_lost_block_is_found(self) -> None:
        """The check compares pool, lender and policy."""
        lab = Lab()
        lab.bring("a", 3)
        lab.step()
        lab.driver.check_balance()
        assert lab.driver.policy.make_room(1, lab.now_s)  # told to nobody
        with pytest.raises(AssertionError, match="adapters hold 3 KV blocks, the policy counts 0"):
            lab.driver.check_balance()


class TestAcks:
    def test_a_late_ack_changes_nothing(self) -> None:
        """The copy was called off and begun anew meanwhile."""
        lab = Lab()
        number = lab.bring("a", 3)
        lab.step()
        taken, _ = lab.step(takes=20)
        lab.pool.free_blocks(taken)
        lab.step()
        for serial, is_on_device in ((1, False), (2, True)):
            lab.driver.acknowledge([Promoted(number, serial, 0.1)], lab.now_s)
            known = lab.driver.policy.adapter(lab.versions["a"].id)
            assert (3, is_on_device) == (known.blocks, known.is_on_device)

    @pytest.mark.parametrize("is_final", [False, True])
    def test_a_failed_copy_gives_its_blocks_back(self, is_final: bool) -> None:
        """It is not tried again; a final failure demotes everybody and ends promotions."""
        lab = Lab()
        first = lab.bring("a", 3)
        second = lab.bring("b", 3)
        lab.step()
        failed = PromotionFailed(second, 2, "no room", is_final)
        lab.driver.acknowledge([Promoted(first, 1, 0.1), failed], lab.now_s)
        told = {c.adapter_id for c in lab.step()[1] if isinstance(c, DemoteAdapter)}
        assert ({first, second} if is_final else {second}) == told
        lab.bring("c", 2)
        promoted = [c for _ in range(3) for c in lab.step()[1]]
        assert (0 if is_final else 2) == len(blocks_of(*promoted))
        assert (0 if is_final else 5) == lab.blocks.held

    def test_an_adapter_beyond_the_pool_is_named_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is served from host memory; the message has sizes and a way out."""
        lab = Lab(replace(EAGER, max_bytes=5 * BLOCK))
        lab.bring("large", 6)
        assert [] == lab.step()[1]
        (record,) = caplog.records
        assert "'large' is served from host memory only: its 6144 bytes" in record.getMessage()
        assert "device.max_bytes" in record.getMessage()

    def test_adapters_that_are_not_packed_stay_in_host_memory(self) -> None:
        """Blocks hold plain bytes only."""
        lab = Lab()
        lab.bring("a", 3, is_packed=False)
        assert [] == lab.step()[1]

    def test_activations_come_before_trades(self) -> None:
        """A slot is filled before any block it may be filled from changes hands."""
        lab = Lab()
        lab.bring("a", 3)
        lab.driver.arrived(request_for("r", lab.versions["a"]))
        assert [ActivateAdapter, PromoteAdapter] == [type(command) for command in lab.step()[1]]


class LendingMachine(RuleBasedStateMachine):
    """Requests allocate and free as vLLM lets them, adapters come, go, and lose their copies."""

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(replace(EAGER, headroom_share=0.1, max_promoting=2))
        self.requests: list[list[Any]] = []
        self.known: dict[int, tuple[int, ...]] = {}  # what workers were told, by adapter
        self.copying: list[tuple[int, int]] = []
        self.count = 0

    @rule(blocks=st.integers(1, 8), is_packed=st.sampled_from((True, True, False)))
    def bring(self, blocks: int, is_packed: bool) -> None:
        self.count += 1
        name = f"a{self.count}"
        version = self.lab.versions[name] = self.lab.driver.announce(announced(name))
        self.lab.driver.arrived(request_for(f"r{self.count}", version))
        self.step(0)
        ack = Loaded(version.id, blocks * BLOCK, 8, 0.1, is_packed=is_packed)
        if version.id in self.loading:
            self.lab.driver.acknowledge([ack], self.lab.now_s)

    @rule(takes=st.integers(0, 20))
    def step(self, takes: int) -> None:
        takes = min(takes, self.lab.pool.get_num_free_blocks())
        taken, commands = self.lab.step(takes)
        self.requests.append(taken)
        self.loading = [c.adapter_id for c in commands if isinstance(c, LoadAdapter)]
        for command in commands:
            match command:
                case PromoteAdapter():
                    assert command.adapter_id not in self.known
                    self.known[command.adapter_id] = command.blocks
                    self.copying.append((command.adapter_id, command.serial))
                case DemoteAdapter():
                    del self.known[command.adapter_id]
                case _:
                    pass
        mine = {number for blocks in self.known.values() for number in blocks}
        assert not mine & {block.block_id for blocks in self.requests for block in blocks}
        assert len(mine) == sum(map(len, self.known.values())) == self.lab.blocks.held

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 99))
    def free(self, pick: int) -> None:
        self.lab.pool.free_blocks(self.requests.pop(pick % len(self.requests)))

    @precondition(lambda self: self.copying)
    @rule(pick=st.integers(0, 99), is_failed=st.sampled_from((False, False, True)))
    def end_copy(self, pick: int, is_failed: bool) -> None:
        number, serial = self.copying.pop(pick % len(self.copying))
        ack = PromotionFailed(number, serial, "no") if is_failed else Promoted(number, serial, 0.1)
        self.lab.driver.acknowledge([ack], self.lab.now_s)

    @precondition(lambda self: self.lab.versions)
    @rule(pick=st.integers(0, 99))
    def withdraw(self, pick: int) -> None:
        names = sorted(self.lab.versions)
        name = names[pick % len(names)]
        del self.lab.versions[name]
        self.lab.driver.withdraw(name)

    @rule()
    def reset(self) -> None:
        self.lab.driver.empty_device()
        held = any(self.requests)
        assert self.lab.pool.reset_prefix_cache() is not held

    @invariant()
    def no_block_is_lost(self) -> None:
        blocks = self.lab.blocks
        used = sum(map(len, self.requests))
        assert 20 == blocks.free + blocks.held + used
        if not used:
            self.lab.driver.check_balance()


TestLendingMachine = LendingMachine.TestCase


def test_without_lending_nothing_is_lent() -> None:
    """A driver of an engine without room for adapters has neither blocks nor trades."""
    driver = Driver(Scheduler(PolicySettings(), LIMITS), ServingSettings())
    driver.arrived(FakeRequest("r"))
    driver.empty_device()
    driver.check_balance()
    assert () == driver.commands(driver.begin_step(ROOM, 1.0))
