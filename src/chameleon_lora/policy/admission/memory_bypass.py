"""Who passes a head whose adapter does not fit in memory, and who is squashed for it (PAPER §4.3.5).

For engines whose batches run from KV blocks (ADR 0020), where the head waits for memory and not for a slot.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.queues.lanes import RequestState
from chameleon_lora.policy.request import RequestId


class HeldMemory:
    """The KV tokens that running requests and their adapters hold. Lives for one step."""

    def __init__(
        self,
        running: Collection[RequestState],
        admitted: Sequence[RequestState],
        step: int,
        block_tokens: int,
    ) -> None:
        """By admission; `admitted` began to run in this step. Both may grow."""
        self._running = running
        self._admitted = admitted
        self._step = step
        self._block_tokens = block_tokens

    def steps_until_free(self, lacking_tokens: int) -> int:
        """Predicted steps until so much has come back: requests end, an adapter's last one frees it."""
        steps = 0
        fresh = set(self._admitted)
        left = {t: self._left(t, is_fresh=t in fresh) for t in self._running}
        for state, freed in self._freed_by(sorted(left, key=left.__getitem__)):
            steps = left[state]
            if freed >= lacking_tokens:
                break
        return steps

    def breakers(
        self, head: RequestState, lacking_tokens: int, limit: int
    ) -> tuple[RequestId, ...]:
        """Who passed the head and holds what it lacks, the last to be admitted first; else nobody.

        Each is squashed at most `limit` times, so that it ends some day; those admitted in this step
        have not run yet and stay.
        """
        passers = [t for t in reversed(list(self._running)) if t.promised_to == head.sequence]
        may_go = [t for t in passers if t.squashes < limit and t not in self._admitted]
        chosen: list[RequestId] = []
        for state, freed in self._freed_by(may_go):
            chosen.append(state.request.id)
            if freed >= lacking_tokens:
                return tuple(chosen)
        return ()

    def _freed_by(self, ended: Iterable[RequestState]) -> Iterator[tuple[RequestState, int]]:
        """Each of these, and the tokens that have come back when it has ended after those before."""
        users, freed, fresh = Counter[Entry](), 0, set(self._admitted)
        for state in ended:
            freed += self._tokens(state, is_fresh=state in fresh)
            if (entry := state.entry) is not None:
                users[entry] += 1
                is_last = users[entry] == entry.running
                freed += entry.blocks * self._block_tokens if is_last else 0
            yield state, freed

    def _tokens(self, state: RequestState, *, is_fresh: bool) -> int:
        """Of its own KV blocks."""
        grown = 0 if is_fresh else self._step - (state.admitted_step or 0)
        size = self._block_tokens
        return ((state.prefill_tokens + grown) // size + 1) * size

    def _left(self, state: RequestState, *, is_fresh: bool) -> int:
        if is_fresh:
            return max(1, state.output_tokens - state.generated_tokens)
        return state.left_tokens(self._step)
