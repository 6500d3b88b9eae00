"""How big is a request? Its weighted size in [0, 1], by which lanes are told apart (paper §4.3)."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from chameleon_lora.errors import ConfigError


class SizeRule(Enum):
    """How work (tokens) and adapter (bytes) make one size."""

    PRODUCT = "product"  # degree 2, the paper's choice: work * adapter
    SUM = "sum"  # degree 1: (work + adapter) / 2
    OUTPUT = "output"  # output length alone


@dataclass(frozen=True, slots=True)
class SizeSettings:
    """The rule, and how much a token of input and of output weighs in the work.

    Attributes:
        input_weight: the paper's A, >= 0. Only the ratio of the two weights matters.
        output_weight: the paper's B, >= 0.

    Raises:
        ConfigError: a weight is negative, or their sum is zero or not finite.
    """

    rule: SizeRule = SizeRule.PRODUCT
    input_weight: float = 0.4
    output_weight: float = 0.6

    def __post_init__(self) -> None:
        weights = (self.input_weight, self.output_weight)
        if not (min(weights) >= 0.0 and 0.0 < sum(weights) < math.inf):
            raise ConfigError(
                f"input_weight and output_weight are {weights[0]} and {weights[1]}, but must be"
                " at least 0 with a finite sum above 0; the defaults are 0.4 and 0.6"
            )


class Sizer:
    """Request sizes relative to the largest seen so far. Lives with an engine.

    The maxima only grow (ADR 0005), so a size tells of its request among those up to its arrival.
    """

    def __init__(self, settings: SizeSettings) -> None:
        self._settings = settings
        self._max_input_tokens = 1
        self._max_output_tokens = 1
        self._max_adapter_bytes: int | None = None
        self._min_adapter_bytes: int | None = None

    def registered(self, nbytes: int) -> None:
        """An adapter of nbytes (> 0) became known: it counts for the largest and the smallest."""
        assert nbytes > 0, f"an adapter has no {nbytes} bytes"
        if self._max_adapter_bytes is None or nbytes > self._max_adapter_bytes:
            self._max_adapter_bytes = nbytes
        if self._min_adapter_bytes is None or nbytes < self._min_adapter_bytes:
            self._min_adapter_bytes = nbytes

    def size(self, input_tokens: int, output_tokens: int, adapter_bytes: int | None) -> float:
        """The request's size in [0, 1]; takes the request into the running maxima first.

        With work = (A * in / max_in + B * out / max_out) / (A + B) and adapter = adapter_bytes /
        max_adapter_bytes, the size is work * adapter (PRODUCT), their mean (SUM) or out / max_out
        (OUTPUT). Paper §4.3; there A + B = 1, and SUM is not spelled out.

        Args:
            input_tokens: prompt length.
            output_tokens: predicted output length.
            adapter_bytes: None for the base model, which has the smallest adapter's factor, or 1
                when no adapter is known (ADR 0002).
        """
        self._max_input_tokens = max(self._max_input_tokens, input_tokens)
        self._max_output_tokens = max(self._max_output_tokens, output_tokens)
        if adapter_bytes is not None:
            self.registered(adapter_bytes)
        match self._settings.rule:
            case SizeRule.PRODUCT:
                return self._work(input_tokens, output_tokens) * self._adapter(adapter_bytes)
            case SizeRule.SUM:
                return (self._work(input_tokens, output_tokens) + self._adapter(adapter_bytes)) / 2
            case SizeRule.OUTPUT:
                return output_tokens / self._max_output_tokens
            case _:
                assert_never(self._settings.rule)

    def _work(self, input_tokens: int, output_tokens: int) -> float:
        a, b = self._settings.input_weight, self._settings.output_weight
        input_share = input_tokens / self._max_input_tokens
        output_share = output_tokens / self._max_output_tokens
        return (a * input_share + b * output_share) / (a + b)

    def _adapter(self, adapter_bytes: int | None) -> float:
        if adapter_bytes is None:
            adapter_bytes = self._min_adapter_bytes
        if adapter_bytes is None or self._max_adapter_bytes is None:
            return 1.0
        return adapter_bytes / self._max_adapter_bytes
