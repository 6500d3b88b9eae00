"""How many tokens will a request generate, and how many are set aside for it?

The paper (§4.3) asks a fine-tuned BERT for this. Here the answer comes from finished requests:
those of the same adapter, because they are of one task (ADR 0005), and those with the same words in
their prompts (ADR 0018).
"""

import math
from dataclasses import dataclass
from enum import Enum

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.estimate.quantiles import RunningQuantile
from chameleon_lora.policy.estimate.words import WordLearner
from chameleon_lora.policy.request import AdapterId, Request


class Predictor(Enum):
    """What foretells the output length of a request that carries no hint."""

    MEDIAN = "median"  # the outputs that its adapter had lately
    WORDS = "words"  # those, and what the words of its prompt were followed by (ADR 0018)


@dataclass(frozen=True, slots=True)
class LengthSettings:
    """What is believed before anything was seen, and how fast experience outweighs it.

    Attributes:
        prior_tokens: output length expected of a request before any has finished, >= 1.
        prior_weight: how many observations a belief is worth against what was observed, > 0.
        window: outputs remembered per adapter, and over all adapters together, >= 1.
        reserve_quantile: share of requests whose output is to stay within what their lane is charged
            for it, from 0 to below 1; 0 charges what is predicted, which about half exceed.
    """

    predictor: Predictor = Predictor.WORDS
    prior_tokens: int = 128
    prior_weight: float = 4.0
    window: int = 64
    reserve_quantile: float = 0.0

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
        if not 0.0 <= self.reserve_quantile < 1.0:
            raise ConfigError(
                f"length.reserve_quantile is {self.reserve_quantile}; use 0 (what is predicted) or a"
                " share below 1, such as 0.9"
            )


class LengthEstimator:
    """Expected output length of a request, from finished ones. Lives with an engine.

    Predictor.MEDIAN is the running median of outputs; it also answers for requests without words.
    Reserved is the predicted length times a running quantile of true / predicted.
    """

    def __init__(self, settings: LengthSettings) -> None:
        window, weight = settings.window, settings.prior_weight
        self._outputs = RunningQuantile(0.5, window, settings.prior_tokens, weight)
        self._words: WordLearner | None = None
        if settings.predictor is Predictor.WORDS:
            self._words = WordLearner(window, settings.prior_tokens, weight)
        self._excess: RunningQuantile | None = None  # log(true / predicted)
        if settings.reserve_quantile:
            self._excess = RunningQuantile(settings.reserve_quantile, window, 0.0, weight)

    def predict_tokens(self, request: Request) -> int:
        """Expected output length in tokens, within 1..max_output_tokens. Changes nothing."""
        if self._words is not None and request.words:
            expected = self._words.predict(request)
        else:
            expected = self._outputs.expected(request.adapter_id)
        return max(1, min(request.max_output_tokens, round(expected)))

    def reserve_tokens(self, request: Request, predicted_tokens: int) -> int:
        """Output tokens to charge, within 1..max_output_tokens. Changes nothing; O(1).

        `predicted_tokens` may be foretold from outside: the quantile is of whatever was predicted.
        """
        if self._excess is None:
            return predicted_tokens
        factor = math.exp(self._excess.expected(request.adapter_id))
        return max(1, min(request.max_output_tokens, math.ceil(predicted_tokens * factor)))

    def observe(self, request: Request, predicted_tokens: int, output_tokens: int) -> None:
        """A request of which so much was predicted has ended after output_tokens, >= 0."""
        assert output_tokens >= 0, f"an output has no {output_tokens} tokens"
        self._outputs.observe(request.adapter_id, output_tokens)
        if self._words is not None and request.words:
            self._words.observe(request, output_tokens)
        if self._excess is not None:
            excess = math.log(max(1, output_tokens) / predicted_tokens)
            self._excess.observe(request.adapter_id, excess)

    def forget(self, adapter_id: AdapterId) -> None:
        """This adapter's own outputs are forgotten; what they taught of all requests stays."""
        for part in (self._outputs, self._words, self._excess):
            if part is not None:
                part.forget(adapter_id)
