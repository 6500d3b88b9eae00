"""Activation from KV blocks in a real engine: slots as the host copy would have filled them."""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    Activated,
    DemoteAdapter,
    DropAdapter,
    PromoteAdapter,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.errors import AdapterError
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.conftest import ALL_TARGETS, SLOTS

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.kv_pages import cache_tensors, kv_pages_of  # noqa: E402
from chameleon_lora.engine_vllm.worker.lora_manager import make_worker_adapters  # noqa: E402
from tests.engine_vllm.adapter_commands import acks_of, load_all  # noqa: E402
from tests.engine_vllm.layer_answers import all_stacked, slot_bytes  # noqa: E402

RANKS = {1: 4, 2: 8, 3: 16, 4: 4, 5: 8}
TARGETS = {4: ("q_proj", "v_proj"), 5: ("k_proj", "down_proj")}
_serials = itertools.count()


@pytest.fixture(scope="module")
def folders(make_adapter: Any) -> dict[int, Path]:
    """Five adapters of ranks 4 to 16 and of different layers."""
    return {
        number: make_adapter(
            number, rank=rank, targets=TARGETS.get(number, ALL_TARGETS), with_head=number in (1, 3)
        )
        for number, rank in RANKS.items()
    }


@pytest.fixture(scope="module")
def runner(lora_engine: Any) -> Any:
    """The engine's model runner."""
    core = lora_engine.llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner


Use = Callable[..., Any]


@pytest.fixture
def use(lora_engine: Any, runner: Any) -> Iterator[Use]:
    """Gives the engine a manager that knows nothing, over slots full of NaN."""
    manager = lora_engine.worker_manager

    def start_afresh(debug_checks: bool = True) -> Any:
        manager.remove_all_adapters()
        manager.adapters.close()
        manager.adapters = make_worker_adapters(manager, ServingSettings(debug_checks=debug_checks))
        manager.adapters.attach(runner)
        for stacked in all_stacked(manager):
            stacked.fill_(float("nan"))
        return manager

    yield start_afresh
    start_afresh(False)
    for module in manager._adapter_manager.modules.values():
        for slot in range(SLOTS):
            module.reset_lora(slot)
    for cache in cache_tensors(runner):
        cache.zero_()


def promotions(manager: Any, runner: Any, seed: int, numbers: tuple[int, ...]) -> list[Any]:
    """Commands that put these adapters into blocks anywhere."""
    pages = kv_pages_of(runner)
    free = random.Random(seed).sample(range(1, pages.num_blocks), 100)
    commands = []
    for number in numbers:
        image = manager.adapters._copies[number]
        needed = pages.blocks_for(image.nbytes)
        blocks, free = tuple(free[:needed]), free[needed:]
        commands.append(PromoteAdapter(number, next(_serials), blocks))
    return commands


def promote(manager: Any, runner: Any, seed: int, *numbers: int) -> None:
    """Afterwards these adapters are in blocks."""
    manager.adapters.execute(promotions(manager, runner, seed, numbers))
    assert set(numbers) == {
        ack.adapter_id for ack in acks_of(manager.adapters, Promoted, len(numbers))
    }


def everything(manager: Any) -> list[bytes]:
    """What all slots hold."""
    return [slot_bytes(manager, slot) for slot in range(SLOTS)]


