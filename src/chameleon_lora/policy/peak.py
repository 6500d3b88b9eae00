"""Does a batch fit even at its worst moment? S-LoRA's rule of admission (its §5; PAPER §5).

If every answer reached its limit, requests would end in the order of what they may still generate.
Just before the i-th longest ends, i requests hold what they have now and have each grown by what it
had left; the largest of these sums, with the adapters in use, must fit in memory.
"""

from bisect import insort
from collections.abc import Iterable

from chameleon_lora.policy.lanes import Ticket


class Peak:
    """The batch of one step at its worst moment. Lives with the step's round.

    Counts tokens, one a step and request; adapters count only where they run from KV blocks.
    """

    def __init__(self, running: Iterable[Ticket], step: int, free_tokens: int) -> None:
        """`free_tokens` are there for KV cache: all but what the adapters in use take."""
        self._batch = sorted(_growth(ticket, step) for ticket in running)
        self._step = step
        self._free = free_tokens

    def fits(self, ticket: Ticket, adapter_tokens: int) -> bool:
        """Whether the batch would still fit with the ticket, whose adapter adds so much. O(batch)."""
        batch = list(self._batch)
        insort(batch, _growth(ticket, self._step))
        held = peak = 0
        for count, (still_to_grow, tokens) in enumerate(batch, start=1):
            held += tokens
            peak = max(peak, held - count * still_to_grow)
        return peak < self._free - adapter_tokens

    def add(self, ticket: Ticket, adapter_tokens: int) -> None:
        """The ticket joins the batch."""
        insort(self._batch, _growth(ticket, self._step))
        self._free -= adapter_tokens


def _growth(ticket: Ticket, step: int) -> tuple[int, int]:
    """Minus the tokens it may still generate, so that the longest sorts first; and its tokens now."""
    done = ticket.generated_tokens
    if ticket.admitted_step and ticket.charge is not None:
        done += step - ticket.admitted_step
    left = max(ticket.request.max_output_tokens - done, 0)
    return (-left, ticket.request.input_tokens + done)
