"""How many tokens will a request generate? A running median per adapter.

The paper (§4.3) asks a fine-tuned BERT for this. Here the answer comes from what the same adapter
produced lately, because requests of one adapter are of one task (ADR 0005).
"""

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.request import AdapterId


@dataclass(frozen=True, slots=True)
class LengthSettings:
    """What is believed before anything was seen, and how fast experience outweighs it.

    Attributes:
        prior_tokens: output length expected of a request before any has finished, >= 1.
        prior_weight: how many observations a belief is worth against what was observed, > 0.
        window: outputs remembered per adapter, and over all adapters together, >= 1.

    Raises:
        ConfigError: a value is out of its range.
    """

    prior_tokens: int = 128
    prior_weight: float = 4.0
    window: int = 64

    def __post_init__(self) -> None:
        if self.prior_tokens < 1:
            raise ConfigError(
                f"prior_tokens is {self.prior_tokens}, but must be at least 1; the default is 128"
            )
        if not 0.0 < self.prior_weight < math.inf:
            raise ConfigError(
                f"prior_weight is {self.prior_weight}, but must be above 0 and finite;"
                " the default is 4"
            )
        if self.window < 1:
            raise ConfigError(f"window is {self.window}, but must be at least 1; the default is 64")


class LengthEstimator:
    """Expected output length of a request, from the outputs of finished ones. Lives with an engine.

    Two blends, each of the form (n * median + w * belief) / (n + w) with w = prior_weight: over all
    requests with prior_tokens as the belief, then per adapter with the first blend as the belief.
    Requests for the base model (adapter None) count as those of one adapter.
    """

    def __init__(self, settings: LengthSettings) -> None:
        self._window = settings.window
        self._prior_tokens = settings.prior_tokens
        self._prior_weight = settings.prior_weight
        self._all = _Recent(settings.window)
        self._all_tokens = float(settings.prior_tokens)  # the blend over all requests
        self._by_adapter: dict[AdapterId | None, _Recent] = {}

    def predict(self, adapter_id: AdapterId | None, max_output_tokens: int) -> int:
        """Expected output length in tokens, within 1..max_output_tokens. Changes nothing; O(1)."""
        expected = self._all_tokens
        recent = self._by_adapter.get(adapter_id)
        if recent is not None:
            expected = self._blend(recent, expected)
        return max(1, min(max_output_tokens, round(expected)))

    def observe(self, adapter_id: AdapterId | None, output_tokens: int) -> None:
        """A request of this adapter has ended after output_tokens: later predictions know it."""
        assert output_tokens >= 0, f"an output has no {output_tokens} tokens"
        recent = self._by_adapter.get(adapter_id)
        if recent is None:
            recent = self._by_adapter[adapter_id] = _Recent(self._window)
        recent.add(output_tokens)
        self._all.add(output_tokens)
        self._all_tokens = self._blend(self._all, self._prior_tokens)

    def forget(self, adapter_id: AdapterId) -> None:
        """This adapter's own outputs are forgotten; what they taught of all requests stays."""
        self._by_adapter.pop(adapter_id, None)

    def _blend(self, recent: "_Recent", belief_tokens: float) -> float:
        weight = self._prior_weight
        return (recent.count * recent.median + weight * belief_tokens) / (recent.count + weight)


class _Recent:
    """The last `window` values with their count and median; `add` searches in O(log window)."""

    __slots__ = ("_arrived", "_sorted", "_window", "count", "median")

    def __init__(self, window: int) -> None:
        self._window = window
        self._arrived: deque[int] = deque()
        self._sorted: list[int] = []
        self.count = 0
        self.median = 0.0

    def add(self, value: int) -> None:
        """Takes the value in and, when the window is full, lets the oldest go."""
        ordered = self._sorted
        if self.count == self._window:
            del ordered[bisect_left(ordered, self._arrived.popleft())]
        self._arrived.append(value)
        insort(ordered, value)
        self.count = len(ordered)
        middle = self.count // 2
        self.median = (ordered[middle] + ordered[~middle]) / 2
