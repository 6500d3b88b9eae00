"""The engine model: what a step takes, who is in it, and what becomes of each request."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import CacheSettings, PolicySettings, Preset, preset
from chameleon_lora.sim.outcome import Found, SimOutcome
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import EngineStyle, Setup, foretell_truth
from chameleon_lora.workload.requests import TimedRequest
from tests.sim.plain_engine import PlainEngine
from tests.sim.setups import (
    ANY,
    FREE,
    ONE_SEAT,
    VLLM,
    profile,
    requests,
    run,
    setup,
)
from tests.sim.watched import StepByStep, Watched, check_complete

TWO_SEATS = replace(ONE_SEAT, seats=2)
NO_SLOTS = replace(TWO_SEATS, slots=0)
OWN_STEP = replace(TWO_SEATS, mixes_prefill=False)
PAGED = EngineStyle(seats=4, mixes_prefill=False, is_paged=True, slots=0)


def times(outcome: SimOutcome) -> list[tuple[float | None, float | None]]:
    """(first token, end) of each request."""
    return [(record.first_s, record.end_s) for record in outcome.records]


def watched(setup: Setup, requests: list[TimedRequest]) -> tuple[SimOutcome, Watched]:
    """A run that checks itself."""
    outcome, engine = run(setup, requests, Watched)
    assert isinstance(engine, Watched)
    check_complete(outcome, engine)
    return outcome, engine


class TestSteps:
    def test_a_prompt_is_a_step_and_each_further_token_another(self) -> None:
        """Three tokens at a second a step: the first after 1 s, the last after 3 s."""
        outcome = simulate(setup(profile()), requests((5.0, None, 10, 3)))
        assert ([(6.0, 8.0)], 3, 8.0) == (times(outcome), outcome.steps, outcome.duration_s)

    def test_a_request_joins_at_the_end_of_a_step(self) -> None:
        """One that comes during the first step of another is admitted after it."""
        given = requests((0.0, None, 10, 3), (0.5, None, 10, 1))
        outcome = simulate(setup(profile(), TWO_SEATS), given)
        assert [(1.0, 3.0), (2.0, 2.0)] == times(outcome)
        assert [0.0, 1.0] == [record.admitted_s for record in outcome.records]

    def test_one_that_comes_as_a_step_ends_is_in_the_next(self) -> None:
        """Arrivals go before steps at the same time."""
        given = requests((0.0, None, 10, 3), (1.0, None, 10, 1))
        assert [(1.0, 3.0), (2.0, 2.0)] == times(simulate(setup(profile(), TWO_SEATS), given))

    def test_seats_bound_the_batch(self) -> None:
        """With one seat the second begins when the first has ended."""
        given = requests((0.0, None, 10, 3), (0.0, None, 10, 2))
        assert [(1.0, 3.0), (4.0, 5.0)] == times(simulate(setup(profile()), given))

    def test_prompts_are_computed_in_chunks(self) -> None:
        """20 tokens at 8 a step take three steps; a request that decodes takes one of the 8."""
        style = replace(TWO_SEATS, batch_tokens=8)
        alone = requests((0.0, None, 20, 1))
        assert [(3.0, 3.0)] == times(simulate(setup(profile(), style), alone))
        both = requests((0.0, None, 8, 9), (0.5, None, 20, 1))
        assert [(1.0, 9.0), (4.0, 4.0)] == times(simulate(setup(profile(), style), both))
        longer = requests((0.0, None, 8, 9), (0.5, None, 22, 1))
        assert (5.0, 5.0) == times(simulate(setup(profile(), style), longer))[1]

    def test_prompts_of_their_own_step_stop_those_who_decode(self) -> None:
        """Tokens at 1, 2 and 4 s, for the second prompt takes the third second."""
        given = requests((0.0, None, 10, 3), (0.5, None, 10, 2))
        outcome = simulate(setup(profile(), OWN_STEP), given)
        assert [(1.0, 4.0), (3.0, 4.0)] == times(outcome)
        assert [(1.0, 1), (1.0, 1), (2.0, 1)] == sorted(outcome.gaps)

    def test_mixed_prompts_do_not(self) -> None:
        """The same requests: tokens at 1, 2 and 3 s."""
        given = requests((0.0, None, 10, 3), (0.5, None, 10, 2))
        outcome = simulate(setup(profile(), TWO_SEATS), given)
        assert [(1.0, 3.0), (2.0, 3.0)] == times(outcome)
        assert {1.0} == {gap_s for gap_s, _ in outcome.gaps}

    def test_a_request_outside_the_engine_takes_its_time_first(self) -> None:
        """Half a second for HTTP and tokenizer before it arrives; it counts as waiting."""
        slow = replace(profile(), request_s=0.5)
        assert [(1.5, 1.5)] == times(simulate(setup(slow), requests((0.0, None, 1, 1))))

    def test_padded_slots_cost_the_largest_rank(self) -> None:
        """An adapter of rank 8 in a slot of rank 64 costs 64 a prompt token."""
        costs = replace(FREE, lora_prefill_rank_s=0.001)
        style = replace(ONE_SEAT, max_rank=64)
        given = requests((0.0, "a0", 10, 1))
        for pads, expected in ((False, 0.08), (True, 0.64)):
            padded = setup(profile(costs), replace(style, pads_ranks=pads), ranks=(8,))
            ((first_s, _),) = times(simulate(padded, given))
            assert expected == pytest.approx(first_s)


class TestAdapters:
    SLOW = profile(link_s=0.25)  # 2 s for rank 8, to a slot 0.2 s

    def found(self, setup: Setup, requests: list[TimedRequest]) -> list[tuple[Found, float]]:
        """Where each request's adapter was, and what its step waited for it."""
        return [(record.found, record.load_s) for record in watched(setup, requests)[0].records]

    def test_is_copied_before_the_step(self) -> None:
        """2 s and a step of 1 s; the next request of it runs with it, a later one finds it."""
        given = requests(
            (0.0, "a0", 10, 4), (3.5, "a0", 10, 1), (9.0, "a0", 10, 1), (9.0, None, 1, 1)
        )
        outcome, _ = watched(setup(self.SLOW, TWO_SEATS, ranks=(8,)), given)
        assert [(3.0, 6.0), (5.0, 5.0), (10.0, 10.0), (10.0, 10.0)] == times(outcome)
        found = [record.found for record in outcome.records]
        assert [Found.HOST, Found.IN_USE, Found.DEVICE, Found.NONE] == found
        assert [2.0, 0.0, 0.0, 0.0] == [record.load_s for record in outcome.records]

    def test_copies_of_one_step_queue(self) -> None:
        """The step waits for both: 2 + 4 s."""
        style = replace(TWO_SEATS, slots=2, max_rank=16)
        given = requests((0.0, "a0", 10, 1), (0.0, "a1", 10, 1))
        both = self.found(setup(self.SLOW, style, ranks=(8, 16)), given)
        assert [(Found.HOST, 2.0), (Found.HOST, 6.0)] == both

    def test_copy_in_kv_blocks_is_found(self) -> None:
        """Chameleon copies idle adapters there in time; its way to the slot is a tenth."""
        given = requests((0.0, None, 10, 30), (20.0, "a0", 10, 1))
        cached = setup(self.SLOW, replace(TWO_SEATS, slots=1), PolicySettings(), ranks=(8,))
        found, load_s = self.found(cached, given)[1]
        assert Found.DEVICE is found
        assert 0.2 == pytest.approx(load_s)

    def test_paged_adapter_is_waited_for_until_it_is_there(self) -> None:
        """S-LoRA begins to copy halfway between admissions, at the sixth step: 1 s is left at 8.5."""
        slora = setup(profile(link_s=0.5), PAGED, preset(Preset.SLORA), ranks=(8,))
        given = requests((0.0, None, 10, 40), (1.5, "a0", 10, 1))
        ((_, _), (found, load_s)) = self.found(slora, given)
        assert Found.DEVICE is found
        slow = setup(profile(link_s=1.0), PAGED, preset(Preset.SLORA), ranks=(8,))
        ((_, _), (found, load_s)) = self.found(slow, given)
        assert Found.LINK is found
        assert 0.0 < load_s < 8.0

    def test_is_read_from_disk_where_host_memory_begins_empty(self) -> None:
        """1 s from disk, then it is copied for 2 s."""
        cold = setup(self.SLOW, replace(ONE_SEAT, is_preloaded=False), ranks=(8,))
        outcome, _ = watched(cold, requests((0.0, "a0", 10, 1)))
        assert 1.0 == pytest.approx(outcome.records[0].admitted_s, abs=0.0011)
        assert 4.0 == pytest.approx(outcome.records[0].first_s, abs=0.0011)

    def test_one_that_host_memory_cannot_hold_fails_its_requests(self) -> None:
        """They are told why; others go on."""
        nbytes = self.SLOW.adapter_bytes(8)
        small = replace(VLLM, cache=CacheSettings(host_bytes=nbytes - 1))
        cold = setup(self.SLOW, replace(ONE_SEAT, is_preloaded=False), small, ranks=(8, 4))
        given = requests((0.0, "a0", 10, 1), (0.0, "a1", 10, 1), (9.0, None, 10, 1))
        outcome, _ = watched(cold, given)
        first, *others = [record.failure for record in outcome.records]
        assert f"its {nbytes} bytes are above cache.host_bytes, {nbytes - 1}" in str(first)
        assert [None, None] == others
        assert outcome.records[0].end_s is None


