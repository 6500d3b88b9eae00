"""An engine written out: first come, first served, no adapters, memory without end."""

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.sim.profile import StepCosts
from chameleon_lora.sim.setup import EngineStyle
from chameleon_lora.workload.requests import TimedRequest


@dataclass
class PlainRun:
    """One request, and when it was admitted, got its first token and ended."""

    request: TimedRequest
    computed: int = 0
    generated: int = 0
    admitted_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0

    @property
    def left(self) -> int:
        """Of its prompt."""
        return self.request.input_tokens - self.computed

    def token(self, now_s: float) -> None:
        """It got one."""
        self.generated += 1
        self.first_s = now_s if self.generated == 1 else self.first_s
        self.end_s = now_s


class PlainEngine:
    """Walks all its requests in every step."""

    def __init__(self, costs: StepCosts, style: EngineStyle, requests: Sequence[TimedRequest]):
        self.costs = costs
        self.style = style
        self.all = [PlainRun(request) for request in requests]
        self.running: list[PlainRun] = []
        self.now_s = 0.0

    def run(self) -> list[PlainRun]:
        """All requests, to their ends."""
        waiting = list(self.all)
        while waiting or self.running:
            if not self.running:
                self.now_s = max(self.now_s, waiting[0].request.arrival_s)
            self.admit(waiting)
            if self.style.mixes_prefill:
                self.step(self.style.batch_tokens)
                continue
            if any(plain.left for plain in self.running):
                self.step(None)
            if self.running:
                self.step(0)
        return self.all

    def admit(self, waiting: list[PlainRun]) -> None:
        """In order of arrival, while there is a seat and a token to compute."""
        budget = self.style.batch_tokens
        if self.style.mixes_prefill:
            budget -= sum(plain.left or 1 for plain in self.running)
        while waiting and waiting[0].request.arrival_s <= self.now_s:
            if budget <= 0 or len(self.running) >= self.style.seats:
                return
            plain = waiting.pop(0)
            plain.admitted_s = self.now_s
            budget -= plain.left
            self.running.append(plain)

    def step(self, budget: int | None) -> None:
        """With None, prompts only and whole; with 0, decoding only; else both, within the budget."""
        decoding = [] if budget is None else [p for p in self.running if not p.left]
        work = StepWork(decode_requests=len(decoding))
        work.context_tokens = sum(p.computed + p.generated - 1 for p in decoding)
        left = 1 << 60 if budget is None else budget - len(decoding)
        ready = list(decoding)
        for plain in self.running:
            take = min(plain.left, left)
            if take > 0:
                left -= take
                work.prefill_tokens += take
                work.attention_pairs += take * (plain.computed + take / 2)
                plain.computed += take
                ready += [] if plain.left else [plain]
        self.now_s += self.costs.step_s(work)
        for plain in ready:
            plain.token(self.now_s)
        self.running = [p for p in self.running if p.generated < p.request.output_tokens]
