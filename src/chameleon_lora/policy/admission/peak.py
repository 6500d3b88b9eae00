"""Does a batch fit even at its worst moment? S-LoRA's rule of admission (its §5; PAPER §5).

If every answer reached its limit, requests would end in the order of what they may still generate.
Just before the i-th longest ends, i requests hold what they have now and have each grown by what it
had left; the largest of these sums, with the adapters in use, must fit in memory.
"""

from bisect import insort
from collections.abc import Iterable

from chameleon_lora.policy.queues.lanes import RequestState


class Peak:
    """The batch of one step at its worst moment. Lives for one step.

    Counts tokens, one a step and request; adapters count only where they run from KV blocks.
    """

    def __init__(self, running: Iterable[RequestState], step: int, free_tokens: int) -> None:
        """`free_tokens` are there for KV cache: all but what the adapters in use take."""
        self._batch = sorted(_growth(state, step) for state in running)
        self._step = step
        self._free = free_tokens

    def fits(self, state: RequestState, adapter_tokens: int) -> bool:
        """Whether the batch would still fit with the request, whose adapter adds so much. O(batch)."""
        batch = list(self._batch)
        insort(batch, _growth(state, self._step))
        held = peak = 0
        for count, (still_to_grow, tokens) in enumerate(batch, start=1):
            held += tokens
            peak = max(peak, held - count * still_to_grow)
        return peak < self._free - adapter_tokens

    def add(self, state: RequestState, adapter_tokens: int) -> None:
        """From now on `fits` counts the request, and what its adapter adds. O(batch)."""
        insort(self._batch, _growth(state, self._step))
        self._free -= adapter_tokens


def _growth(state: RequestState, step: int) -> tuple[int, int]:
    """Minus the tokens it may still generate, so that the longest sorts first; and its tokens now."""
    done = state.generated_tokens
    if state.admitted_step is not None and state.charge is not None:
        done += step - state.admitted_step
    left = max(state.request.max_output_tokens - done, 0)
    return (-left, state.request.input_tokens + done)