class TestMemory:
    def test_the_last_one_in_is_preempted(self) -> None:
        """Two that grow to 3 blocks each do not fit in 4: the second goes on when the first ended."""
        given = requests((0.0, None, 16, 30), (0.0, None, 16, 30))
        outcome, _ = watched(setup(profile(blocks=4), NO_SLOTS), given)
        first, second = outcome.records
        assert (30.0, 0) == (first.end_s, first.returns)
        assert second.returns > 0
        assert outcome.preemptions == second.returns
        assert second.end_s is not None
        assert second.end_s > 30.0

    def test_a_gap_goes_from_a_requests_own_last_token(self) -> None:
        """Taken out after 17 tokens and let in again 14 s later, it has one gap of 14 s."""
        given = requests((0.0, None, 16, 30), (0.0, None, 16, 30))
        outcome, _ = watched(setup(profile(blocks=4), NO_SLOTS), given)
        assert 1 == outcome.preemptions
        assert [1.0, 14.0] == sorted({gap_s for gap_s, _ in outcome.gaps})
        assert 30.0 + 13.0 == outcome.records[1].end_s

    def test_idle_adapters_go_before_anybody_is_preempted(self) -> None:
        """Those who run take back the blocks that an unused adapter fills."""
        style = replace(PAGED, seats=2)
        policy = replace(preset(Preset.SLORA), cache=CacheSettings(keeps_unused=True))
        paged = setup(profile(blocks=12), style, policy, ranks=(8,))
        given = requests((0.0, "a0", 10, 1), (5.0, None, 16, 40), (5.0, None, 16, 40))
        outcome, engine = watched(paged, given)
        assert 0 == outcome.preemptions
        assert 0 == engine.policy.held_blocks

    def test_a_preempted_requests_adapter_goes_before_a_second_is_preempted(self) -> None:
        """Three grow in 24 blocks; the last one's adapter gives 8, which is enough for the others."""
        policy = replace(VLLM, cache=CacheSettings())
        paged = setup(profile(blocks=16), replace(PAGED, seats=3), policy, ranks=(8,))
        given = requests((0.0, None, 32, 30), (0.0, None, 32, 30), (0.0, "a0", 16, 20))
        outcome, _ = watched(paged, given)
        assert [0, 0, 1] == [record.returns for record in outcome.records]

    def test_a_broken_promise_is_squashed(self) -> None:
        """One that passed on the promise of 10 tokens, and has 200, goes back for the head it passed."""
        lengths = {0: 20, 1: 5, 2: 10}
        chameleon = replace(
            setup(profile(), TWO_SEATS, PolicySettings(), ranks=(8, 8)),
            foretell=lambda request: lengths[request.index],
        )
        given = requests((0.0, "a0", 10, 20), (1.5, "a1", 10, 5), (1.6, "a0", 10, 200))
        outcome, _ = watched(chameleon, given)
        assert 1 == outcome.squashes == outcome.records[2].returns
        assert outcome.records[1].end_s is not None
        assert outcome.records[1].end_s < 40.0


