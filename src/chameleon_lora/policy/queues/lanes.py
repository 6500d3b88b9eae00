"""What is known of one request, and the lane it waits in (PAPER §4.3.1, Algorithm 1's queues)."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.queues.quota import QuotaCharge
from chameleon_lora.policy.queues.shares import Shares
from chameleon_lora.policy.request import AdapterId, Request, Share


class Stage(Enum):
    """Where a request stands. It leaves the policy when it finishes."""

    LOADING = "loading"  # its adapter is not in host memory yet
    READY = "ready"  # in its lane
    RUNNING = "running"  # admitted; holds its charge


@dataclass(slots=True, eq=False)
class RequestState:
    """What the policy knows of one unfinished request. Owner: the backlog.

    Attributes:
        entry: its adapter; None for the base model.
        sequence: order of arrival, kept when the request comes back to its lane.
        key: place in the lane; smaller goes first.
        output_tokens: predicted output length.
        cost_tokens: what it borrows from the quota: input, predicted output, adapter in KV tokens.
        prefill_tokens: tokens to compute when it is admitted: the prompt and what it generated before.
        overtaken: admissions of younger requests while this one was the oldest held back; it is
            kept when the request comes back to its lane (ADR 0012).
        promised_to: sequence of the head it passed, if it was let in on the promise to end before
            that head's slot, or memory for its adapter, comes free.
    """

    request: Request
    entry: Entry | None
    sequence: int
    key: float
    arrived_s: float
    size: float
    output_tokens: int
    cost_tokens: int
    prefill_tokens: int
    lane: int
    stage: Stage
    charge: QuotaCharge | None = None
    admitted_step: int | None = None
    admitted_s: float = 0.0
    generated_tokens: int = 0
    overtaken: int = 0
    squashes: int = 0
    promised_to: int | None = None
    is_in_age_order: bool = False

    @property
    def order(self) -> tuple[float, int]:
        """The place among those of its share, without ties."""
        return (self.key, self.sequence)

    def goes_back(self, generated_tokens: int) -> None:
        """It is to run later, from where it stopped; if it had promised to end before, it is squashed."""
        self.squashes += self.promised_to is not None
        self.generated_tokens = generated_tokens
        self.prefill_tokens = self.request.input_tokens + generated_tokens

    def left_tokens(self, step: int) -> int:
        """Predicted steps until it ends, once it runs, at one token a step; at least 1.

        One that outlived its prediction is expected to last half as long again (ADR 0008).
        """
        assert self.admitted_step is not None, "only what runs ends"
        done = self.generated_tokens + step - self.admitted_step
        if done < self.output_tokens:
            return self.output_tokens - done
        return min(done // 2 + 1, max(self.request.max_output_tokens - done, 1))


class _Heap:
    """A heap of ready requests. Entries of requests that left are dropped when they surface.

    One that comes back before that finds its old entry valid again, for its place does not change.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, RequestState]] = []
        self._members: set[RequestState] = set()

    def push(self, state: RequestState) -> None:
        """Afterwards the request is in the heap, once. O(log n)."""
        if state not in self._members:
            self._members.add(state)
            heapq.heappush(self._heap, (state.key, state.sequence, state))

    def first(self) -> RequestState | None:
        """The first request that is ready, or None."""
        while self._heap:
            state = self._heap[0][2]
            if state.stage is Stage.READY:
                return state
            heapq.heappop(self._heap)
            self._members.discard(state)
        return None


class _Ready:
    """Ready requests, a heap for each share; first is the first of the share that has had least."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._heaps: dict[Share | None, _Heap] = {}

    def push(self, state: RequestState) -> None:
        """Afterwards the request is in its share's heap, once. O(log n)."""
        heap = self._heaps.get(state.request.share)
        if heap is None:
            heap = self._heaps[state.request.share] = _Heap()
        heap.push(state)

    def first(self) -> RequestState | None:
        """The first request that is ready, or None. O(shares that have requests here)."""
        if len(self._heaps) == 1:
            return next(iter(self._heaps.values())).first()
        heads = {share: head for share, heap in self._heaps.items() if (head := heap.first())}
        self._heaps = {share: self._heaps[share] for share in heads}
        return min(heads.values(), key=self.place, default=None)

    def place(self, state: RequestState) -> tuple[float, float, int]:
        """Where a request stands now, without ties; smaller goes first."""
        return (self._shares.had(state.request.share), *state.order)


class Lane:
    """The ready requests of one size class, in order; also by adapter.

    Between shares the order is that of `shares`, in which the lanes of a backlog have part together.

    No operation walks the lane.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._order = _Ready(self._shares)
        self._by_adapter: dict[AdapterId | None, _Ready] = {}
        self.ready = 0

    def push(self, state: RequestState) -> None:
        """Put a request in its place; afterwards it is READY. O(log n)."""
        state.stage = Stage.READY
        self.ready += 1
        self._order.push(state)
        self._ready_for(state.request.adapter_id).push(state)

    def leave(self, state: RequestState, stage: Stage) -> None:
        """Take a READY request out, to another stage. O(log n) amortised."""
        assert state.stage is Stage.READY
        state.stage = stage
        self.ready -= 1
        # Surface what left, or heaps that nobody asks would keep every request there ever was.
        self.head()
        self.head_of(state.request.adapter_id)

    def place(self, state: RequestState) -> tuple[float, float, int]:
        """Where a request of the lane stands now, without ties; smaller goes first."""
        return self._order.place(state)

    def head(self) -> RequestState | None:
        """The first ready request, or None."""
        return self._order.first()

    def head_of(self, adapter_id: AdapterId | None) -> RequestState | None:
        """The first ready request that names this adapter (None: the base model), or None."""
        queue = self._by_adapter.get(adapter_id)
        if queue is None:
            return None
        head = queue.first()
        if head is None:
            del self._by_adapter[adapter_id]
        return head

    def heads_of(self, adapter_ids: Iterable[AdapterId | None]) -> list[RequestState]:
        """The first ready request of each adapter that has any, in the adapters' order."""
        known = self._by_adapter.keys()
        return [t for a in adapter_ids if a in known and (t := self.head_of(a))]

    def _ready_for(self, adapter_id: AdapterId | None) -> _Ready:
        queue = self._by_adapter.get(adapter_id)
        if queue is None:
            queue = self._by_adapter[adapter_id] = _Ready(self._shares)
        return queue
