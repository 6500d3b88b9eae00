"""The paper's testbeds as we model them: the workload, the engine, and what was fitted to what.

Two numbers of the workload are not printed in the paper. They are fitted to figures it gives of an
unloaded system and of the baseline alone (docs/reproduction.md), never to Chameleon's own:

- LENGTH_FACTOR, by which the trace's lengths are scaled: an unloaded request takes 1 s, a fifth of
  the stated objective of 5 s.
- the A40 profile's memory pool: S-LoRA sustains 8.6 requests/s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chameleon_lora.planning.sustained import SustainedLoad, sustained_rate
from chameleon_lora.reproduce.arms import SystemUnderTest
from chameleon_lora.reproduce.finding import Effort
from chameleon_lora.sim.figures import SimFigures, figures
from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.profile import Profile, read_profile
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import Setup
from chameleon_lora.workload.foretold import (
    OutputGuess,
    bert_like,
    noisy_oracle,
    oracle,
    per_request,
)
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.named_adapters import NamedAdapter, named_adapters
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from chameleon_lora.workload.trace import TraceRow

A40 = "llama-7b-a40-48g"
LENGTH_FACTOR = 0.16
SLO_S = 5.0
WARM_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class TestbedRun:
    """One system at one load: the figures of all seeds together, and of each seed."""

    all: SimFigures
    by_seed: tuple[SimFigures, ...]


@dataclass(frozen=True, slots=True)
class Testbed:
    """A workload on a machine; every arm of a comparison gets the same.

    Attributes:
        rank_alpha: 0 for ranks that are equally popular; None for one power law over all adapters.
        accuracy: of foretold output lengths: None is the errors of a real BERT (SSJF's), 1 the truth.
    """

    profile: Profile
    adapters: tuple[NamedAdapter, ...]
    alpha: float = 1.0
    rank_alpha: float | None = 0.0
    length_factor: float = LENGTH_FACTOR
    trace: tuple[TraceRow, ...] = ()
    accuracy: float | None = None

    def requests(self, rate_per_s: float, effort: Effort, seed: int) -> tuple[TimedRequest, ...]:
        """Poisson arrivals over the effort's time."""
        spec = WorkloadSpec(
            rate_per_s,
            effort.duration_s,
            alpha=self.alpha,
            rank_alpha=self.rank_alpha,
            lengths=LengthScale(self.length_factor),
            trace=self.trace,
        )
        return make_workload(spec, self.adapters, seed)

    def outcome(self, arm: SystemUnderTest, rate_per_s: float, effort: Effort) -> SimOutcome:
        """What becomes of the requests, all seeds one after the other."""
        return pooled(self._outcomes(arm, rate_per_s, effort))

    def figures(self, arm: SystemUnderTest, rate_per_s: float, effort: Effort) -> SimFigures:
        """The figures of all seeds together, without their warm-ups."""
        return figures(self.outcome(arm, rate_per_s, effort), WARM_UP_S, SLO_S)

    def run(self, arm: SystemUnderTest, rate_per_s: float, effort: Effort) -> TestbedRun:
        """The figures of all seeds together, and of each."""
        outcomes = self._outcomes(arm, rate_per_s, effort)
        by_seed = tuple(figures(outcome, WARM_UP_S, SLO_S) for outcome in outcomes)
        return TestbedRun(figures(pooled(outcomes), WARM_UP_S, SLO_S), by_seed)

    def _outcomes(
        self, arm: SystemUnderTest, rate_per_s: float, effort: Effort
    ) -> list[SimOutcome]:
        outcomes = []
        for seed in effort.seeds:
            requests = self.requests(rate_per_s, effort, seed)
            outcomes.append(simulate(self._setup(arm, requests, seed), requests))
        return outcomes

    def sustained(
        self, arm: SystemUnderTest, effort: Effort, slo_s: float, start_per_s: float
    ) -> SustainedLoad:
        """The highest load whose P99 TTFT meets the objective."""
        return sustained_rate(lambda rate: self.figures(arm, rate, effort), slo_s, start_per_s)

    def _setup(self, arm: SystemUnderTest, requests: Sequence[TimedRequest], seed: int) -> Setup:
        return Setup(
            profile=self.profile,
            style=arm.style,
            policy=arm.policy,
            adapters=self.adapters,
            foretell=per_request(self._guess(arm, requests), seed),
            output_limit_tokens=arm.output_limit_tokens,
            unlimited_adapters=arm.unlimited_adapters,
        )

    def _guess(self, arm: SystemUnderTest, requests: Sequence[TimedRequest]) -> OutputGuess:
        lengths = [request.output_tokens for request in requests]
        if arm.is_clairvoyant or self.accuracy == 1.0:
            return oracle
        if self.accuracy is None:
            return bert_like(lengths)
        return noisy_oracle(lengths, self.accuracy)


def a40(adapters: int = 100, **changes: Any) -> Testbed:
    """The paper's main testbed: Llama-7B on an A40, ranks 8 to 128 equally popular."""
    return Testbed(
        **{"profile": read_profile(A40), "adapters": named_adapters(adapters), **changes}
    )


def pooled(outcomes: Sequence[SimOutcome]) -> SimOutcome:
    """Several runs as one: their requests, gaps and counters together."""
    first, *others = outcomes
    for other in others:
        first.records += other.records
        first.gaps += other.gaps
        first.duration_s += other.duration_s
        first.steps += other.steps
        first.preemptions += other.preemptions
        first.squashes += other.squashes
        first.link_busy_s += other.link_busy_s
        first.link_bytes += other.link_bytes
        first.promotions += other.promotions
        first.held_block_s += other.held_block_s
        first.used_block_s += other.used_block_s
    return first
