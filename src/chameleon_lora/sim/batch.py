"""The requests an engine runs, and the KV blocks they hold. A decode step costs O(1), not O(batch).

All decoding requests grow by one token a step. So a request's length follows from a count of decode
steps, its end is known when it begins to decode, and so is in which steps it needs another block.
"""

import heapq
from collections import Counter
from dataclasses import dataclass

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.workload.requests import TimedRequest


@dataclass(slots=True, eq=False)
class RunningRequest:
    """A request in the batch.

    Attributes:
        rank: that LoRA arithmetic is charged for; 0 for the base model.
        left_tokens: of its prompt (and what it generated before), still to be computed.
        tokens: in the KV cache, when it began to decode; the prompt's computed part before.
        generated: tokens, when it began to decode.
        joined: decode steps of the batch when it began to decode; None before.
        last_s: when it got the last token that came of a prompt's end, or before it was taken out.
    """

    request_id: RequestId
    request: TimedRequest
    adapter_id: AdapterId | None
    rank: int
    left_tokens: int
    generated: int
    tokens: int = 0
    joined: int | None = None
    last_s: float | None = None


class Batch:
    """Who runs. Owner: the engine. Invariant: a decoding request holds just the blocks it needs."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self.runs: dict[RequestId, RunningRequest] = {}  # by admission
        self.prefilling: dict[RequestId, RunningRequest] = {}
        self.used_blocks = 0
        self.decoding = 0
        self._steps = 0
        self._context = 0
        self._ranks = self._adapter_ranks = 0
        self._adapters: Counter[AdapterId] = Counter()
        self._growing = [0] * block_tokens  # decoding requests, by the steps in which they grow
        self._ends: list[tuple[int, int, RunningRequest]] = []
        self._sequence = 0

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that so many tokens fill."""
        return -(-tokens // self._block_tokens)

    def admit(self, run: RunningRequest) -> None:
        """Afterwards the request runs, and has the blocks for what is to be computed first."""
        self.runs[run.request_id] = run
        self.prefilling[run.request_id] = run
        self.used_blocks += self.blocks_for(run.left_tokens)
        if run.adapter_id is not None:
            self._adapter_ranks += 0 if self.has(run.adapter_id) else run.rank
            self._adapters[run.adapter_id] += 1

    def has(self, adapter_id: AdapterId) -> bool:
        """True if somebody runs with this adapter."""
        return adapter_id in self._adapters

    def growth_blocks(self) -> int:
        """Blocks that the next decode step takes."""
        return self._growing[self._steps % self._block_tokens]

    def growth_blocks_in(self, steps: int) -> int:
        """Blocks that the next so many decode steps take. O(block)."""
        block, ring = self._block_tokens, self._growing
        whole, rest = divmod(steps, block)
        first = self._steps % block
        last = first + rest
        return whole * self.decoding + sum(ring[first:last]) + sum(ring[: max(0, last - block)])

    def steps_to_end(self) -> int:
        """Decode steps until the first of the decoding requests ends; there is one."""
        while self._ends[0][2].joined is None:
            heapq.heappop(self._ends)
        return self._ends[0][0] - self._steps

    def prefill(self, budget: int | None, work: StepWork) -> list[RunningRequest]:
        """Compute prompts, oldest first, within a budget of tokens; answers whose are complete."""
        complete: list[RunningRequest] = []
        for run in list(self.prefilling.values()):
            take = run.left_tokens if budget is None else min(run.left_tokens, budget)
            if take <= 0:
                break
            if budget is not None:
                budget -= take
            work.prefill_tokens += take
            work.attention_pairs += take * (run.tokens + take / 2)
            work.lora_prefill_ranks += take * run.rank
            run.left_tokens -= take
            run.tokens += take
            if not run.left_tokens:
                complete.append(run)
        return complete

    def decode(self, steps: int = 1) -> None:
        """Everybody who decodes gets so many tokens more, and the blocks for them."""
        self.used_blocks += self.growth_blocks_in(steps) if steps > 1 else self.growth_blocks()
        self._steps += steps
        self._context += steps * self.decoding

    def load(self, work: StepWork) -> None:
        """Add a decode step of all who decode to the work."""
        work.decode_requests = self.decoding
        work.context_tokens = self._context
        work.lora_decode_ranks = self._ranks
        work.adapters = len(self._adapters)
        work.adapter_ranks = self._adapter_ranks

    def join(self, run: RunningRequest) -> bool:
        """A request whose prompt is computed got a token; it decodes from now on, or has ended."""
        del self.prefilling[run.request_id]
        run.generated += 1
        if run.generated >= run.request.output_tokens:
            self._leave(run, run.tokens)
            return False
        run.joined = self._steps
        self.decoding += 1
        self._context += run.tokens
        self._ranks += run.rank
        self._growing[(self._steps - run.tokens) % self._block_tokens] += 1
        self._sequence += 1
        end = self._steps + run.request.output_tokens - run.generated
        heapq.heappush(self._ends, (end, self._sequence, run))
        return True

    def ended(self) -> list[RunningRequest]:
        """Take out those who have all their tokens."""
        done: list[RunningRequest] = []
        while self._ends and self._ends[0][0] <= self._steps:
            run = heapq.heappop(self._ends)[2]
            if run.joined is not None:
                self.remove(run)
                done.append(run)
        return done

    def remove(self, run: RunningRequest) -> None:
        """Afterwards the request does not run; `generated` and `tokens` say how far it came."""
        if run.joined is None:
            del self.prefilling[run.request_id]
            self._leave(run, run.tokens + run.left_tokens)
            return
        done = self._steps - run.joined
        self._growing[(run.joined - run.tokens) % self._block_tokens] -= 1
        run.tokens += done
        run.generated += done
        run.joined = None
        self.decoding -= 1
        self._context -= run.tokens
        self._ranks -= run.rank
        self._leave(run, run.tokens)

    def _leave(self, run: RunningRequest, held_tokens: int) -> None:
        del self.runs[run.request_id]
        self.used_blocks -= self.blocks_for(held_tokens)
        if run.adapter_id is not None:
            self._adapters[run.adapter_id] -= 1
            if not self._adapters[run.adapter_id]:
                del self._adapters[run.adapter_id]
                self._adapter_ranks -= run.rank
