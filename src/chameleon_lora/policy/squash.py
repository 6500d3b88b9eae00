"""Who goes back to its lane because it broke the promise on which it passed another (PAPER §4.3.5)."""

from collections.abc import Collection, Sequence

from chameleon_lora.policy.backlog import Backlog
from chameleon_lora.policy.lanes import Ticket
from chameleon_lora.policy.plan import Held
from chameleon_lora.policy.request import RequestId


def promise_breakers(
    backlog: Backlog,
    held: Sequence[Held | None],
    admitted: Sequence[Ticket],
    limit: int,
) -> tuple[RequestId, ...]:
    """All that run with one adapter, if a head would have its slot but for them; else nobody.

    They were let in on the promise to end before that head's slot came free, and did not. Each is
    squashed at most `limit` times, so that it ends some day; those admitted in this very step have
    not run yet and stay.
    """
    if limit == 0 or Held.SLOTS not in held:
        return ()
    heads = (
        lane.head() for lane, why in zip(backlog.lanes, held, strict=True) if why is Held.SLOTS
    )
    waiting = {head.sequence for head in heads if head}
    fresh = {ticket.request.adapter_id for ticket in admitted}
    promised = [t.request.adapter_id for t in backlog.running.values() if t.promised_to in waiting]
    for adapter_id in dict.fromkeys(promised):
        if adapter_id is None or adapter_id in fresh:
            continue
        running = backlog.running_with(adapter_id)
        if _all_broke(running, waiting, limit):
            return tuple(ticket.request.id for ticket in running)
    return ()


def _all_broke(running: Collection[Ticket], waiting: set[int], limit: int) -> bool:
    return all(t.promised_to in waiting and t.squashes < limit for t in running)
