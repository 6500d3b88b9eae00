"""What a plan answers: how its load moves with memory and objective, and what it says binds."""

import dataclasses
from itertools import pairwise

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.planning.binding import Constraint
from chameleon_lora.planning.planning import CapacityPlan, NoLoadError, carried_by_one, plan
from chameleon_lora.planning.question import PlanObjective, PlanQuestion
from chameleon_lora.planning.trial import run_at
from chameleon_lora.policy.settings import Preset
from chameleon_lora.sim.profile import Link, StepCosts
from chameleon_lora.sim.setup import S_LORA
from tests.sim.plan_questions import SMALL, STYLE, question, traffic, with_pool

SEARCH = 0.03  # the search's tolerance


@pytest.fixture(scope="module")
def answer() -> CapacityPlan:
    """The plan of the small engine for 10 requests/s."""
    return plan(question(rate_per_s=10.0))


@pytest.fixture(scope="module")
def one_slot() -> CapacityPlan:
    """The plan of an engine with one slot for 20 adapters."""
    return plan(question(style=dataclasses.replace(STYLE, slots=1), adapters=20))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "sizes"), [(Preset.VLLM, (2_000, 4_000, 8_000)), (Preset.CHAMELEON, (2_000, 8_000))]
)
def test_more_memory_carries_no_less(policy: Preset, sizes: tuple[int, ...]) -> None:
    """Sizes of KV memory in tokens, each larger than the one before, and the search's tolerance."""
    loads = [
        carried_by_one(question(with_pool(tokens), policy=policy)).sustained_per_s
        for tokens in sizes
    ]
    assert all(more >= (1.0 - SEARCH) * less for less, more in pairwise(loads))
    assert loads[-1] > 1.5 * loads[0]


@pytest.mark.slow
def test_a_tighter_objective_carries_no_more() -> None:
    """P99 TTFT of 20 s, 5 s, 1 s: each load is at most the one before."""
    loads = [
        carried_by_one(question(objective=PlanObjective(ttft_s))).sustained_per_s
        for ttft_s in (20.0, 5.0, 1.0)
    ]
    assert sorted(loads, reverse=True) == loads
    assert loads[-1] < loads[0]


@pytest.mark.slow
def test_a_bound_on_gaps_carries_no_more() -> None:
    """With P99 between tokens bound to two empty steps, less load is sustained."""
    free = carried_by_one(question())
    bound = carried_by_one(question(objective=PlanObjective(5.0, gap_s=0.45)))
    assert 0.0 < bound.sustained_per_s < (1.0 - SEARCH) * free.sustained_per_s


