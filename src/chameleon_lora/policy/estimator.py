"""What the policy makes of a request that arrives: predicted output, size, cost, place in its lane.

Boost (Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1", SIGMETRICS 2024):
serve in order of arrival moved earlier by b(s) = ln(1 / (1 - exp(-gamma s))) / gamma, with s the
service time and gamma the decay rate of the waiting-time tail. Small requests gain much, large ones
nothing, and since the gain is a fixed time nobody starves.
"""

import math
from typing import assert_never

from chameleon_lora.policy.admission.rules import Order
from chameleon_lora.policy.estimate.length import LengthEstimator
from chameleon_lora.policy.estimate.size import Sizer
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.request import Adapter, Request
from chameleon_lora.policy.settings import PolicySettings

MEMORY = 128  # requests over which the running means of the load forget


class LoadEstimator:
    """Running means of waiting time and of tokens per second. Owner: the estimator."""

    def __init__(self) -> None:
        self._wait_s = 0.0
        self._gap_s = 0.0
        self._tokens = 0.0
        self._last_end_s: float | None = None

    def admitted(self, waited_s: float) -> None:
        """A request ran for the first time after this wait."""
        self._wait_s += (waited_s - self._wait_s) / MEMORY

    def ended(self, tokens: int, now_s: float) -> None:
        """A request of this many tokens (input and output) ended."""
        if self._last_end_s is not None:
            self._gap_s += (now_s - self._last_end_s - self._gap_s) / MEMORY
            self._tokens += (tokens - self._tokens) / MEMORY
        self._last_end_s = now_s

    def boost_s(self, tokens: int) -> float:
        """Head start of a request of this size, in seconds; 0 while nothing waits or ended yet."""
        if self._wait_s < 1e-3 or self._tokens == 0.0:
            return 0.0
        gamma = 1.0 / self._wait_s
        service_s = tokens * self._gap_s / self._tokens
        return -math.log(-math.expm1(-gamma * max(service_s, 1e-6))) / gamma


class Estimator:
    """Estimates at arrival. Numbers requests in order of arrival, from 1. Owner: the scheduler."""

    def __init__(self, settings: PolicySettings, kv_bytes_per_token: int) -> None:
        self._load = LoadEstimator()
        self._admission = settings.admission
        self._kv_bytes_per_token = kv_bytes_per_token
        self._sizer = Sizer(settings.size)
        self._sequence = 0
        self.lengths = LengthEstimator(settings.length)

    def registered(self, adapter: Adapter) -> None:
        """An adapter became known: it counts for the size of requests from now on."""
        self._sizer.registered(adapter.nbytes)

    def state(self, request: Request, entry: Entry | None, now_s: float) -> RequestState:
        """What is known of a request that has come; it is in no lane yet."""
        limit = request.max_output_tokens
        hint = request.output_hint_tokens or self.lengths.predict_tokens(request)
        output = max(1, min(hint, limit))
        charged = self.lengths.reserve_tokens(request, output)
        nbytes = entry.adapter.nbytes if entry else None
        self._sequence += 1
        return RequestState(
            request=request,
            entry=entry,
            sequence=self._sequence,
            key=self._key(output, request.input_tokens, now_s),
            arrived_s=now_s,
            size=self._sizer.size(request.input_tokens, output, nbytes),
            output_tokens=output,
            cost_tokens=request.input_tokens + charged + (nbytes or 0) // self._kv_bytes_per_token,
            prefill_tokens=request.input_tokens,
            lane=0,
            stage=Stage.LOADING,
        )

    def admitted(self, state: RequestState, now_s: float) -> None:
        """The request is about to run; the first time, it tells how long requests wait."""
        if state.admitted_step is None:
            self._load.admitted(now_s - state.arrived_s)

    def ended(self, state: RequestState, output_tokens: int, now_s: float) -> None:
        """A request ran to its end: later ones of its adapter are expected to do alike."""
        self.lengths.observe(state.request, state.output_tokens, output_tokens)
        self._load.ended(state.request.input_tokens + output_tokens, now_s)

    def _key(self, output_tokens: int, input_tokens: int, now_s: float) -> float:
        """Place in the lane. All age alike, so a later arrival's handicap stands for its youth."""
        match self._admission.order:
            case Order.FIFO:
                return self._sequence
            case Order.SJF:
                return output_tokens + self._admission.aging_tokens_per_s * now_s
            case Order.BOOST:
                return now_s - self._load.boost_s(input_tokens + output_tokens)
            case _:
                assert_never(self._admission.order)
