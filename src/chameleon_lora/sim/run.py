"""Runs a list of timed requests through a simulated engine."""

from collections.abc import Sequence

from chameleon_lora.errors import ConfigError
from chameleon_lora.sim.engine import Engine
from chameleon_lora.sim.kernel import Kernel, Priority
from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.setup import Setup
from chameleon_lora.workload.requests import TimedRequest


def simulate(setup: Setup, requests: Sequence[TimedRequest]) -> SimOutcome:
    """What becomes of the requests, which are in order of arrival. The same input, the same outcome.

    Raises:
        ConfigError: a request names an adapter that the setup lacks, or is larger than the KV cache.
    """
    _check(setup, requests)
    kernel, outcome = Kernel(), SimOutcome([])
    engine = Engine(setup, kernel, outcome)
    _Arrivals(setup, requests, kernel, engine).plan_next()
    kernel.run()
    outcome.link_busy_s, outcome.link_bytes = engine.copies.link.busy_s, engine.copies.link.nbytes
    outcome.promotions = engine.policy.device(kernel.now_s).promotions
    return outcome


def _check(setup: Setup, requests: Sequence[TimedRequest]) -> None:
    known = {adapter.name for adapter in setup.adapters}
    capacity = setup.limits.kv_tokens
    for request in requests:
        if request.adapter is not None and request.adapter not in known:
            raise ConfigError(
                f"request {request.index} names the adapter {request.adapter!r}; the setup has "
                f"{len(known)} adapters, and it is none of them"
            )
        if request.input_tokens + request.output_tokens > capacity:
            raise ConfigError(
                f"request {request.index} has {request.input_tokens} + {request.output_tokens} tokens, "
                f"but the KV cache of {setup.profile.name} holds {capacity}: scale the lengths down"
            )


class _Arrivals:
    """Brings in one request after the other, each planned when the one before it arrives."""

    def __init__(
        self, setup: Setup, requests: Sequence[TimedRequest], kernel: Kernel, engine: Engine
    ) -> None:
        self._delay_s = setup.profile.request_s
        self._kernel = kernel
        self._engine = engine
        self._requests = iter(zip(requests, _next_uses_s(requests), strict=True))

    def plan_next(self) -> None:
        """Afterwards the next request, if there is one, will arrive."""
        item = next(self._requests, None)
        if item is None:
            return
        request, next_use_s = item

        def arrive(now_s: float) -> None:
            self._engine.arrive(request, next_use_s, now_s)
            self.plan_next()

        self._kernel.plan(request.arrival_s + self._delay_s, Priority.ARRIVAL, arrive)


def _next_uses_s(requests: Sequence[TimedRequest]) -> list[float]:
    """For each request, when the next one that names its adapter arrives; infinity if none does."""
    upcoming: dict[str | None, float] = {}
    uses_s: list[float] = []
    for request in reversed(requests):
        uses_s.append(upcoming.get(request.adapter, float("inf")))
        upcoming[request.adapter] = request.arrival_s
    uses_s.reverse()
    return uses_s
