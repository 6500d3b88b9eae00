"""Engines for tests: one that checks itself at each step, one that never looks ahead."""

from collections import Counter

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.plan import StepPlan
from chameleon_lora.policy.request import RequestId
from chameleon_lora.sim.batch import RunningRequest
from chameleon_lora.sim.engine import Engine
from chameleon_lora.sim.kernel import Action
from chameleon_lora.sim.outcome import SimOutcome


class Watched(Engine):
    """Checks that no step takes more memory than there is, and counts ends."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # handed on as they came
        self.ends: Counter[RequestId] = Counter()

    def _end_at(self, now_s: float, end_s: float, growth: int, action: Action) -> None:  # type: ignore[explicit-override]  # typing.override: Python 3.12
        super()._end_at(now_s, end_s, growth, action)
        batch, policy = self._batch, self.policy
        assert now_s <= end_s
        assert self._lacking_blocks() <= 0 or len(batch.runs) == 1
        taken = batch.used_blocks + growth + policy.held_blocks
        assert taken <= self._kv_blocks or len(batch.runs) == 1
        assert 0 <= policy.busy_blocks <= policy.held_blocks
        assert len(batch.runs) <= self._style.seats
        assert policy.running == batch.runs.keys()
        in_use = {run.adapter_id for run in batch.runs.values()} - {None}
        held = sum(policy.adapter(adapter_id).blocks for adapter_id in in_use if adapter_id)
        assert not policy.limits.is_paged or held == policy.busy_blocks

    def _carry_out(self, plan: StepPlan, now_s: float) -> float:  # type: ignore[explicit-override]  # as above
        ready_s = super()._carry_out(plan, now_s)
        assert now_s <= ready_s
        return ready_s

    def _end(self, run: RunningRequest, now_s: float) -> None:  # type: ignore[explicit-override]  # as above
        self.ends[run.request_id] += 1
        super()._end(run, now_s)


class StepByStep(Watched):
    """Asks the policy before each step, also where that has nothing to say."""

    def _decode_ahead(  # type: ignore[explicit-override]  # as above
        self, now_s: float, ready_s: float, work: StepWork
    ) -> tuple[float, float, int]:
        assert now_s <= ready_s
        end_s = ready_s + self._step_s(work)
        return end_s, end_s, 1


def check_complete(outcome: SimOutcome, engine: Watched) -> None:
    """Each request ended once or failed; its gaps are those from its first token to its last."""
    ended = [record for record in outcome.records if record.failure is None]
    assert Counter(str(record.index) for record in ended) == engine.ends
    for record in ended:
        assert record.admitted_s is not None
        assert record.first_s is not None
        assert record.end_s is not None
        assert record.arrival_s <= record.admitted_s <= record.first_s <= record.end_s
    gaps = sum(record.request.output_tokens - 1 for record in ended)
    assert gaps == sum(count for _, count in outcome.gaps)
    seconds = sum((record.end_s or 0.0) - (record.first_s or 0.0) for record in ended)
    assert abs(seconds - sum(gap_s * count for gap_s, count in outcome.gaps)) < 1e-6
    assert not engine._batch.runs
    assert not engine._waiting
    assert 0 == engine._batch.used_blocks == engine.policy.busy_blocks
    assert (outcome.preemptions or outcome.squashes) or not any(r.returns for r in outcome.records)
