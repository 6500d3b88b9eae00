"""Who runs in this step: Algorithm 1 and opportunistic bypass (PAPER §4.3.4-5).

One `AdmissionStep` carries the budgets of one step and dies with it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import assert_never

from chameleon_lora.policy.admission.aging import OvertakeGuard
from chameleon_lora.policy.admission.peak import Peak
from chameleon_lora.policy.admission.reservations import Reservations
from chameleon_lora.policy.admission.rules import AdmissionSettings, Bypass, LaneOrder
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.plan import Held, StepBudget
from chameleon_lora.policy.queues.lanes import Lane, RequestState, Stage
from chameleon_lora.policy.queues.quota import QuotaBook
from chameleon_lora.policy.request import AdapterId

LeftTokens = Callable[[], Mapping[AdapterId | None, int]]


class AdmissionStep:
    """One step's admission.

    `admit` is called for each request let in, in order, with the cell its adapter goes to, or None if
    it is in a slot already or there is none.

    Attributes:
        taken_tokens: of the KV blocks that the admitted take now, if they find none cached.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        book: QuotaBook,
        residency: Residency,
        room: StepBudget,
        settings: AdmissionSettings,
        block_tokens: int,
        admit: Callable[[RequestState, int | None], None],
    ) -> None:
        self._lanes = lanes
        self._book = book
        self._residency = residency
        self._settings = settings
        self._block_tokens = block_tokens
        self._admit = admit
        self._peak: Peak | None = None
        self._seats = room.seats
        self._kv_tokens = room.kv_tokens
        self._batch_tokens = room.batch_tokens
        self._is_empty = room.is_empty
        self._guard = OvertakeGuard(lambda: None, None, 1)
        self._urgent_held: Held | None = None
        self._now_s = 0.0
        self._reservations = Reservations(residency.slots, settings.bypass)
        self.held: list[Held | None] = [None] * len(lanes)
        self.admitted: list[RequestState] = []
        self.taken_tokens = 0

    def run(
        self,
        left_tokens: LeftTokens,
        guard: OvertakeGuard,
        now_s: float,
        peak: Peak | None = None,
    ) -> None:
        """Admit whom Algorithm 1 admits; afterwards `held` says why each lane's head waits.

        `left_tokens`: for each adapter in use, predicted steps until its last request ends.
        """
        self._guard, self._now_s, self._peak = guard, now_s, peak
        if self._seats > 0 and self._batch_tokens > 0:
            self._reserve_slots(left_tokens)
        while (first := guard.urgent) and first.stage is Stage.READY:
            self._urgent_held = self._try(first, self._from_all(first.lane))
            if self._urgent_held is not None:
                break
        everybody = range(len(self._lanes))
        self._phase(everybody, lambda lane: (lane,))
        starved = [lane for lane in everybody if self.held[lane] is Held.QUOTA]
        donors = [lane for lane in everybody if lane not in starved]
        if starved:
            self._phase(starved, lambda lane: self._from_donors(lane, donors))

    def _from_all(self, lane: int) -> list[int]:
        return [lane, *(other for other in range(len(self._lanes)) if other != lane)]

    def _from_donors(self, lane: int, donors: Sequence[int]) -> Sequence[int]:
        """Its own quota and the donors'; everybody's if all starve and nothing runs to return any."""
        return (lane, *donors) if donors or not self._is_empty else self._from_all(lane)

    def _reserve_slots(self, left_tokens: LeftTokens) -> None:
        """Promise the windows that come free first to the heads that wait for one, by seniority."""
        heads = [head for lane in self._lanes if (head := lane.head())]
        urgent = self._guard.urgent
        if urgent and urgent.stage is Stage.READY and urgent not in heads:
            heads.append(urgent)
        waiting = [h for h in heads if self._needs_slot(h) and self._find_cell(h) is None]
        if waiting and self._settings.bypass is not Bypass.ANY:
            waiting.sort(key=lambda head: (head is not urgent, head.sequence))
            self._reservations.promise(waiting, left_tokens())

    def _needs_slot(self, state: RequestState) -> bool:
        return state.entry is not None and state.entry.cell is None

    def _find_cell(self, state: RequestState) -> int | None:
        """Where the ticket's adapter may go, outside what is promised to older heads."""
        assert state.entry is not None
        kept = self._reservations.kept_from(state)
        return self._residency.try_find_cell(state.entry, kept, self._now_s)

    def _phase(self, lanes: Iterable[int], sources: Callable[[int], Sequence[int]]) -> None:
        """Admit heads until each lane is empty or held; `sources` says from whose quota."""
        open_lanes = list(lanes)
        while lane := self._next_lane(open_lanes):
            index, head = lane
            held = self.held[index] = self._try(head, sources(index))
            if held is None:
                continue
            if held is Held.SLOTS and self._settings.bypass is not Bypass.OFF:
                self._let_pass(index, sources(index))
            open_lanes.remove(index)

    def _next_lane(self, open_lanes: Sequence[int]) -> tuple[int, RequestState] | None:
        heads = [(lane, head) for lane in open_lanes if (head := self._lanes[lane].head())]
        match self._settings.lane_order:
            case LaneOrder.SMALLEST:
                return heads[0] if heads else None
            case LaneOrder.SENIOR:
                return min(heads, key=lambda item: item[1].order, default=None)
            case _:
                assert_never(self._settings.lane_order)

    def _let_pass(self, lane: int, sources: Sequence[int]) -> None:
        """Admit requests of the lane whose adapter is in a slot or fits, in the lane's order."""
        queue = self._lanes[lane]
        head = queue.head()
        assert head is not None and head.entry is not None
        in_use = self._residency.slots.in_use()
        fronts = {t.sequence: t for t in queue.heads_of((None, *in_use))}
        fronts.update((t.sequence, t) for t in queue.heads_narrower(head.entry.cells))
        while fronts:
            state = min(fronts.values(), key=queue.place)
            del fronts[state.sequence]
            held = self._try(state, sources)
            if held not in (None, Held.SLOTS):
                return
            if held is None:
                behind = queue.heads_of((state.request.adapter_id,))
                behind += queue.heads_narrower(head.entry.cells)
                fronts.update((t.sequence, t) for t in behind)

    def _try(self, state: RequestState, sources: Sequence[int]) -> Held | None:
        """Admit the ticket and answer None, or answer what it waits for and change nothing."""
        held = self._lacks_engine(state)
        if held is not None:
            return held
        if self._reservations.are_broken_by(state, self._lanes[state.lane].head()):
            return Held.SLOTS
        cell = self._find_cell(state) if self._needs_slot(state) else None
        if cell is None and self._needs_slot(state):
            return Held.SLOTS
        need = self._book.need(state.cost_tokens, state.lane, sources)
        charge = self._book.try_charge(need, sources)
        if charge is None:
            return Held.QUOTA
        if self._peak is not None:
            self._peak.add(state, self._adapter_tokens(state))
        state.charge = charge
        self._seats -= 1
        taken = self._blocks(state)
        self._kv_tokens -= taken
        self.taken_tokens += taken
        self._batch_tokens -= state.prefill_tokens
        self._is_empty = False
        self.admitted.append(state)
        self._admit(state, cell)
        self._guard.admitted(state)
        return None

    def _blocks(self, state: RequestState) -> int:
        """Tokens of the KV blocks that it takes: for its prefill, first output token and adapter."""
        size = self._block_tokens
        return (state.prefill_tokens // size + 1) * size + self._adapter_tokens(state)

    def _adapter_tokens(self, state: RequestState) -> int:
        """Of them, for an adapter that begins to be in use: where adapters have no slots."""
        device, entry = self._residency.device, state.entry
        if not device.is_paged or entry is None or entry.running:
            return 0
        return device.blocks_for(entry.adapter.nbytes) * self._block_tokens

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
        """URGENT if the ticket must let the urgent request go first (ADR 0012).

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
