"""How long does one `Scheduler.step` take under load? Run: `.venv/bin/python -m experiments.policy_step`.

10,000 registered adapters of five sizes with power-law popularity, 32 slots, host memory for about
300 of them, at most 64 running; as many requests arrive as end, so about 1,000 wait all the time.
Adapters are kept in idle KV blocks too, where requests leave any.
Prints median, 99th percentile and maximum in microseconds, of `step` and of the facts, after a
warm-up. Options: --steps, --seed, --preset, --waiting, --adapters, --cpu.
"""

import argparse
import gc
import heapq
import random
from bisect import bisect
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from time import perf_counter_ns, thread_time_ns

from chameleon_lora.policy.plan import StepBudget, StepPlan
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, Preset, preset

MIB = 1 << 20
RANKS = (8, 16, 32, 64, 128)
BYTES_PER_RANK = MIB // 2
STEP_S = 0.02
LOAD_STEPS = 2
LIMITS = EngineLimits(
    seats=64,
    slots=32,
    kv_tokens=64_000,
    kv_bytes_per_token=131_072,
    block_bytes=16 * 131_072,
)
PROMOTION_STEPS = 2


class Load:
    """An engine without tensors: requests run for as many steps as they have tokens."""

    def __init__(
        self, name: Preset, adapters: int, seed: int, clock_ns: Callable[[], int] = perf_counter_ns
    ) -> None:
        self._clock_ns = clock_ns
        settings = preset(name)
        host_bytes = 300 * BYTES_PER_RANK * sum(RANKS) // len(RANKS)
        settings = replace(settings, cache=replace(settings.cache, host_bytes=host_bytes))
        self.policy = Scheduler(settings, LIMITS)
        self.times_ns: dict[str, list[int]] = defaultdict(list)
        self._rng = random.Random(seed)
        self._weights = list(accumulate(1.0 / (n + 1) for n in range(adapters)))
        self._step, self._count, self._unfinished = 0, 0, 0
        self._ends: list[tuple[int, int, RequestId, int]] = []
        self._loads: list[tuple[int, AdapterId]] = []
        self._promotions: deque[tuple[int, int]] = deque()
        self._bytes = {}
        for n in range(adapters):
            rank = RANKS[n % len(RANKS)]
            self._bytes[AdapterId(n)] = rank * BYTES_PER_RANK
            self.policy.registered(Adapter(AdapterId(n), f"a{n}", rank, rank * BYTES_PER_RANK))
        self._kv: dict[RequestId, int] = {}
        self._output: dict[RequestId, int] = {}

    @property
    def now_s(self) -> float:
        """The time of the step under way."""
        return self._step * STEP_S

    def arrive(self) -> None:
        """One request of a popular adapter, rarely of an unpopular one or the base model."""
        rng, self._count = self._rng, self._count + 1
        self._unfinished += 1
        rank = bisect(self._weights, rng.random() * self._weights[-1])
        adapter_id = None if rng.random() < 0.05 else AdapterId(rank)
        tokens = max(1, min(4000, int(rng.lognormvariate(5.5, 1.0))))
        output = max(1, min(1000, int(rng.lognormvariate(3.5, 0.9))))
        request = Request(RequestId(f"r{self._count}"), adapter_id, tokens, 2 * output)
        self._kv[request.id], self._output[request.id] = tokens + output, output
        self._timed("arrived", request, self.now_s)

    def step(self) -> None:
        """One engine step; afterwards what is due has ended and loaded."""
        self._step += 1
        running, held_blocks = self.policy.running, self.policy.held_blocks
        used = sum(self._kv[request_id] for request_id in running)
        total = LIMITS.kv_blocks.count
        used_blocks = -(-used // LIMITS.block_tokens)
        if held_blocks > total - used_blocks:
            self._timed("make_room", held_blocks - total + used_blocks, self.now_s)
        room = StepBudget(
            seats=64 - len(running),
            kv_tokens=LIMITS.kv_tokens - used,
            batch_tokens=8192,
            is_empty=not running,
            free_blocks=total - used_blocks - self.policy.held_blocks,
            growth_blocks=len(running) // LIMITS.block_tokens,
        )
        plan = self._timed("step", self.now_s, room)
        self._carry_out(plan)

    def fill(self, waiting: int) -> None:
        """Afterwards this many requests wait."""
        missing = waiting - (self._unfinished - len(self.policy.running))
        for _ in range(missing):
            self.arrive()

    def _carry_out(self, plan: StepPlan) -> None:
        now_s = self.now_s
        for request_id in plan.squash:
            self._timed("requeued", request_id, 1)
        for admission in plan.admit:
            end = self._step + self._output[admission.request_id]
            heapq.heappush(self._ends, (end, self._step, admission.request_id, end))
        for promotion in plan.promotions:
            self._promotions.append((self._step + PROMOTION_STEPS, promotion.serial))
        while self._promotions and self._promotions[0][0] <= self._step:
            self.policy.promoted(self._promotions.popleft()[1])
        for load in plan.loads:
            heapq.heappush(self._loads, (self._step + LOAD_STEPS, load.adapter_id))
        while self._loads and self._loads[0][0] <= self._step:
            adapter_id = heapq.heappop(self._loads)[1]
            nbytes = self._bytes[adapter_id]
            self._timed("loaded", adapter_id, nbytes, nbytes // BYTES_PER_RANK, now_s)
        while self._ends and self._ends[0][0] <= self._step:
            _, admitted, request_id, _ = heapq.heappop(self._ends)
            is_running = request_id in self.policy.running
            if is_running and self.policy.request(request_id).admitted_step == admitted:
                self._timed("finished", request_id, self._output[request_id], now_s)
                self._unfinished -= 1  # else it was squashed since

    def _timed(self, name: str, *args: object) -> StepPlan:
        call = getattr(self.policy, name)
        start_ns = self._clock_ns()
        answer = call(*args)
        self.times_ns[name].append(self._clock_ns() - start_ns)
        return answer  # type: ignore[no-any-return]


def main() -> None:
    """Warm up, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", type=Preset, default=Preset.CHAMELEON)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--cpu", action="store_true", help="CPU time, without what others took")
    given = parser.parse_args()
    clock_ns = thread_time_ns if given.cpu else perf_counter_ns
    load = Load(given.preset, given.adapters, given.seed, clock_ns)
    gc.disable()
    for measured in (False, True):
        load.times_ns.clear()
        for _ in range(given.steps if measured else given.steps // 5):
            load.fill(given.waiting)
            load.step()
        if not measured:
            gc.collect()
    device = load.policy.device(load.now_s)
    print(
        f"{device.promotions} promotions, {device.held_blocks} of {device.limit_blocks} blocks held"
    )
    for name, times_ns in sorted(load.times_ns.items(), key=lambda item: item[0] != "step"):
        micros = sorted(t / 1000 for t in times_ns)
        last = len(micros) - 1
        print(
            f"{name:10} {len(micros):7} calls  median {micros[last // 2]:7.1f} us"
            f"  P99 {micros[int(last * 0.99)]:7.1f} us  max {micros[-1]:8.1f} us"
        )


if __name__ == "__main__":
    main()
