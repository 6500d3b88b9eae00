"""Whether a batch fits at its worst moment: S-LoRA's rule of admission."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.admission.peak import Peak
from chameleon_lora.policy.plan import Held
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.queues.quota import QuotaCharge
from chameleon_lora.policy.settings import EngineLimits, Preset, preset
from tests.policy.engine_model import EngineModel, adapter, request

STEP = 100


def state(tokens: int, left: int, done: int = 0, *, is_running: bool = False) -> RequestState:
    """A request that holds so many tokens and may generate so many more; `done` of them are output."""
    asked = request(f"{tokens} {left} {done}", None, tokens - done, output=1, limit=left + done)
    return RequestState(
        request=asked, entry=None, sequence=1, key=0.0, arrived_s=0.0, size=0.0, output_tokens=1,
        cost_tokens=1, prefill_tokens=tokens, lane=0,
        stage=Stage.RUNNING if is_running else Stage.READY,
        charge=QuotaCharge((), 0) if is_running else None,
        admitted_step=STEP - done if is_running else None,
        generated_tokens=0 if is_running else done,
    )  # fmt: skip


def running(tokens: int, left: int, done: int = 1) -> RequestState:
    """Of the batch."""
    return state(tokens, left, done, is_running=True)


def worst(batch: list[tuple[int, int]]) -> int:
    """The most tokens that (tokens, left) hold, each growing by one a step until it leaves."""
    peak = step = 0
    while batch:
        peak = max(peak, sum(tokens + step for tokens, _ in batch))
        batch = [(tokens, left) for tokens, left in batch if left > step]
        step += 1
    return peak


class TestByHand:
    """Two run: one of 10 tokens that may have 5 more, one of 20 that may have 2 more.

    When the short one ends both have grown by 2: 12 + 22 = 34. The long one alone ends at 15.
    A third of 3 tokens and 4 more: after 2 steps 12 + 22 + 5 = 39; after 4 steps 14 + 7 = 21.
    """

    BATCH = (running(10, 5), running(20, 2))

    @pytest.mark.parametrize(("free", "expected"), [(39, False), (40, True)])
    def test_the_sum_when_the_shortest_ends(self, free: int, expected: bool) -> None:
        """39 tokens at the worst do not fit in 39, for one more is always needed; in 40 they do."""
        assert expected is Peak(self.BATCH, STEP, free).fits(state(3, 4), 0)

    def test_a_late_peak_counts_too(self) -> None:
        """One that may have 90 more is alone in the end: 3 + 90 = 93."""
        assert not Peak(self.BATCH, STEP, 93).fits(state(3, 90), 0)
        assert Peak(self.BATCH, STEP, 94).fits(state(3, 90), 0)

    def test_its_adapter_counts(self) -> None:
        """8 tokens of an adapter that begins to be in use leave 40 of 48."""
        assert not Peak(self.BATCH, STEP, 47).fits(state(3, 4), 8)
        assert Peak(self.BATCH, STEP, 48).fits(state(3, 4), 8)

    def test_those_let_in_before_count(self) -> None:
        """After the third a fourth of 1 token and 1 more: after 1 step 11 + 21 + 4 + 2, after 2 39."""
        peak = Peak(self.BATCH, STEP, 40)
        peak.add(state(3, 4), 0)
        assert peak.fits(state(1, 1), 0)
        assert not peak.fits(state(1, 2), 0)

    def test_their_adapters_count(self) -> None:
        """The adapter of one let in takes its tokens from the next."""
        peak = Peak(self.BATCH, STEP, 48)
        peak.add(state(3, 4), 8)
        assert peak.fits(state(1, 1), 0)
        assert not peak.fits(state(1, 1), 1)

    def test_one_that_comes_back_has_what_it_generated(self) -> None:
        """9 of its 12 tokens are output, and of a limit of 12 it may have 3 more: at most 15."""
        back = state(12, 3, done=9)
        assert not Peak((), STEP, 15).fits(back, 0)
        assert Peak((), STEP, 16).fits(back, 0)


@given(
    batch=st.lists(st.tuples(st.integers(2, 40), st.integers(1, 30)), max_size=8),
    newcomer=st.tuples(st.integers(2, 40), st.integers(1, 30)),
    added=st.integers(0, 8),
    adapter_tokens=st.integers(0, 30),
    slack=st.integers(-3, 3),
)
def test_agrees_with_a_batch_that_grows_step_by_step(
    batch: list[tuple[int, int]],
    newcomer: tuple[int, int],
    added: int,
    adapter_tokens: int,
    slack: int,
) -> None:
    """It fits exactly if the largest memory over time is below what is free."""
    free = worst([*batch, newcomer]) + adapter_tokens + slack
    peak = Peak([running(*pair) for pair in batch[added:]], STEP, free)
    for pair in batch[:added]:
        peak.add(state(*pair), 0)
    assert (slack > 0) is peak.fits(state(*newcomer), adapter_tokens)


class TestAdmission:
    LIMITS = EngineLimits(
        seats=8, slots=1, kv_tokens=1600, kv_bytes_per_token=10, block_bytes=160, is_paged=True
    )

    def engine(self) -> EngineModel:
        """S-LoRA with 100 blocks; adapter 1 takes 40 of them, adapter 2 takes 10."""
        engine = EngineModel(preset(Preset.SLORA), self.LIMITS)
        engine.preload(adapter(1, 40 * 160), adapter(2, 10 * 160))
        return engine

    def test_an_adapter_in_use_is_paid_for_once(self) -> None:
        """640 tokens are adapter 1's; three requests of up to 310 fit beside it, a fourth does not."""
        engine = self.engine()
        for name in "abcd":
            engine.arrive(request(name, 1, limit=300), 20)
        assert ["a", "b", "c"] == [admission.request_id for admission in engine.step().admit]
        assert [Held.KV_MEMORY] == [state.held for state in engine.policy.view(0.0).lanes]

    @pytest.mark.parametrize(("limit", "expected"), [(789, 11), (790, 21)])
    def test_one_of_those_that_run_is_paid_for_in_later_steps(
        self, limit: int, expected: int
    ) -> None:
        """640 + 160 tokens are adapters': up to 799 are left for the request, until the other ended."""
        engine = self.engine()
        engine.arrive(request("a", 1, limit=20), 20)
        engine.step()
        engine.arrive(request("b", 2, limit=limit), 20)
        for _ in range(25):
            engine.step()
        assert [expected] == [n for n, plan in enumerate(engine.plans[1:], 2) if plan.admit]

    def test_what_never_fits_runs_alone(self) -> None:
        """A limit above all memory is admitted by an empty engine only, and nobody beside it."""
        engine = self.engine()
        engine.arrive(request("a", limit=5000), 30)
        engine.arrive(request("b", limit=5), 1)
        for _ in range(29):
            engine.step()
        assert ["a"] == list(engine.running)
        engine.run_until_idle()
        assert all(done.end_s for done in engine.done.values())