class TestBadInput:
    def test_unknown_adapter(self) -> None:
        """The message names the request, the adapter, and how many there are."""
        with pytest.raises(ConfigError, match="request 1 names the adapter 'a7'; the setup has 2"):
            simulate(setup(profile(), ranks=(8, 8)), requests((0.0, "a1", 1, 1), (0.0, "a7", 1, 1)))

    def test_request_larger_than_the_kv_cache(self) -> None:
        """The message gives its tokens and what the cache holds: 15 blocks, for a slot takes 1."""
        small = setup(profile(blocks=16), replace(ONE_SEAT, max_rank=1))
        simulate(small, requests((0.0, None, 200, 40)))
        with pytest.raises(ConfigError, match=r"200 \+ 41 tokens, .* holds 240: scale"):
            simulate(small, requests((0.0, None, 200, 41)))


ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from((0.0, 0.0, 0.05, 0.3, 2.0)),
        st.sampled_from((None, "a0", "a1", "a2", "a3")),
        st.integers(1, 60),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=14,
)
STYLES = st.builds(
    EngineStyle,
    seats=st.integers(1, 6),
    batch_tokens=st.sampled_from((16, 50, 500)),
    mixes_prefill=st.booleans(),
    is_paged=st.booleans(),
    in_host=st.booleans(),
    slots=st.integers(1, 3),
    max_rank=st.just(4),
    pads_ranks=st.booleans(),
    is_preloaded=st.booleans(),
)