BOUND = {
    Constraint.KV_MEMORY: question(with_pool(600), dataclasses.replace(STYLE, slots=1), adapters=1),
    Constraint.SEATS: question(style=dataclasses.replace(STYLE, seats=2)),
    Constraint.BATCH_TOKENS: question(
        spec=traffic(prompt=2000), objective=PlanObjective(50.0, gap_s=1.0)
    ),
    Constraint.LINK: question(
        dataclasses.replace(SMALL, host_link=Link(4e5)),
        adapters=100,
        objective=PlanObjective(100.0),
    ),
    Constraint.OBJECTIVE: question(spec=traffic(prompt=2000), objective=PlanObjective(2.8)),
    Constraint.COMPUTE: question(
        dataclasses.replace(SMALL, step=StepCosts(0.01, 2e-3, 1e-3, 0.0)),
        spec=traffic(prompt=500),
        objective=PlanObjective(15.0),
        seconds=600.0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("constraint", BOUND, ids=lambda constraint: constraint.name)
def test_what_binds_is_recognised(constraint: Constraint) -> None:
    """Engines that lack one thing each: little memory, two seats, a slow link, ..."""
    assert constraint is plan(BOUND[constraint]).binding.constraint


@pytest.mark.slow
def test_a_change_that_helps_is_named(one_slot: CapacityPlan) -> None:
    """With one slot for 20 adapters, two slots meet the objective where one misses it."""
    binding = one_slot.binding
    by_change = {what_if.change: what_if for what_if in binding.what_ifs}
    assert Constraint.SLOTS is binding.constraint
    assert not binding.unchanged.meets
    assert by_change["--max-loras 2"].meets
    assert "--max-loras" in binding.advice


@pytest.mark.slow
def test_each_replica_gets_its_share_and_meets_the_objective(answer: CapacityPlan) -> None:
    """As many engines as the loads' quotient asks for, and one of them simulated under its share."""
    assert answer.replicas >= 10.0 / answer.sustained_per_s > answer.replicas - 2
    assert 10.0 / answer.replicas == answer.replica.rate_per_s
    assert answer.replica.meets
    assert answer.replica.ttft_p99_s <= 5.0


@pytest.mark.slow
def test_without_a_load_to_plan_for_one_replica_carries_what_it_can(one_slot: CapacityPlan) -> None:
    """The load planned for is the sustainable one."""
    assert (1, one_slot.sustained_per_s) == (one_slot.replicas, one_slot.rate_per_s)


@pytest.mark.slow
def test_the_memory_split_adds_up(answer: CapacityPlan) -> None:
    """Slots and KV cache are the pool but for a block; what is held is inside the cache."""
    memory = answer.memory
    block_bytes = 16 * SMALL.memory.kv_bytes_per_token
    assert 8 * SMALL.adapter_bytes(8) == memory.slots_bytes
    assert 0 <= memory.pool_bytes - memory.slots_bytes - memory.kv_cache_bytes < block_bytes
    assert memory.requests_mean_bytes <= memory.requests_peak_bytes <= memory.kv_cache_bytes
    assert 4 * SMALL.adapter_bytes(8) == memory.host_bytes


@pytest.mark.slow
def test_adapters_live_in_idle_blocks_only_under_chameleon() -> None:
    """Stock vLLM keeps none there, so 20 adapters on 4 slots are found on the device less often."""
    style = dataclasses.replace(STYLE, slots=4)
    ours = plan(question(style=style, policy=Preset.CHAMELEON, adapters=20))
    asked = question(style=style, policy=Preset.VLLM, adapters=20)
    stock = run_at(asked, asked.setup, ours.rate_per_s, ours.slo).figures
    assert 0 < ours.memory.adapters_mean_bytes < ours.memory.kv_cache_bytes
    assert 0.0 == stock.held_share
    assert stock.hit_share < ours.replica.hit_share


@pytest.mark.slow
def test_an_objective_by_factor_is_that_of_an_engine_without_load() -> None:
    """Five times the mean TTFT of requests that never meet; the same for two policies."""
    stock, ours = (
        carried_by_one(
            question(objective=PlanObjective(ttft_factor=5.0), policy=policy, adapters=20)
        )
        for policy in (Preset.VLLM, Preset.CHAMELEON)
    )
    assert pytest.approx(5.0 * stock.unloaded.ttft.mean_s) == stock.slo.ttft_s
    assert ours.slo == stock.slo


def test_s_lora_is_planned_without_slots() -> None:
    """Its memory is one pool."""
    answer = plan(question(style=dataclasses.replace(S_LORA, seats=64), policy=Preset.SLORA))
    assert 0 == answer.memory.slots_bytes
    assert answer.sustained_per_s > 0.0


@pytest.mark.slow
def test_the_same_question_has_the_same_plan(answer: CapacityPlan) -> None:
    """Every figure; another seed has others."""
    assert answer == plan(question(rate_per_s=10.0))
    assert carried_by_one(question()) != carried_by_one(question(seed=1))


def test_an_objective_below_a_request_alone_is_refused() -> None:
    """A prompt of 2,000 tokens takes over 2 s by itself: 1 s cannot be promised at any load."""
    with pytest.raises(NoLoadError, match=r"the objective .*1 s.* binds: .* without any load"):
        plan(question(spec=traffic(prompt=2000), objective=PlanObjective(1.0)))


def test_an_objective_for_gaps_below_a_step_is_refused() -> None:
    """A step takes 0.2 s: 0.1 s between tokens cannot be promised."""
    with pytest.raises(NoLoadError, match=r"between tokens 0\.1 s.* binds"):
        plan(question(objective=PlanObjective(5.0, gap_s=0.1)))


def impossible(**more: object) -> PlanQuestion:
    """A question whose making is to fail."""
    return question(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"style": dataclasses.replace(STYLE, slots=5000)}, "5000 slots of rank 8 take"),
        ({"style": dataclasses.replace(STYLE, max_rank=4)}, "raise --max-lora-rank to 8"),
        ({"spec": traffic(prompt=30_000)}, r"30000 \+ 10 tokens, but beside 8 slots of rank 8"),
        (
            {"style": S_LORA, "spec": traffic(prompt=19_900)},
            r"19900 \+ 10 tokens, but beside an adapter of rank 8 .* holds 19872",
        ),
        ({"style": S_LORA, "spec": traffic(prompt=9000)}, "--max-num-batched-tokens to 9000"),
        ({"style": dataclasses.replace(STYLE, batch_tokens=32)}, "too short for 64 requests"),
    ],
    ids=("slots", "rank", "length", "paged length", "whole prompts", "batch tokens"),
)
def test_an_impossible_engine_says_which_limit_stands_against_it(
    more: dict[str, object], message: str
) -> None:
    """Value, limit and way out, before anything is simulated."""
    with pytest.raises(ConfigError, match=message):
        impossible(**more)


@pytest.mark.parametrize(
    ("given", "value"), [((0.0,), "0.0"), ((None, -1.0), "-1.0"), ((1.0, 5.0, 0.0), "0.0")]
)
def test_an_objective_is_above_zero(given: tuple[float, ...], value: str) -> None:
    """In each of its three numbers."""
    with pytest.raises(ConfigError, match=f"an objective of {value} cannot be met"):
        PlanObjective(*given)
