"""Every unfinished request: waiting for its adapter, ready in a lane, or running."""

import heapq
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from chameleon_lora.policy.memory.entry import NEVER
from chameleon_lora.policy.plan import Held, LaneState
from chameleon_lora.policy.queues.clusters import lane_of
from chameleon_lora.policy.queues.lanes import Lane, RequestState, Stage
from chameleon_lora.policy.queues.quota import QuotaBook
from chameleon_lora.policy.queues.shares import Shares
from chameleon_lora.policy.request import AdapterId, RequestId

NOBODY: Mapping[RequestId, RequestState] = MappingProxyType({})


class Backlog:
    """Requests by stage, lane and adapter. Owner: the scheduler.

    Invariant: a request is in exactly one stage, and in the indexes of that stage only.
    """

    def __init__(self) -> None:
        self._shares = Shares()
        self.lanes = [Lane(self._shares)]
        self.states: dict[RequestId, RequestState] = {}
        self.running: dict[RequestId, RequestState] = {}
        self._waiting_for: dict[AdapterId, dict[RequestId, RequestState]] = {}
        self._running_with: dict[AdapterId, dict[RequestId, RequestState]] = {}
        self._by_age: list[
            tuple[int, RequestState]
        ] = []  # heap; those that are not READY go at the top

    def waiting_for(self, adapter_id: AdapterId) -> Collection[RequestState]:
        """The requests that name the adapter and do not run, the oldest first."""
        return self._waiting_for.get(adapter_id, NOBODY).values()

    def running_with(self, adapter_id: AdapterId) -> Collection[RequestState]:
        """The running requests that name the adapter, by admission."""
        return self._running_with.get(adapter_id, NOBODY).values()

    def oldest_for(self, adapter_id: AdapterId) -> RequestState | None:
        """The request among them that arrived first, or None."""
        waiting = self._waiting_for.get(adapter_id)
        return next(iter(waiting.values())) if waiting else None

    def left_tokens(self, step: int) -> dict[AdapterId | None, int]:
        """For each adapter in use, predicted steps until the last of its requests ends."""
        left: dict[AdapterId | None, int] = {}
        for state in self.running.values():
            adapter_id, tokens = state.request.adapter_id, state.left_tokens(step)
            if tokens > left.get(adapter_id, 0):
                left[adapter_id] = tokens
        return left

    def oldest(self) -> RequestState | None:
        """The ready request that arrived first, in whatever lane, or None. O(log n) amortised."""
        while self._by_age:
            state = self._by_age[0][1]
            if state.stage is Stage.READY:
                return state
            heapq.heappop(self._by_age)
            state.is_in_age_order = False
        return None

    def wait(self, state: RequestState, *, is_ready: bool) -> None:
        """Afterwards the request, new or taken from the running, waits: in its lane if ready."""
        request = state.request
        if request.id in self.states:
            self._shares.give_back(request.share, state.cost_tokens)
        self._shares.waits(request.share)
        self.states[request.id] = state
        adapter_id = request.adapter_id
        if adapter_id is not None:
            waiting = self._waiting_for.setdefault(adapter_id, {})
            is_latest = not waiting or waiting[next(reversed(waiting))].sequence < state.sequence
            waiting[request.id] = state
            if not is_latest:  # it ran before: back to its place, O(n log n)
                by_age = sorted(waiting.values(), key=lambda other: other.sequence)
                self._waiting_for[adapter_id] = {t.request.id: t for t in by_age}
            self._note_oldest(state)
        if is_ready:
            self._push(state)
        else:
            state.stage = Stage.LOADING

    def unpark(self, adapter_id: AdapterId) -> None:
        """The adapter is in host memory: who waited for it is ready."""
        for state in self.waiting_for(adapter_id):
            if state.stage is Stage.LOADING:
                self._push(state)

    def park(self, adapter_id: AdapterId) -> None:
        """The adapter left host memory: who was ready to use it waits for it again."""
        for state in self.waiting_for(adapter_id):
            if state.stage is Stage.READY:
                self.lanes[state.lane].leave(state, Stage.LOADING)

    def run(self, state: RequestState) -> None:
        """A waiting request runs from now on, and its share is charged with its cost."""
        self._stop_waiting(state)
        self._shares.charge(state.request.share, state.cost_tokens)
        self.running[state.request.id] = state
        adapter_id = state.request.adapter_id
        if adapter_id is not None:
            self._running_with.setdefault(adapter_id, {})[state.request.id] = state

    def settle(self, state: RequestState, output_tokens: int) -> None:
        """It ended after so many: its share, charged by what was foretold, has had what was generated."""
        self._shares.give_back(state.request.share, state.output_tokens - output_tokens)

    def stop(self, state: RequestState) -> None:
        """A running request runs no more; the caller lets it wait or removes it."""
        del self.running[state.request.id]
        self._unindex(self._running_with, state)

    def remove(self, state: RequestState) -> None:
        """Afterwards the request, which is not running, is unknown."""
        if state.stage is not Stage.RUNNING:
            self._stop_waiting(state)
        del self.states[state.request.id]

    def recut(self, cutoffs: Sequence[float]) -> None:
        """Sort every request into new lanes by size. O(waiting)."""
        self.lanes = [Lane(self._shares) for _ in range(len(cutoffs) + 1)]
        for state in self.states.values():
            state.lane = lane_of(state.size, cutoffs)
            if state.stage is Stage.READY:
                self.lanes[state.lane].push(state)

    def lane_states(self, book: QuotaBook, held: Sequence[Held | None]) -> list[LaneState]:
        """Each lane as it stands. O(waiting)."""
        stages = [(state.lane, state.stage) for state in self.states.values()]
        states = []
        for lane, queue in enumerate(self.lanes):
            head = queue.head()
            states.append(
                LaneState(
                    lane=lane,
                    waiting=queue.ready,
                    loading=stages.count((lane, Stage.LOADING)),
                    running=stages.count((lane, Stage.RUNNING)),
                    quota_tokens=book.limits[lane].tokens,
                    used_tokens=book.used(lane).tokens,
                    head=head.request.id if head else None,
                    head_adapter=head.request.adapter_id if head else None,
                    held=held[lane] if head else None,
                )
            )
        return states

    def _push(self, state: RequestState) -> None:
        self.lanes[state.lane].push(state)
        if not state.is_in_age_order:
            heapq.heappush(self._by_age, (state.sequence, state))
            state.is_in_age_order = True

    def _stop_waiting(self, state: RequestState) -> None:
        if state.stage is Stage.READY:
            self.lanes[state.lane].leave(state, Stage.RUNNING)
        state.stage = Stage.RUNNING
        self._shares.waits_no_more(state.request.share)
        self._unindex(self._waiting_for, state)
        self._note_oldest(state)

    def _note_oldest(self, state: RequestState) -> None:
        if state.entry is not None:
            oldest = self.oldest_for(state.entry.adapter.id)
            state.entry.oldest = NEVER if oldest is None else oldest.sequence

    @staticmethod
    def _unindex(
        index: dict[AdapterId, dict[RequestId, RequestState]], state: RequestState
    ) -> None:
        adapter_id = state.request.adapter_id
        if adapter_id is not None:
            del index[adapter_id][state.request.id]
            if not index[adapter_id]:
                del index[adapter_id]
