"""Who runs in this step: Algorithm 1 and opportunistic bypass (PAPER §4.3.4-5).

One `AdmissionStep` carries the budgets of one step and dies with it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from chameleon_lora.policy.admission.memory_bypass import HeldMemory
from chameleon_lora.policy.admission.overtaking import AdmissionInterval, OvertakeGuard
from chameleon_lora.policy.admission.peak import Peak
from chameleon_lora.policy.admission.reservations import Reservations, promise_breakers
from chameleon_lora.policy.admission.rules import AdmissionSettings, LaneOrder, Reserve
from chameleon_lora.policy.memory.entry import NEVER
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.plan import Activation, Admission, Held, StepBudget
from chameleon_lora.policy.queues.backlog import Backlog
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.queues.quota import QuotaBook, QuotaCharge
from chameleon_lora.policy.request import RequestId


@dataclass(frozen=True, slots=True)
class StepStart:
    """What one step begins with.

    Attributes:
        kv_tokens: of the whole KV cache, without what adapters run from.
        blocked: the oldest request whose adapter lacks room in host memory, or None.
    """

    now_s: float
    room: StepBudget
    kv_tokens: int
    blocked: RequestState | None


class AdmissionStep:
    """One step's admission.

    Attributes:
        held: why each lane's head waits.
        admitted: whom it let in, in order.
        admissions: likewise, for the plan.
        activations: the adapters that go into slots for them.
        squash: who is to make way for a head.
        taken_tokens: of the KV blocks that the admitted take now, if they find none cached.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        interval: AdmissionInterval,
        backlog: Backlog,
        book: QuotaBook,
        residency: Residency,
        block_tokens: int,
        start: StepStart,
    ) -> None:
        self._settings = settings
        self._interval = interval
        self._backlog = backlog
        self._lanes = backlog.lanes
        self._book = book
        self._residency = residency
        self._block_tokens = block_tokens
        self._now_s = start.now_s
        self._seats = start.room.seats
        self._kv_tokens = start.room.kv_tokens
        self._batch_tokens = start.room.batch_tokens
        self._is_empty = start.room.is_empty
        self._guard = OvertakeGuard(backlog.oldest, start.blocked, settings.overtake_limit)
        self._urgent_held: Held | None = None
        self._reservations = Reservations(residency.slots, settings.bypass)
        self._peak: Peak | None = None
        self._peak_tokens = start.kv_tokens
        self.held: list[Held | None] = [None] * len(self._lanes)
        self.admitted: list[RequestState] = []
        self.admissions: list[Admission] = []
        self.activations: list[Activation] = []
        self.squash: tuple[RequestId, ...] = ()
        self.taken_tokens = 0
        running = backlog.running.values()
        self._memory = HeldMemory(running, self.admitted, interval.step, block_tokens)

    def run(self) -> None:
        """Admit whom Algorithm 1 admits; afterwards the attributes tell what came of it."""
        if not (self._interval.is_admitting or self._is_empty):
            self.held = [Held.INTERVAL] * len(self._lanes)
            return
        if self._settings.reserve is Reserve.PEAK:
            running = self._backlog.running.values()
            self._peak = Peak(running, self._interval.step, self._peak_tokens)
        if self._seats > 0 and self._batch_tokens > 0:
            self._reserve_slots()
        while (first := self._guard.urgent) and first.stage is Stage.READY:
            self._urgent_held = self._try(first, self._from_all(first.lane))
            if self._urgent_held is not None:
                break
        everybody = range(len(self._lanes))
        self._phase(everybody, lambda lane: (lane,))
        starved = [lane for lane in everybody if self.held[lane] is Held.QUOTA]
        donors = [lane for lane in everybody if lane not in starved]
        if starved:
            self._phase(starved, lambda lane: self._from_donors(lane, donors))
        if self.admitted:
            self._interval.admitted()
        limit = self._settings.squash_limit
        self.squash = promise_breakers(self._backlog, self.held, self.admitted, limit)
        if limit and Held.KV_MEMORY in self.held:
            self.squash = self.squash or self._memory_breakers(limit)

    def _from_all(self, lane: int) -> list[int]:
        return [lane, *(other for other in range(len(self._lanes)) if other != lane)]

    def _from_donors(self, lane: int, donors: Sequence[int]) -> Sequence[int]:
        """Its own quota and the donors'; everybody's if all starve and nothing runs to return any."""
        return (lane, *donors) if donors or not self._is_empty else self._from_all(lane)

    def _reserve_slots(self) -> None:
        """Promise the slots that come free first to the heads that wait for one, by seniority."""
        heads = [head for lane in self._lanes if (head := lane.head())]
        urgent = self._guard.urgent
        if urgent and urgent.stage is Stage.READY and urgent not in heads:
            heads.append(urgent)
        waiting = [h for h in heads if self._needs_slot(h) and self._find_slot(h) is None]
        if waiting and self._settings.bypass.makes_promises:
            waiting.sort(key=lambda head: (head is not urgent, head.sequence))
            self._reservations.promise(waiting, self._backlog.left_tokens(self._interval.step))

    def _needs_slot(self, state: RequestState) -> bool:
        return state.entry is not None and state.entry.slot is None

    def _find_slot(self, state: RequestState) -> int | None:
        """Where the request's adapter may go, outside what is promised to older heads."""
        return self._residency.try_find_slot(self._reservations.kept_from(state), self._now_s)

    def _phase(self, lanes: Iterable[int], sources: Callable[[int], Sequence[int]]) -> None:
        """Admit heads until each lane is empty or held; `sources` says from whose quota."""
        open_lanes = list(lanes)
        while lane := self._next_lane(open_lanes):
            index, head = lane
            held = self.held[index] = self._try(head, sources(index))
            if held is None:
                continue
            if held in (Held.SLOTS, Held.KV_MEMORY) and self._settings.bypass.lets_pass:
                self._let_pass(head, held, sources(index))
            open_lanes.remove(index)

    def _next_lane(self, open_lanes: Sequence[int]) -> tuple[int, RequestState] | None:
        heads = [(lane, head) for lane in open_lanes if (head := self._lanes[lane].head())]
        match self._settings.lane_order:
            case LaneOrder.SMALLEST:
                return heads[0] if heads else None
            case LaneOrder.SENIOR:
                return min(
                    heads, key=lambda item: self._lanes[item[0]].place(item[1]), default=None
                )
            case _:
                assert_never(self._settings.lane_order)

    def _let_pass(self, head: RequestState, held_by: Held, sources: Sequence[int]) -> None:
        """Admit requests of the lane whose adapter is in use, or that have none, in the lane's order.

        Where the head lacks memory for its adapter, they are to end before that comes free.
        """
        bypass, queue, left = self._settings.bypass, self._lanes[head.lane], NEVER
        if held_by is Held.KV_MEMORY:
            if not (lacking := self._lacking_for_adapter(head)):
                return
            left = self._memory.steps_until_free(lacking) if bypass.makes_promises else NEVER
        fronts = queue.heads_of((None, *self._residency.slots.in_use()))
        while fronts:
            state = min(fronts, key=queue.place)
            fronts.remove(state)
            is_bound = left < NEVER and head.sequence < state.sequence
            if is_bound and state.output_tokens > left:
                continue
            held = self._try(state, sources)
            if held is None:
                state.promised_to = head.sequence if is_bound else state.promised_to
                fronts += queue.heads_of((state.request.adapter_id,))
            elif held is not held_by:
                return

    def _memory_breakers(self, limit: int) -> tuple[RequestId, ...]:
        """Who passed a head and keeps the memory that it lacks by now; else nobody."""
        for lane, why in zip(self._lanes, self.held, strict=True):
            head = lane.head() if why is Held.KV_MEMORY else None
            lacking = self._lacking_for_adapter(head) if head else 0
            if head and lacking and (chosen := self._memory.breakers(head, lacking, limit)):
                return chosen
        return ()

    def _lacking_for_adapter(self, state: RequestState) -> int:
        """KV tokens that it lacks for its adapter alone; 0 if it would fit, or not fit without either."""
        lacking = self._blocks(state) - self._kv_tokens
        return lacking if 0 < lacking <= self._adapter_tokens(state) else 0

    def _try(self, state: RequestState, sources: Sequence[int]) -> Held | None:
        """Admit the request and answer None, or answer what it waits for and change nothing."""
        held = self._lacks_engine(state)
        if held is not None:
            return held
        promise = self._reservations.older_promise(state, self._lanes[state.lane].head())
        if promise is not None and state.output_tokens > promise.left_tokens:
            return Held.SLOTS
        slot = self._find_slot(state) if self._needs_slot(state) else None
        if slot is None and self._needs_slot(state):
            return Held.SLOTS
        need = self._book.need_tokens(state.cost_tokens, state.lane, sources)
        charge = self._book.try_charge(need, sources)
        if charge is None:
            return Held.QUOTA
        state.promised_to = None if promise is None else promise.head.sequence
        self._charge(state, charge)
        self._run(state, slot)
        self._guard.admitted(state)
        return None

    def _charge(self, state: RequestState, charge: QuotaCharge) -> None:
        """The step's budgets are less by what the request takes of them."""
        if self._peak is not None:
            self._peak.add(state, self._adapter_tokens(state))
        state.charge = charge
        self._seats -= 1
        taken = self._blocks(state)
        self._kv_tokens -= taken
        self.taken_tokens += taken
        self._batch_tokens -= state.prefill_tokens
        self._is_empty = False

    def _run(self, state: RequestState, slot: int | None) -> None:
        """The request runs; its adapter goes to this slot if it is in none yet."""
        entry, request = state.entry, state.request
        self._backlog.run(state)
        if entry is not None:
            if slot is not None:
                self.activations.append(Activation(entry.adapter.id, slot, entry.is_cold))
                self._residency.activate(entry, slot)
            self._residency.start(entry, self._now_s)
        self.admitted.append(state)
        self.admissions.append(Admission(request.id, request.adapter_id, state.lane))

    def _blocks(self, state: RequestState) -> int:
        """Tokens of the KV blocks that it takes: for its prefill, first output token and adapter."""
        size = self._block_tokens
        return (state.prefill_tokens // size + 1) * size + self._adapter_tokens(state)

    def _adapter_tokens(self, state: RequestState) -> int:
        """Of them, for an adapter that begins to be in use: where adapters have no slots."""
        if state.entry is None:
            return 0
        return self._residency.slots.blocks_to_run(state.entry) * self._block_tokens

    def _lacks_engine(self, state: RequestState) -> Held | None:
        if self._seats <= 0:
            return Held.SEATS
        if self._batch_tokens <= 0:
            return Held.BATCH
        if self._blocks(state) > self._kv_tokens and not self._is_empty:
            return Held.KV_MEMORY
        peak = self._peak
        if peak and not peak.fits(state, self._adapter_tokens(state)) and not self._is_empty:
            return Held.KV_MEMORY
        return self._yields(state)

    def _yields(self, state: RequestState) -> Held | None:
        """URGENT if the request must let the urgent request go first (ADR 0012).

        Up to twice the limit some may still pass: while it waits for host memory, requests without
        an adapter; while it waits for a slot only, those that leave it a seat and need no slot.
        """
        urgent = self._guard.urgent
        if urgent is None or urgent is state:
            return None
        if urgent.stage is Stage.LOADING:
            may_pass = state.entry is None
        else:
            leaves_room = self._seats > 1 and not self._needs_slot(state)
            may_pass = self._urgent_held is Held.SLOTS and leaves_room
        return None if may_pass and not self._guard.is_spent else Held.URGENT