def test_slots_hold_the_same_bytes_from_blocks_as_from_the_host(
    use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """For tenants of different ranks and layers after one another, promoted and demoted between."""
    moves = [ActivateAdapter(n, s) for n in (3, 1, 4, 2, 5, 3, 2, 1) for s in (0, SLOTS - 1)]
    manager = use()
    load_all(manager.adapters, folders)
    expected = []
    for move in moves:
        manager.adapters.execute([move])
        expected.append(everything(manager))
    manager = use()
    load_all(manager.adapters, folders)
    promote(manager, runner, 1, *folders)
    found = []
    for index, move in enumerate(moves):
        if index == 5:
            manager.adapters.execute([DemoteAdapter(move.adapter_id)])
            promote(manager, runner, 2, move.adapter_id)
        manager.adapters.poll_acks()
        manager.adapters.execute([move])
        (ack,) = acks_of(manager.adapters, Activated)
        assert (True, True) == (ack.from_device, ack.is_checked)
        found.append(everything(manager))
    assert [one == other for one, other in zip(expected, found, strict=True)] == [True] * len(moves)


def test_an_adapter_without_blocks_comes_from_the_host(
    use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """Before its promotion, and after a demotion; unchecked where there is nothing to check."""
    manager = use()
    load_all(manager.adapters, folders)
    steps: list[tuple[list[Any], bool]] = [
        ([ActivateAdapter(1, 0)], False),
        ([ActivateAdapter(1, 1)], True),
        ([DemoteAdapter(1), ActivateAdapter(1, 0)], False),
    ]
    for commands, from_device in steps:
        manager.adapters.execute(commands)
        (ack,) = acks_of(manager.adapters, Activated)
        assert (from_device, from_device) == (ack.from_device, ack.is_checked)
        if not from_device:
            promote(manager, runner, 3, 1)


def test_an_activation_may_use_the_blocks_that_the_same_step_gives_up(
    use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """Commands are carried out in their order; another adapter takes the blocks after it."""
    manager = use()
    load_all(manager.adapters, folders)
    promote(manager, runner, 4, 3)
    (again,) = promotions(manager, runner, 4, (2,))
    manager.adapters.execute([ActivateAdapter(3, 0), DemoteAdapter(3), again])
    (ack,) = acks_of(manager.adapters, Activated)
    assert ack.from_device
    manager.adapters.execute([ActivateAdapter(3, 1)])
    assert slot_bytes(manager, 0) == slot_bytes(manager, 1)


def test_without_a_runner_nothing_is_promoted(use: Use, folders: dict[int, Path]) -> None:
    """The answer is final and the adapter is served from the host."""
    manager = use()
    manager.adapters.attach(None)
    load_all(manager.adapters, {1: folders[1]})
    manager.adapters.execute([PromoteAdapter(1, 7, (1, 2)), ActivateAdapter(1, 0)])
    acks = [*manager.adapters.poll_acks()]
    (failed,) = [ack for ack in acks if isinstance(ack, PromotionFailed)]
    assert (True, "this worker has no KV cache") == (failed.is_final, failed.reason)
    assert [False] == [ack.from_device for ack in acks if isinstance(ack, Activated)]


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_drop_forgets_the_copy_in_blocks(
    use: Use, runner: Any, folders: dict[int, Path], is_complete: bool
) -> None:
    """Complete or under way: it is not answered, and nothing is written afterwards."""
    manager = use()
    load_all(manager.adapters, folders)
    if is_complete:
        promote(manager, runner, 5, 3)
    else:
        manager.adapters.execute(promotions(manager, runner, 5, (3,)))
    manager.adapters.execute([DropAdapter(3)])
    for cache in cache_tensors(runner):
        cache.fill_(5.0)
    load_all(manager.adapters, {3: folders[3]})
    manager.adapters.execute([ActivateAdapter(3, 0)])
    (ack,) = acks_of(manager.adapters, Activated)
    assert not ack.from_device
    assert not [ack for ack in manager.adapters.poll_acks() if isinstance(ack, Promoted)]
    manager.adapters.close()  # ends the copier's thread
    assert all(bool((cache == 5.0).all()) for cache in cache_tensors(runner))


def test_cleared_slots_are_filled_again_from_blocks(
    use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """After waking up, or a profile run, the copy in KV blocks serves as the host's does."""
    from vllm.lora.request import LoRARequest

    manager = use()
    load_all(manager.adapters, folders)
    promote(manager, runner, 6, 2)
    manager.adapters.execute([ActivateAdapter(2, 1)])
    expected = slot_bytes(manager, 1)
    manager.adapters.forget_slots()
    for stacked in all_stacked(manager):
        stacked.fill_(float("nan"))
    manager._apply_adapters({LoRARequest("adapter-2", 2, str(folders[2]))})
    assert expected == slot_bytes(manager, 1)


def test_a_step_fails_loudly_if_debug_checks_find_foreign_bytes(
    use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """Whoever wrote into the blocks, the adapter is named; without checks it is not noticed."""
    manager = use()
    load_all(manager.adapters, folders)
    promote(manager, runner, 7, 1)
    for cache in cache_tensors(runner):
        cache.fill_(5.0)
    with pytest.raises(AdapterError, match="Adapter 1's copy in the KV cache is not its host copy"):
        manager.adapters.execute([ActivateAdapter(1, 0)])
    manager = use(debug_checks=False)
    load_all(manager.adapters, folders)
    promote(manager, runner, 7, 1)
    manager.adapters.execute([ActivateAdapter(1, 0)])
    (ack,) = acks_of(manager.adapters, Activated)
    assert (True, False) == (ack.from_device, ack.is_checked)


def test_answers_are_the_same_from_blocks_and_afterwards(
    lora_engine: Any, use: Use, runner: Any, folders: dict[int, Path]
) -> None:
    """The engine's own tokens, with adapters in blocks and after requests took those over."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    prompts = [{"prompt_token_ids": [5, 9, 17, number]} for number in (1, 2, 3)]
    greedy = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False)

    def answers() -> list[list[int]]:
        requests = [LoRARequest(f"adapter-{n}", n, str(folders[n])) for n in (1, 2, 3)]
        outputs = lora_engine.llm.generate(prompts, greedy, lora_request=requests, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    moves = [ActivateAdapter(n, n - 1) for n in (1, 2, 3)]
    manager = use()
    load_all(manager.adapters, folders)
    manager.adapters.execute(moves)
    expected = answers()
    manager = use()
    load_all(manager.adapters, folders)
    promote(manager, runner, 8, 1, 2, 3)
    manager.adapters.execute(moves)
    assert all(ack.from_device for ack in acks_of(manager.adapters, Activated, 3))
    manager.adapters.execute([DemoteAdapter(n) for n in (1, 2, 3)])
    assert expected == answers()