def cumulated(
    arrivals: list[tuple[float, str | None, int, int]],
) -> list[TimedRequest]:
    """Each so long after the one before."""
    now_s, given = 0.0, list[tuple[float, str | None, int, int]]()
    for gap_s, adapter, input_tokens, output_tokens in arrivals:
        now_s += gap_s
        given.append((now_s, adapter, input_tokens, output_tokens))
    return requests(*given)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    arrivals=ARRIVALS,
    style=STYLES,
    blocks=st.sampled_from((28, 40, 1000)),
    name=st.sampled_from(Preset),
    limit=st.none() | st.just(60),
    knows=st.booleans(),
)
def test_every_request_ends_once_within_memory(
    arrivals: list[tuple[float, str | None, int, int]],
    style: EngineStyle,
    blocks: int,
    name: Preset,
    limit: int | None,
    knows: bool,
) -> None:
    """Any engine, any published policy, little memory or much."""
    made = setup(profile(ANY, blocks, link_s=0.01), style, preset(name), ranks=(1, 2, 4, 1))
    made = replace(made, output_limit_tokens=limit)
    watched(replace(made, foretell=foretell_truth) if knows else made, cumulated(arrivals))


@given(
    arrivals=ARRIVALS,
    style=STYLES,
    name=st.sampled_from((Preset.VLLM, Preset.SJF, Preset.CHAMELEON, Preset.SLORA)),
)
def test_looking_ahead_changes_nothing(
    arrivals: list[tuple[float, str | None, int, int]], style: EngineStyle, name: Preset
) -> None:
    """Steps in which nothing can happen are taken at once: each time is that of a step by step run."""
    roomy = replace(style, seats=20, slots=4, batch_tokens=5000)
    made = setup(profile(ANY, 2000, link_s=0.01), roomy, preset(name), ranks=(1, 2, 4, 1))
    given = cumulated(arrivals)
    (fast, _), (slow, _) = run(made, given, Watched), run(made, given, StepByStep)
    run_s = 0.0
    for one, other in zip(fast.records, slow.records, strict=True):
        assert other.admitted_s is not None
        assert other.end_s is not None
        run_s += other.end_s - other.admitted_s
        assert one.admitted_s == pytest.approx(other.admitted_s, rel=1e-9)
        assert one.first_s == pytest.approx(other.first_s, rel=1e-9)
        assert one.end_s == pytest.approx(other.end_s, rel=1e-9)
        assert (one.found, one.lane) == (other.found, other.lane)
    assert fast.steps == slow.steps
    # Blocks taken during steps at once are taken to come evenly: half a block off, per request.
    assert fast.used_block_s == pytest.approx(slow.used_block_s, abs=0.5 * run_s + 1e-9)


@given(
    arrivals=ARRIVALS,
    seats=st.integers(1, 6),
    batch_tokens=st.sampled_from((7, 16, 50, 500)),
    mixes_prefill=st.booleans(),
)
def test_agrees_with_an_engine_written_out(
    arrivals: list[tuple[float, str | None, int, int]],
    seats: int,
    batch_tokens: int,
    mixes_prefill: bool,
) -> None:
    """Without adapters and with memory enough: the same admissions, first tokens and ends."""
    style = replace(ONE_SEAT, seats=seats, batch_tokens=batch_tokens, mixes_prefill=mixes_prefill)
    given = [replace(request, adapter=None) for request in cumulated(arrivals)]
    outcome = simulate(setup(profile(ANY), style), given)
    for plain, record in zip(PlainEngine(ANY, style, given).run(), outcome.records, strict=True):
        assert plain.admitted_s == pytest.approx(record.admitted_s, rel=1e-9)
        assert plain.first_s == pytest.approx(record.first_s, rel=1e-9)
        assert plain.end_s == pytest.approx(record.end_s, rel=1e-9)
